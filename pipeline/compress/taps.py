"""Values of a graph's nodes while it runs: what goes into a region and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from pipeline.model.network import Network


class _Done(BaseException):
    """Everything asked for was seen."""


class Taps(fx.Interpreter):
    """Runs a network and shows the values of some nodes to an observer; stops behind the last of them.

    Args:
        names: of the nodes.
        observer: called with (name, value) in execution order; must not change the value, nor keep it where an
            operator that works in place follows.
    """

    def __init__(self, network: Network, names: set[str], observer: Callable[[str, Tensor], None]) -> None:
        super().__init__(network.graph)
        self.left, self.names, self.observer = set(names), names, observer

    def show(self, *inputs: Tensor) -> None:
        self.left = set(self.names)
        try:
            with torch.no_grad():
                self.run(*inputs)
        except _Done:
            pass

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.left:
            self.observer(n.name, value)
            self.left.remove(n.name)
            if not self.left:
                raise _Done
        return value
