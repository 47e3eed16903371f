"""What follows from who runs which operator: bytes that cross, borders, names. No runtime takes part."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.delegation.naming import Site, alike, common, name_modules, plain
from targets.delegation.placement import Placed, Placement, moves_data, of_activations
from targets.delegation.values import Values


def placement(*operators: Placed, inputs: tuple[str, ...] = ("in",), outputs: tuple[str, ...] = ("out",)) -> Placement:
    names = {name for each in operators for name in (*each.inputs, *each.outputs)}
    calls = {each.partition for each in operators} - {None}
    sizes = {name: 10 ** (1 + sorted(names).index(name)) for name in names}  # each sum tells its terms
    return Placement("XNNPACK", "", len(calls), operators, inputs, outputs, sizes)


def chain(*steps: tuple[str, int | None]) -> Placement:
    """Operators one behind the other, each a kind and its partition; tensors in, 1, 2, ..., out."""
    names = ["in", *map(str, range(1, len(steps))), "out"]
    return placement(*(Placed(kind, at, (names[i],), (names[i + 1],)) for i, (kind, at) in enumerate(steps)))


@st.composite
def permutations(draw) -> tuple[tuple[int, ...], list[int]]:
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    return shape, draw(st.permutations(range(len(shape))))


@given(permutations())
def test_a_transpose_that_keeps_the_order_of_elements_moves_nothing(drawn):
    shape, order = drawn
    elements = np.arange(math.prod(shape)).reshape(shape)
    kept = np.array_equal(elements.transpose(order).ravel(), elements.ravel())
    assert moves_data(shape, order) == (not kept)


def test_one_partition_has_the_artifacts_border_and_no_other():
    whole = chain(("CONV_2D", 0), ("CONV_2D", 0))
    assert whole.crossing() == (0, whole.bytes["in"] + whole.bytes["out"])


def test_what_falls_back_in_the_middle_makes_its_operand_and_its_result_cross():
    parts = chain(("CONV_2D", 0), ("ATAN2", None), ("CONV_2D", 1))
    assert parts.crossing() == (parts.bytes["1"] + parts.bytes["2"], parts.bytes["in"] + parts.bytes["out"])
    assert [each.kind for each in parts.fallbacks] == ["ATAN2"]


def test_a_tensor_that_two_others_read_leaves_once_and_enters_each_partition():
    fork = placement(
        Placed("CONV_2D", 0, ("in",), ("x",)),
        Placed("ATAN2", None, ("x",), ("y",)),
        Placed("CONV_2D", 1, ("x", "y"), ("z",)),
        Placed("SIGN", None, ("z",), ("out",)),
    )
    assert fork.crossing()[0] == 2 * fork.bytes["x"] + fork.bytes["y"] + fork.bytes["z"]
    assert fork.crossing()[1] == fork.bytes["in"]  # the runtime's own kernel writes the output


def test_an_output_that_another_partition_reads_counts_on_both_sides():
    twice = placement(
        Placed("CONV_2D", 0, ("in",), ("out",)),
        Placed("ATAN2", None, ("out",), ("other",)),
        outputs=("out", "other"),
    )
    assert twice.crossing() == (twice.bytes["out"], twice.bytes["in"] + twice.bytes["out"])


def test_views_keep_an_operator_at_the_border():
    path = placement(
        Placed("RESHAPE", 0, ("in",), ("a",), views=True),
        Placed("TRANSPOSE", 0, ("a",), ("b",), moves=True),
        Placed("CONV_2D", 0, ("b",), ("c",)),
        Placed("TRANSPOSE", 0, ("c",), ("d",), moves=True),
        Placed("CONV_2D", 0, ("d",), ("e",)),
        Placed("TRANSPOSE", 0, ("e",), ("f",), moves=True),
        Placed("CAST", 0, ("f",), ("out",), views=True),
    )
    assert [path.where(each) for each in path.operators if each.moves] == ["border", "inside", "border"]


def test_what_reads_constants_alone_is_no_operator():
    weights, again = Placed("DEQUANTIZE", None, (), ("w",)), Placed("TRANSPOSE", None, ("w",), ("v",), moves=True)
    (kept,) = of_activations([weights, again, Placed("CONV_2D", 0, ("in", "v"), ("out",))])
    assert (kept.kind, kept.inputs) == ("CONV_2D", ("in",))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ATAN2", "aten.atan.default"),
        ("aten::native_layer_norm", "aten.layer_norm.default"),
        ("XNNStaticTranspose", "aten.permute.default"),
        ("REVERSE_V2", "aten.flip.default"),
        ("CONCATENATION", "aten.cat.default"),
        ("TOPK_V2", "aten.topk.default"),
        ("executorch_prim::et_view", "aten.flatten.using_ints"),
        ("LOGISTIC", "aten.sigmoid.default"),
    ],
)
def test_kinds_of_one_operator_are_alike(one, other):
    assert alike(one, other)


@pytest.mark.parametrize(("one", "other"), [("ATAN2", "aten.tanh.default"), ("SUB", "aten.add.Tensor"), ("T", "to")])
def test_kinds_of_others_are_not(one, other):
    assert not alike(one, other)


def test_a_runtimes_name_is_not_taken_for_a_kernel_of_the_same_function():
    assert plain("aten::mean") != plain("Mean (ND) Reduce2")


def test_the_innermost_module_that_holds_several():
    assert common(["a.b.c", "a.b.d", "a.b"]) == "a.b"
    assert common(["a.b"]) == "a.b"
    assert common(["ab", "a"]) == ""


def convolution(name: str, out: str, channels: int) -> Placed:
    shapes = ((1, 8, 8, 4), (channels, 3, 3, 4))
    return Placed("CONV_2D", 0, (name,), (out,), shapes, ((1, 8, 8, channels),))


SITES = (
    Site("stem", "aten.conv2d.default", 256, 256 * 36),
    Site("act", "aten.relu.default", 256, 0),
    Site("neck.odd", "aten.erf.default", 256, 0),
    Site("neck.last", "aten.conv2d.default", 512, 512 * 36),
)


def test_operators_are_named_by_products_and_what_is_between_by_size():
    """Of an error function, taken apart, all parts are its module's; the folded rectifier takes none. What gives
    something else, here the padding, is of what holds both sides."""
    parts = [Placed(kind, 0, ("x",), (kind,), ((1, 8, 8, 4),), ((1, 8, 8, 4),)) for kind in ("MINIMUM", "MUL", "DIV")]
    pad = Placed("PAD", 0, ("DIV",), ("p",), ((1, 8, 8, 4),), ((1, 10, 10, 4),))
    named = name_modules(placement(convolution("in", "x", 4), *parts, pad, convolution("p", "out", 8)), SITES)
    assert [each.module for each in named.operators] == ["stem", *3 * ["neck.odd"], "neck", "neck.last"]
    assert named.operators[4].between == ("neck.odd", "neck.last")


def test_a_transpose_of_the_networks_own_is_told_from_another():
    moved = Placed("TRANSPOSE", 0, ("x",), ("y",), ((1, 8, 8, 4),), ((1, 8, 4, 8),), moves=True)
    back = Placed("TRANSPOSE", 0, ("y",), ("z",), ((1, 8, 4, 8),), ((1, 8, 8, 4),), moves=True)
    sites = (SITES[0], Site("turn", "aten.permute.default", 256, 0), SITES[3])
    named = name_modules(placement(convolution("in", "x", 4), moved, back, convolution("z", "out", 8)), sites)
    assert sorted(each.asked for each in named.operators) == [False, False, False, True]


def tensor(shape: list[int], order: list[int], buffer: int = 0) -> dict:
    value = {"scalar_type": "FLOAT", "sizes": shape, "dim_order": order, "data_buffer_idx": buffer}
    return {"val_type": "Tensor", "val": value}


def test_kernels_of_a_program_write_what_no_one_wrote_before():
    values = Values.of_program(
        [
            tensor([1, 2, 3, 4], [0, 1, 2, 3]),
            tensor([1, 3, 4, 2], [0, 1, 2, 3]),
            {"val_type": "IntList", "val": {"items": [3, 4, 5, 6]}},
            *({"val_type": "Int", "val": {"int_val": axis}} for axis in (0, -2, 3, 1)),
            tensor([1, 3, 4, 2], [0, 2, 3, 1]),
            tensor([4], [0], buffer=3),
            tensor([4], [0]),
        ],
        inputs=[0],
    )
    permuted = values.operator("aten::permute_copy", [0, 2, 1, 1])
    assert (permuted.inputs, permuted.outputs, permuted.moves) == (("0",), ("1",), True)
    reordered = values.operator("dim_order_ops::_to_dim_order_copy", [1, 7, 7])
    assert (reordered.inputs, reordered.outputs, reordered.moves) == (("1",), ("7",), True)
    assert values.operator("aten::_to_copy", [8, 9, 9]) is None  # of a constant: it makes another
    assert values.bytes()["0"] == 4 * 24
