"""Operators side by side, halving, and what is followed back from an artifact's outputs. No converter runs here."""

import math
import time

import torch
from refused_networks import program

from pipeline.export.lowering import attempts, first_refused, kinds, refused, side_by_side
from pipeline.export.traced import Branch, Traced
from targets.delegation.placement import Placed


def operators(network) -> list[str]:
    return [str(node.target) for node in network.graph.nodes if node.op == "call_function"]


def later() -> float:
    return time.monotonic() + 300


class Refusing:
    """A converter that takes no program with all of `these`; it counts what it is given."""

    def __init__(self, *these: str) -> None:
        self.these, self.calls = {f"aten.{name}.default" for name in these}, 0

    def __call__(self, network) -> list[str]:
        self.calls += 1
        if self.these <= set(operators(network)):
            raise RuntimeError("refused")
        return operators(network)


def test_kinds_tell_apart_what_a_converter_decides_by():
    network = program(lambda x: torch.roll(torch.roll(x, 1, 2), 2, 2).relu())
    found = {(kind.operator, len(kind.nodes)) for kind in kinds(network)}
    assert ("aten.roll.default", 1) in found and ("aten.relu.default", 2) in found
    assert sum(kind.operator == "aten.roll.default" for kind in kinds(network)) == 2
    assert sum(kind.operator == "aten.conv2d.default" for kind in kinds(network)) == 2  # one is depthwise


def test_side_by_side_computes_what_the_network_computes():
    """Also where an operator writes over its input, has several results, or takes one value twice."""
    network = program(lambda x: torch.cat([x.relu_(), x, x.topk(4, -1)[0].repeat(1, 1, 1, 2)], 1) * x.mean())
    of = kinds(network)
    apart = side_by_side(of, network)
    assert sum(kind.results for kind in of) == len(apart.graph_signature.user_outputs)
    torch.manual_seed(0)
    names = apart.graph_signature.user_inputs
    shapes = [node.meta["val"] for node in apart.graph.nodes if node.name in names]
    inputs = [torch.randn(value.shape) for value in shapes]
    found = iter(apart.module()(*inputs))
    given = iter(inputs)
    constants = {**network.state_dict, **network.constants}
    stored = {**network.graph_signature.inputs_to_parameters, **network.graph_signature.inputs_to_buffers}
    for kind in of:
        node, seen = kind.nodes[0], {}

        def value(argument, seen=seen):
            if argument.name in stored:
                return constants[stored[argument.name]]
            if argument.name not in seen:
                seen[argument.name] = next(given).clone()
            return seen[argument.name]

        expected = node.target(*torch.fx.map_arg(node.args, value), **torch.fx.map_arg(node.kwargs, value))
        for one in [expected[0]] if isinstance(expected, (tuple, list)) else [expected]:
            torch.testing.assert_close(next(found), one)


def test_refused_kinds_are_found_by_halving():
    network = program(lambda x: torch.roll(x, 1, 2).cumsum(1).exp().sin().cos().tanh().abs())
    of, converter = kinds(network), Refusing("cumsum")
    ((kind, error),) = refused(of, network, converter, deadline=later())
    assert kind.operator == "aten.cumsum.default" and str(error) == "refused"
    assert converter.calls <= 2 * math.ceil(math.log2(len(of))) + 1
    taken = [kind for group, outcome in attempts(of, network, Refusing("cumsum"), deadline=later())
             if not isinstance(outcome, Exception) for kind in group]  # fmt: skip
    assert {kind.operator for kind in taken} == {kind.operator for kind in of} - {"aten.cumsum.default"}
    assert not list(refused(of, network, converter, deadline=0.0))


def test_what_depends_on_the_data_does_not_stand_alone():
    network = program(lambda x: torch.nonzero(x > 0).float().sin()[:, None, None])
    ((kind, _),) = refused(kinds(network), network, Refusing("nonzero"), deadline=later())
    assert kind.operator == "aten.nonzero.default"
    assert [one.operator for one, _ in refused(kinds(network), network, Refusing("sin"), deadline=later())] == []


def test_operator_refused_only_behind_another():
    network = program(lambda x: torch.roll(x.exp(), 1, 2).sin().cumsum(1).cos())
    converter = Refusing("roll", "cumsum")
    assert not list(
        refused([k for k in kinds(network) if "roll" not in k.operator], network, converter, deadline=later())
    )
    assert str(first_refused(network, converter, deadline=later()).target) == "aten.cumsum.default"
    assert first_refused(network, converter, deadline=0.0) is None


def test_branches():
    """Layout around an operator does not count, unless there is nothing else; what the delegate left is told."""
    artifact = Traced(
        (
            Placed("TRANSPOSE", 0, ("in0",), ("a",), moves=True),
            Placed("PAD", 0, ("a",), ("b",)),
            Placed("CONV_2D", 0, ("b",), ("c",)),
            Placed("RESHAPE", 0, ("in1",), ("d",), views=True),
            Placed("CUMSUM", None, ("in2",), ("e",)),
        ),
        ("c", "d", "e", "in3"),
        {"CUMSUM": 1},
    )
    assert artifact.branches([1, 1, 1, 1]) == [
        Branch(("PAD", "CONV_2D"), ()),
        Branch(("RESHAPE",), ()),
        Branch(("CUMSUM",), ("CUMSUM",)),
        Branch((), ()),
    ]
    assert artifact.branches([2, 2])[0] == Branch(("PAD", "CONV_2D"), ())
