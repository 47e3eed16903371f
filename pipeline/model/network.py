"""The canonical network: an `fx.GraphModule` whose layers are `nn` modules under the user's own names.

Every compression pass works on this value. A `Network` is never changed in place: passes copy it, edit the copy's
graph, and return a new `Network` whose `edits` log has grown by one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from pipeline.model.edits import Edit


class ChannelAffine(nn.Module):
    """`y = scale * z + shift` per channel: what an activation becomes when it is linearised.

    Args:
        scale, shift: [C] float32.
        channel_dim: where the channels are in the input, 1 for [N, C, H, W], -1 for [N, T, C].
    """

    def __init__(self, scale: Tensor, shift: Tensor, channel_dim: int) -> None:
        super().__init__()
        self.scale, self.shift, self.channel_dim = nn.Parameter(scale.clone()), nn.Parameter(shift.clone()), channel_dim

    def forward(self, z: Tensor) -> Tensor:
        trailing = 0 if self.channel_dim == -1 else z.dim() - self.channel_dim - 1
        shape = (-1,) + (1,) * trailing
        return z * self.scale.view(shape) + self.shift.view(shape)


@dataclass(frozen=True)
class Network:
    """A trainable, editable network.

    Attributes:
        graph: the layers (`call_module`) and what joins them (`call_function`), in eval mode unless being trained.
        example: example inputs at batch 2, the first one [2, ...].
        edits: what was done to the base so far, in order.
        sources: site -> "file:line" of the user's code, where known.
    """

    graph: fx.GraphModule
    example: tuple[Tensor, ...]
    edits: tuple[Edit, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def copy(self) -> Network:
        """A network with its own graph and weights."""
        return replace(self, graph=copy.deepcopy(self.graph))

    def edited(self, graph: fx.GraphModule, edit: Edit) -> Network:
        """The network after `edit`: the graph is cleaned, checked and recompiled; unused layers are dropped."""
        graph.graph.eliminate_dead_code(_stays)
        graph.delete_all_unused_submodules()
        graph.graph.lint()
        graph.recompile()
        return replace(self, graph=graph, edits=(*self.edits, edit))

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.graph(*inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the first input, without the batch dimension."""
        return tuple(self.example[0].shape[1:])

    @property
    def classes(self) -> int | None:
        """Number of classes where the output is rows of class scores [N, C], C > 1."""
        with torch.no_grad():
            output = self(*self.example)
        scores = isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1
        return output.shape[1] if scores else None

    def layer(self, name: str) -> nn.Module:
        return self.graph.get_submodule(name)

    def node(self, name: str) -> fx.Node:
        """The one call of layer `name`. Raises KeyError when it is not called exactly once."""
        calls = [node for node in self.graph.graph.nodes if node.op == "call_module" and node.target == name]
        if len(calls) != 1:
            raise KeyError(f"layer '{name}' is called {len(calls)} times, not once")
        return calls[0]

    def editable(self) -> set[str]:
        """Names of the layers that are called once and whose weights nothing else in the graph reads."""
        nodes = list(self.graph.graph.nodes)
        calls = [node.target for node in nodes if node.op == "call_module"]
        read = {node.target.rpartition(".")[0] for node in nodes if node.op == "get_attr"}
        return {name for name in calls if calls.count(name) == 1 and name not in read}

    def layers(self) -> dict[str, nn.Module]:
        """Layers in execution order, by name."""
        called = (node.target for node in self.graph.graph.nodes if node.op == "call_module")
        return {name: self.graph.get_submodule(name) for name in dict.fromkeys(called)}

    def fingerprint(self) -> str:
        """SHA-256 over the graph's code and every parameter and buffer."""
        digest = hashlib.sha256(self.graph.code.encode())
        for name, module in self.layers().items():
            digest.update(f"{name}:{module}".encode())
        for name, value in sorted(self.graph.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def parameters(self) -> int:
        return sum(p.numel() for p in self.graph.parameters())

    def save_weights(self, path: Path) -> None:
        from safetensors.torch import save_file

        save_file({k: v.detach().cpu().contiguous().clone() for k, v in self.graph.state_dict().items()}, path)

    def with_weights(self, path: Path) -> Network:
        """The same structure with the weights that `save_weights` wrote."""
        from safetensors.torch import load_file

        network = self.copy()
        network.graph.load_state_dict(load_file(path))
        return network

    def exported(self) -> torch.export.ExportedProgram:
        """An `ExportedProgram` with a dynamic batch dimension, which exporters take and `ingest` reads."""
        from pipeline.model.ingest import export_program

        return export_program(self.graph.eval(), self.example)


def probe_shapes(network: Network) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Layer name -> (input shape, output shape) at batch 2, of its first call."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    hooks = []
    for name, module in network.layers().items():

        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            shapes.setdefault(name, (tuple(inputs[0].shape), tuple(output.shape)))

        hooks.append(module.register_forward_hook(record))
    try:
        with torch.no_grad():
            network.graph(*network.example)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _stays(node: fx.Node) -> bool:
    """Whether a node nobody reads stays: an input, the output, and what writes over a value that others read.

    fx by itself also keeps attention, which could draw random numbers; here it never drops anything.
    """
    return node.op in ("placeholder", "output") or writes(node)


def positions(network: Network) -> dict[str, int]:
    """Place in the graph of every node by its name, and of every layer by the user's."""
    found: dict[str, int] = {}
    for index, node in enumerate(network.graph.graph.nodes):
        found[node.name] = index
        if node.op == "call_module":
            found[node.target] = index
    return found


def writes(node: fx.Node) -> bool:
    """Whether a node is an operator that works in place."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def free_name(root: nn.Module, wanted: str) -> str:
    """`wanted`, with underscores behind it where the user has a layer of that name."""
    names = {name for name, _ in root.named_modules()}
    while wanted in names:
        wanted += "_"
    return wanted


def add_beside(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a layer under a dotted name whose parent exists."""
    parent, _, leaf = name.rpartition(".")
    root.get_submodule(parent).add_module(leaf, module)


def substitute(node: fx.Node, value: fx.Node) -> None:
    """Readers of `node` read the new `value` instead, which takes its name: later edits know the place by it."""
    node.replace_all_uses_with(value)
    name = node.name
    node.graph.erase_node(node)
    value.name = name
