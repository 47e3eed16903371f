"""Which operators LiteRT's GPU accelerator takes, one by one: a LiteRT release that changes a rule is noticed here."""

from __future__ import annotations

import numpy
import pytest

from targets.delegation.gpu import refusals
from targets.operator import Operator, convolution, linear, matmul, pointwise
from targets.probes import tflite
from targets.probes.flatbuffer import Writer

pytestmark = pytest.mark.gpu

SIDE, CHANNELS, TOKENS = 8, 8, 16
SIZE, ROWS = (SIDE, SIDE), (TOKENS, 1)
IMAGE, SEQUENCE = (1, SIDE, SIDE, CHANNELS), (1, TOKENS, CHANNELS)
POOLED = (1, 1, 1, CHANNELS)

PROBED = {  # as planish's networks have them; the norm is MEAN, SUB, MUL, ADD, RSQRT
    "convolution": convolution(CHANNELS, 16, 3, 1, SIDE),
    "strided convolution": convolution(CHANNELS, 16, 3, 2, SIDE),
    "pointwise convolution": convolution(CHANNELS, 16, 1, 1, SIDE),
    "depthwise convolution": convolution(CHANNELS, CHANNELS, 3, 1, SIDE, groups=CHANNELS),
    "depthwise convolution of 5": convolution(CHANNELS, CHANNELS, 5, 2, SIDE, groups=CHANNELS),
    "grouped convolution": convolution(16, 16, 3, 1, SIDE, groups=2),
    "linear": linear(CHANNELS, 5),
    "linear of tokens": linear(CHANNELS, 24, TOKENS),
    "product of heads": matmul(2, TOKENS, CHANNELS, 24),
    "average pooling": Operator("pool", CHANNELS, CHANNELS, (2, 2), (2, 2), 1, SIZE, (4, 4)),
    "global pooling": Operator("pool", CHANNELS, CHANNELS, SIZE, (1, 1), 1, SIZE, (1, 1)),
    "largest of a window": Operator("max_pool", CHANNELS, CHANNELS, (2, 2), (2, 2), 1, SIZE, (4, 4)),
    "bilinear resize": Operator("resize", CHANNELS, CHANNELS, (1, 1), (1, 1), 1, SIZE, (16, 16)),
    "heads apart": pointwise("transpose", CHANNELS, ROWS, 2),
    **{kind: pointwise(kind, CHANNELS, SIZE) for kind in ("clamp", "hardswish", "gelu", "silu", "sigmoid", "concat")},
    **{kind: pointwise(kind, CHANNELS, SIZE) for kind in ("add", "mul", "scale", "softmax", "norm")},
    "norm of tokens": pointwise("norm", CHANNELS, ROWS),
}


def one(kind: str, reads: list[object], writes: tuple[int, ...], options: str | None = None, **values: object) -> bytes:
    """A .tflite of one operator; a shape it reads is an input, an array a constant, a number an input read before."""
    writer, inputs = Writer(), []
    for each in reads:
        if isinstance(each, int):
            inputs.append(inputs[each])
        else:
            inputs.append(writer.input(each) if isinstance(each, tuple) else writer.constant(each))
    return writer.finish([writer.node(kind, options, inputs, writer.tensor(writes), **values)])


def integers(*values: object) -> numpy.ndarray:
    return numpy.array(values, numpy.int32)


KEPT, DROPPED = {"options": "ReducerOptions", "keepDims": True}, {"options": "ReducerOptions", "keepDims": False}
BY_ONE = integers([0, 0], [1, 1], [1, 1], [0, 0])
TAKEN = {
    **{kind: one(kind, [IMAGE], IMAGE) for kind in ("RELU", "RELU6", "RELU_N1_TO_1", "TANH", "LOGISTIC", "ELU")},
    **{kind: one(kind, [IMAGE], IMAGE) for kind in ("ABS", "NEG", "EXP", "LOG", "SQRT", "RSQRT", "SQUARE", "SIGN")},
    **{kind: one(kind, [IMAGE, IMAGE], IMAGE) for kind in ("MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE")},
    **{f"{kind.upper()} of a constant": one(kind.upper(), [IMAGE, numpy.ones(CHANNELS, numpy.float32)], IMAGE,
       f"{kind.capitalize()}Options") for kind in ("add", "sub", "mul", "div")},
    "MUL of one value a pixel": one("MUL", [IMAGE, (1, SIDE, SIDE, 1)], IMAGE, "MulOptions"),
    "LEAKY_RELU": one("LEAKY_RELU", [IMAGE], IMAGE, "LeakyReluOptions", alpha=0.1),
    "PRELU": one("PRELU", [IMAGE, numpy.ones((1, 1, CHANNELS), numpy.float32)], IMAGE),
    "MEAN over channels": one("MEAN", [IMAGE, integers(3)], (1, SIDE, SIDE, 1), **KEPT),
    "MEAN over pixels, flat": one("MEAN", [IMAGE, integers(1, 2)], (1, CHANNELS), **DROPPED),
    "MEAN over tokens": one("MEAN", [SEQUENCE, integers(1)], (1, CHANNELS), **DROPPED),
    "SUM over pixels": one("SUM", [IMAGE, integers(1, 2)], POOLED, **KEPT),
    "REDUCE_MAX over channels": one("REDUCE_MAX", [IMAGE, integers(3)], (1, SIDE, SIDE, 1), **KEPT),
    "SOFTMAX of tokens": one("SOFTMAX", [SEQUENCE], SEQUENCE, "SoftmaxOptions", beta=1.0),
    "RESHAPE": one("RESHAPE", [IMAGE, integers(1, SIDE * SIDE * CHANNELS)], (1, SIDE * SIDE * CHANNELS),
                   "ReshapeOptions", newShape=[1, SIDE * SIDE * CHANNELS]),
    "RESHAPE to five axes": one("RESHAPE", [SEQUENCE, integers(1, TOKENS, 2, 2, 2)], (1, TOKENS, 2, 2, 2),
                                "ReshapeOptions", newShape=[1, TOKENS, 2, 2, 2]),
    "TRANSPOSE to channels first": one("TRANSPOSE", [IMAGE, integers(0, 3, 1, 2)], IMAGE, "TransposeOptions"),
    "TRANSPOSE of tokens": one("TRANSPOSE", [SEQUENCE, integers(0, 2, 1)], (1, CHANNELS, TOKENS), "TransposeOptions"),
    "TRANSPOSE of five axes": one("TRANSPOSE", [(1, TOKENS, 3, 2, 4), integers(2, 0, 3, 1, 4)], (3, 1, 2, TOKENS, 4),
                                  "TransposeOptions"),
    "PAD": one("PAD", [IMAGE, BY_ONE], (1, SIDE + 2, SIDE + 2, CHANNELS), "PadOptions"),
    "MIRROR_PAD": one("MIRROR_PAD", [IMAGE, BY_ONE], (1, SIDE + 2, SIDE + 2, CHANNELS), "MirrorPadOptions", mode=0),
    "SLICE": one("SLICE", [IMAGE, integers(0, 0, 0, 0), integers(1, SIDE, SIDE, 4)], (1, SIDE, SIDE, 4),
                 "SliceOptions"),
    "STRIDED_SLICE": one("STRIDED_SLICE", [IMAGE, integers(0, 0, 0, 0), integers(1, SIDE, SIDE, 4),
                         integers(1, 1, 1, 1)], (1, SIDE, SIDE, 4), "StridedSliceOptions"),
    "GATHER": one("GATHER", [IMAGE, integers(1, 2)], (1, SIDE, SIDE, 2), "GatherOptions", axis=3),
    "CUMSUM": one("CUMSUM", [IMAGE, numpy.array(3, numpy.int32)], IMAGE, "CumsumOptions"),
    "DEPTH_TO_SPACE": one("DEPTH_TO_SPACE", [IMAGE], (1, 16, 16, 2), "DepthToSpaceOptions", blockSize=2),
    "SPACE_TO_DEPTH": one("SPACE_TO_DEPTH", [IMAGE], (1, 4, 4, 32), "SpaceToDepthOptions", blockSize=2),
    "RESIZE_NEAREST_NEIGHBOR": one("RESIZE_NEAREST_NEIGHBOR", [IMAGE, integers(16, 16)], (1, 16, 16, CHANNELS),
                                   "ResizeNearestNeighborOptions"),
    "ATAN2 of two": one("ATAN2", [IMAGE, IMAGE], IMAGE),
}  # fmt: skip
REFUSED = {  # with a part of the reason
    "ATAN2 of a tensor and itself": (one("ATAN2", [IMAGE, 0], IMAGE), "identical inputs"),
    "RELU_0_TO_1": (one("RELU_0_TO_1", [IMAGE], IMAGE), "Not supported op RELU_0_TO_1"),
    "LOG_SOFTMAX": (one("LOG_SOFTMAX", [IMAGE], IMAGE, "LogSoftmaxOptions"), "not supported"),
    "L2_NORMALIZATION": (one("L2_NORMALIZATION", [IMAGE], IMAGE, "L2NormOptions"), "not supported"),
    "ZEROS_LIKE": (one("ZEROS_LIKE", [IMAGE], IMAGE, "ZerosLikeOptions"), "not supported"),
    "PACK to five axes": (
        one("PACK", [IMAGE, IMAGE], (2, *IMAGE), "PackOptions", axis=0, valuesCount=2),
        "Unknown layout",
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What the accelerator says of every operator, by its name here; one child process is asked."""
    rng = numpy.random.default_rng(0)
    contents = {
        **{name: tflite.build([[operator]], rng).content for name, operator in PROBED.items()},
        **TAKEN,
        **{name: content for name, (content, _) in REFUSED.items()},
    }
    files = []
    for number, content in enumerate(contents.values()):
        files.append(tmp_path_factory.getbasetemp() / f"operator-{number}.tflite")
        files[-1].write_bytes(content)
    return dict(zip(contents, refusals(files), strict=True))


@pytest.mark.parametrize("name", [*PROBED, *TAKEN])
def test_it_is_taken(driver, found, name):
    assert found[name] is None


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_the_reason(driver, found, name):
    assert found[name] is not None and REFUSED[name][1] in found[name]
