"""Lifts the operators of an exported program back to `nn` modules under the user's own names.

`torch.export` flattens a model into operators with the weights as inputs. Training, hooks and edits want layers. Each
convolution, linear, norm and activation becomes a module again: layers with weights are named after the module that
owned the weight, activations after the innermost module that called them (`layers.0.relu`, then `layers.0.relu_1`
for a second call), so that a shared activation module is split into one site a call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from pipeline.model.network import writes

aten = torch.ops.aten


def lift(program: torch.export.ExportedProgram) -> tuple[fx.GraphModule, dict[str, str]]:
    """Turn an exported program (training IR) into a GraphModule of layers.

    Returns:
        The module in eval mode, parameters trainable, and site -> "file:line" of the user's code.
    """
    module = program.module(check_guards=False)
    graph = module.graph
    taken: set[str] = set()
    owners: dict[tuple[object, ...], str] = {}
    sources: dict[str, str] = {}
    # A fresh root: exported containers carry guards and parameters of modules the forward never uses.
    root = nn.Module()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.dropout.default:  # the network is exported for inference: dropout is the identity
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if node.target in _PLAIN and not _written_value_is_read(node):
            node.target = _PLAIN[node.target]
        lifter = _LIFTERS.get(node.target)
        built = lifter(module, node) if lifter and not _changes_what_others_read(node) else None
        if built is None:
            continue
        layer, weights = built
        # One layer serves several calls only if they agree in stride and the like, not just in weights.
        call_of = (node.target, weights, repr([a for a in node.args if not isinstance(a, fx.Node)]))
        if weights and call_of in owners:
            name = owners[call_of]
        else:
            wanted = _owner(weights[0]) if weights else _module_path(node)
            name = _free_name(wanted or str(node.target).split(".")[1].rstrip("_"), taken)
            _set_submodule(root, name, layer)
            taken.add(name)
            owners[call_of] = name
        sources.setdefault(name, _source(node))
        with graph.inserting_before(node):
            call = graph.create_node("call_module", name, (node.args[0],))
        call.meta = {key: value for key, value in node.meta.items() if key == "val"}
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op in ("get_attr", "call_module") and not node.users:
            graph.erase_node(node)
        elif node.op == "get_attr":
            _copy_attribute(module, root, node.target)
    _plain_signature(graph)
    _reshape_views(graph)
    lifted = fx.GraphModule(root, graph)
    lifted.graph.eliminate_dead_code()
    lifted.recompile()
    for parameter in lifted.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return lifted.eval(), sources


def _plain_signature(graph: fx.Graph) -> None:
    """Drop the tree packing that torch.export puts around inputs and outputs, where there is nothing to pack."""
    packing = graph._codegen.pytree_info
    output = next(iter(reversed(graph.nodes)))
    flat_inputs = packing.in_spec.num_leaves == packing.in_spec.child(0).num_children
    if flat_inputs and packing.out_spec.is_leaf():
        graph.set_codegen(fx.graph.CodeGen())
        output.args = (output.args[0][0],)


Built = tuple[nn.Module, tuple[str, ...]] | None


def _weights(module: nn.Module, node: fx.Node, *arguments: int) -> tuple[tuple[str, ...], list[torch.Tensor | None]]:
    """Names and values of the weights at the given argument positions; names are empty when one is computed."""
    names: list[str] = []
    values: list[torch.Tensor | None] = []
    for i in arguments:
        source = node.args[i] if i < len(node.args) else None
        if source is None:
            values.append(None)
            continue
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            return (), []
        names.append(str(source.target))
        values.append(_attribute(module, str(source.target)))
    return tuple(names), values


def _conv2d(module: nn.Module, node: fx.Node) -> Built:
    names, values = _weights(module, node, 1, 2)
    if not names or values[0] is None:
        return None
    weight, bias = values[0], values[1] if len(values) > 1 else None
    stride, padding, dilation, groups = (_at(node, i, d) for i, d in ((3, [1, 1]), (4, [0, 0]), (5, [1, 1]), (6, 1)))
    if isinstance(padding, str):
        if padding == "same" and any((k - 1) * d % 2 for k, d in zip(weight.shape[2:], dilation, strict=True)):
            return None  # 'same' with an even extent pads unevenly, which nn.Conv2d's numbers cannot say
        padding = (
            [0, 0]
            if padding == "valid"
            else [(k - 1) * d // 2 for k, d in zip(weight.shape[2:], dilation, strict=True)]
        )
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        groups,
        bias is not None,
    )
    return _fill(layer, weight=weight, bias=bias), names


def _linear(module: nn.Module, node: fx.Node) -> Built:
    names, values = _weights(module, node, 1, 2)
    if not names or values[0] is None:
        return None
    bias = values[1] if len(values) > 1 else None
    layer = nn.Linear(values[0].shape[1], values[0].shape[0], bias is not None)
    return _fill(layer, weight=values[0], bias=bias), names


def _batch_norm(module: nn.Module, node: fx.Node) -> Built:
    names, values = _weights(module, node, 1, 2, 3, 4)
    rank = len(node.args[0].meta["val"].shape)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(rank)
    if not names or kind is None or any(value is None for value in values[2:]) or _at(node, 5, False):
        return None
    layer = kind(values[2].shape[0], eps=_at(node, 7, 1e-5), momentum=_at(node, 6, 0.1), affine=values[0] is not None)
    return _fill(layer, weight=values[0], bias=values[1], running_mean=values[2], running_var=values[3]), names


def _layer_norm(module: nn.Module, node: fx.Node) -> Built:
    names, values = _weights(module, node, 2, 3)
    if not names:
        return None
    layer = nn.LayerNorm(list(node.args[1]), eps=_at(node, 4, 1e-5), bias=len(values) > 1 and values[1] is not None)
    return _fill(layer, weight=values[0], bias=values[1] if len(values) > 1 else None), names


def _prelu(module: nn.Module, node: fx.Node) -> Built:
    names, values = _weights(module, node, 1)
    return (_fill(nn.PReLU(values[0].numel()), weight=values[0]), names) if names else None


def _activation(build: Callable[[fx.Node], nn.Module]) -> Callable[[nn.Module, fx.Node], Built]:
    return lambda _module, node: (build(node), ())


def _hardtanh(node: fx.Node) -> nn.Module:
    low, high = _at(node, 1, -1.0), _at(node, 2, 1.0)
    return nn.ReLU6() if (low, high) == (0.0, 6.0) else nn.Hardtanh(low, high)


def _gelu(node: fx.Node) -> nn.Module:
    return nn.GELU(approximate=node.kwargs.get("approximate", "none"))


_LIFTERS: dict[Any, Callable[[nn.Module, fx.Node], Built]] = {
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.prelu.default: _prelu,
    **{op: _activation(lambda node: nn.ReLU()) for op in (aten.relu.default, aten.relu_.default)},
    **{op: _activation(lambda node: nn.ReLU6()) for op in (aten.relu6.default, aten.relu6_.default)},
    **{op: _activation(_hardtanh) for op in (aten.hardtanh.default, aten.hardtanh_.default)},
    **{op: _activation(lambda node: nn.Hardswish()) for op in (aten.hardswish.default, aten.hardswish_.default)},
    **{op: _activation(lambda node: nn.SiLU()) for op in (aten.silu.default, aten.silu_.default)},
    **{
        op: _activation(lambda node: nn.LeakyReLU(_at(node, 1, 0.01)))
        for op in (aten.leaky_relu.default, aten.leaky_relu_.default)
    },
    aten.gelu.default: _activation(_gelu),
}


def _at(node: fx.Node, index: int, default: Any) -> Any:
    """Positional argument `index`, or the operator's default where the graph left it out."""
    return node.args[index] if index < len(node.args) else default


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (values[0], values[-1])


def _fill(layer: nn.Module, **values: torch.Tensor | None) -> nn.Module:
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(layer, name).copy_(value.reshape(getattr(layer, name).shape))
    return layer.eval()


def _attribute(module: nn.Module, path: str) -> torch.Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _set_submodule(root: nn.Module, path: str, layer: nn.Module) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(leaf, layer)


def _copy_attribute(module: nn.Module, root: nn.Module, path: str) -> None:
    """Carry a free parameter, buffer or constant (a position embedding, a class token) over to the new root."""
    value = _attribute(module, path)
    *parents, leaf = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))
    else:
        root.register_buffer(leaf, value.detach().clone())


# `x += y` as the sum it is: an operator that writes over its input stays in the graph when nothing reads it any more.
_PLAIN = {aten.add_.Tensor: aten.add.Tensor, aten.mul_.Tensor: aten.mul.Tensor, aten.sub_.Tensor: aten.sub.Tensor}


def _written_value_is_read(node: fx.Node) -> bool:
    """Whether what an in-place operator writes over is a view, has views, or is read again behind it."""
    source = node.args[0]
    others = [user for user in source.users if user is not node]
    behind = set(_behind(node))
    return not node.users or _is_view(source) or any(user in behind or _is_view(user) for user in others)


def _reshape_views(graph: fx.Graph) -> None:
    """A view becomes a reshape, which takes values of any memory layout, unless something is written in place."""
    if any(map(writes, graph.nodes)):
        return
    for node in graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default


def _behind(node: fx.Node) -> Iterator[fx.Node]:
    while node.op != "root":
        yield node
        node = node.next


def _is_view(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and any(
        value.alias_info is not None and not value.alias_info.is_write for value in node.target._schema.returns
    )


def _changes_what_others_read(node: fx.Node) -> bool:
    """An in-place operator whose input, or what that is a view of, is read again: it must stay as it is."""
    if not str(node.target).split(".")[1].endswith("_"):
        return False
    source = node.args[0]
    return _is_view(source) or not node.users or len(source.users) > 1


def _owner(weight: str) -> str:
    """Name of the layer that a weight belongs to: its module, with the rest of an unusual name (`attn.in_proj`)."""
    module, _, leaf = weight.rpartition(".")
    return module if leaf == "weight" and module else f"{module}.{leaf.removesuffix('_weight')}".lstrip(".")


def _free_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or with the first free number behind it; a name that other layers stand under is not free."""

    def free(name: str) -> bool:
        return name not in taken and not any(other.startswith(f"{name}.") for other in taken)

    return next(name for name in (wanted, *(f"{wanted}_{n}" for n in range(1, len(taken) + 2))) if free(name))


def _module_path(node: fx.Node) -> str:
    """Where the user called an activation: the activation module itself, or the caller plus the function's name."""
    operator = str(node.target).split(".")[1].rstrip("_")
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return operator
    path, kind = stack[-1]
    path = re.sub(r"@\d+", "", path)
    is_activation_module = str(kind).rpartition(".")[0].startswith("torch.nn.modules.activation")
    if is_activation_module and path:
        return path
    return f"{path}.{operator}" if path else operator


_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def _source(node: fx.Node) -> str:
    """The innermost frame of the user's code, "file:line"; empty when unknown."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    mine = [(file, line) for file, line in frames if "site-packages" not in file]
    return "{}:{}".format(*mine[-1]) if mine else ""
