"""Outputs of a network that was edited only behind some place: what comes before is computed once for many edits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from pipeline.model.network import Network, writes


class Behind:
    """A network stopped at a place, on some samples; the place only moves on.

    Memory: what is still needed behind the place, of every sample.

    Args:
        base: in eval mode while it is used.
        batches: [B, ...] each.
    """

    def __init__(self, base: Network, batches: Sequence[Tensor]) -> None:
        base.graph.eval()
        self._nodes: list[fx.Node] = list(base.graph.graph.nodes)
        self._last_read = {
            value: index for index, node in enumerate(self._nodes) for value in (*node.all_input_nodes, node)
        }
        self._stopped = [_Stopped(base.graph, batch) for batch in batches]
        self._place = 0
        # What writes in place would change what is kept for the next edit.
        self._stays = any(map(writes, self._nodes))

    def advance(self, place: int) -> None:
        """Stop before the node at `place`, an index into the graph's nodes; not before where it stands."""
        if self._stays:
            return
        for index in range(self._place, place):
            for stopped in self._stopped:
                stopped.env[self._nodes[index]] = stopped.run_node(self._nodes[index])
                for value in [value for value in stopped.env if self._last_read[value] <= index]:
                    del stopped.env[value]
        self._place = max(self._place, place)

    def outputs(self, edited: Network) -> Tensor:
        """[N, ...], those of the base after edits that changed nothing before the place."""
        edited.graph.eval()
        with torch.no_grad():
            return torch.cat(list(self._outputs(edited)))

    def _outputs(self, edited: Network) -> Iterator[Tensor]:
        passed = {node.name for node in self._nodes[: self._place]}
        for stopped in self._stopped:
            kept = {node.name: value for node, value in stopped.env.items()}
            known = {node: kept.get(node.name) for node in edited.graph.graph.nodes if node.name in passed}
            yield fx.Interpreter(edited.graph).run(stopped.batch, initial_env=known)


class _Stopped(fx.Interpreter):
    """One batch."""

    def __init__(self, graph: fx.GraphModule, batch: Tensor) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.batch, self.args_iter = batch, iter([batch])

    def run_node(self, n: fx.Node) -> object:
        with torch.no_grad():
            return super().run_node(n)
