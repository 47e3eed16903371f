"""Networks as data: a file of networks/ is a network, a line of it an operator.

    # title: what it is
    # source: the paper or code that the sizes are from
    # macs: 568740352        published multiply-accumulates of one image; this line and the next are optional
    # params: 4.2e6          published weights and biases
    op,channels,kernel,stride,groups,activation,padding,size,inputs,name

`inputs` names earlier lines (blank for the line above); only lines that are read from afar have a `name`. `size` is the
height and width of the output, or its tokens; it follows from the rest and is checked against it. Padding is the
smallest that gives ceil(input / stride) pixels, unless `valid`.
"""

from __future__ import annotations

import csv
import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from targets.errors import UsageError, nearest

NETWORKS = Path(__file__).with_name("networks")
WEIGHTED = ("conv", "linear")
# What moves values without computing new ones: input and output share one scale when quantised.
MOVES = ("max_pool", "avg_pool", "upsample", "concat", "shuffle", "tokens", "flatten", "image", "transpose")
POINTWISE = ("add", "mul", "hardswish", "gelu")
OPERATORS = ("input", *WEIGHTED, *MOVES, *POINTWISE, "global_pool")
ACTIVATIONS = ("", "relu", "relu6", "clip01")  # clip01: min(max(x, 0), 1)
COLUMNS = ["op", "channels", "kernel", "stride", "groups", "activation", "padding", "size", "inputs", "name"]


@dataclass(frozen=True)
class Layer:
    """One operator. Shapes are (height, width, channels) of an image or (tokens, channels); the batch is 1."""

    op: str
    inputs: tuple[int, ...]  # indices of earlier layers
    shape: tuple[int, ...]  # of the output
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    activation: str = ""
    valid: bool = False


@dataclass(frozen=True)
class Network:
    """Layers in the order they run; the first is the input, the last gives the output."""

    name: str
    title: str
    source: str
    layers: tuple[Layer, ...]
    published_macs: float | None
    published_params: float | None
    sha256: str  # of the file

    def input_shape(self, index: int) -> tuple[int, ...]:
        """Shape of the first input of a layer."""
        return self.layers[self.layers[index].inputs[0]].shape

    def is_depthwise(self, index: int) -> bool:
        layer = self.layers[index]
        return layer.op == "conv" and layer.groups > 1 and layer.groups == self.input_shape(index)[-1]

    def layer_macs(self, index: int) -> int:
        """Multiply-accumulates of a convolution or linear layer; 0 for the rest."""
        layer = self.layers[index]
        if layer.op not in WEIGHTED:
            return 0
        return math.prod(layer.shape) * layer.kernel**2 * (self.input_shape(index)[-1] // layer.groups)

    @cached_property
    def macs(self) -> int:
        return sum(self.layer_macs(index) for index in range(len(self.layers)))

    @cached_property
    def params(self) -> int:
        """Weights and biases."""
        return sum(
            layer.shape[-1] * (1 + layer.kernel**2 * (self.input_shape(index)[-1] // layer.groups))
            for index, layer in enumerate(self.layers)
            if layer.op in WEIGHTED
        )

    def pads(self, index: int) -> tuple[int, int]:
        """Pixels of padding (before, after) in each direction; the odd one comes after."""
        layer = self.layers[index]
        if layer.valid:
            return (0, 0)
        size = self.input_shape(index)[0]
        total = max(0, (layer.shape[0] - 1) * layer.stride + layer.kernel - size)
        return (total // 2, total - total // 2)


def network_names() -> list[str]:
    return sorted(path.stem for path in NETWORKS.glob("*.csv"))


def load_network(name: str) -> Network:
    """The network called `name`.

    Raises:
        UsageError: `NETWORK_UNKNOWN`, or `NETWORK_INVALID` for a file that contradicts itself.
    """
    if name not in network_names():
        raise UsageError(
            f"there is no validation network called '{name}'",
            where="--network",
            why=f"known networks: {', '.join(network_names())}",
            fix=f"{nearest(name, network_names())}give one of these",
            code="NETWORK_UNKNOWN",
        )
    return read_network(NETWORKS / f"{name}.csv")


def read_network(path: Path) -> Network:
    """Parse and check one file; the network's name is the file's."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    facts = dict(line.lstrip("# ").split(": ", 1) for line in lines if line.startswith("#"))
    rows = [(number, line) for number, line in enumerate(lines, 1) if not line.startswith("#")]
    reader = csv.DictReader(line for _, line in rows)
    if reader.fieldnames != COLUMNS or not facts.keys() >= {"title", "source"}:
        raise _invalid(path, 1, f"needs a title, a source and the columns {','.join(COLUMNS)}")
    layers: list[Layer] = []
    names: dict[str, int] = {}
    for row, (number, _) in zip(reader, rows[1:]):
        try:
            layers.append(_layer(row, layers, names))
        except (ValueError, TypeError, KeyError) as error:
            raise _invalid(path, number, str(error)) from error
        if row["name"]:
            names[row["name"]] = len(layers) - 1
    published = {key: float(facts[key]) if key in facts else None for key in ("macs", "params")}
    return Network(
        name=path.stem,
        title=facts["title"],
        source=facts["source"],
        layers=tuple(layers),
        published_macs=published["macs"],
        published_params=published["params"],
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _layer(row: dict[str, str], layers: list[Layer], names: dict[str, int]) -> Layer:
    """The next layer; ValueError or KeyError says what is wrong with its line."""
    op, size, channels = row["op"], int(row["size"]), int(row["channels"])
    if op not in OPERATORS or row["activation"] not in ACTIVATIONS or row["padding"] not in ("", "valid"):
        raise ValueError(f"'{op}', '{row['activation']}' or '{row['padding']}' is not known")
    if row["activation"] and op not in ("conv", "linear", "add", "mul"):
        raise ValueError(f"{op} takes no activation")
    if (op == "input") != (not layers):
        raise ValueError("the first line is the input, and no other")
    if op == "input":
        return Layer("input", (), (size, size, channels))
    inputs = tuple(names[name] for name in row["inputs"].split()) or (len(layers) - 1,)
    kernel, stride, groups = (int(row[key] or 1) for key in ("kernel", "stride", "groups"))
    first, *others = (layers[index].shape for index in inputs)
    shape = _shape(op, first, others, channels, kernel, stride, row["padding"] == "valid")
    if (shape[0], shape[-1]) != (size, channels):
        raise ValueError(f"the output is {'x'.join(map(str, shape))}, not of size {size} and {channels} channels")
    if first[-1] % groups or channels % groups:
        raise ValueError(f"{groups} groups do not divide {first[-1]} and {channels} channels")
    return Layer(op, inputs, shape, kernel, stride, groups, row["activation"], row["padding"] == "valid")


def _shape(
    op: str,
    first: tuple[int, ...],
    others: list[tuple[int, ...]],
    channels: int,
    kernel: int,
    stride: int,
    valid: bool,
) -> tuple[int, ...]:
    """Shape of an operator's output."""
    if op in ("conv", "max_pool", "avg_pool"):
        height, width, inputs = first
        out = ((side - kernel) // stride + 1 if valid else -(-side // stride) for side in (height, width))
        return (*out, channels if op == "conv" else inputs)
    if op == "linear":
        if len(first) == 3 and first[:2] != (1, 1):
            raise ValueError("a linear layer takes tokens or one pixel")
        return (*first[:-1], channels)
    if op in ("add", "mul"):
        if len(others) != 1 or others[0][-1] != first[-1] or others[0] not in (first, (1, 1, first[-1])):
            raise ValueError(f"{op} takes two inputs of one shape, the second may be one pixel")
        return first
    if op == "concat":
        if any(other[:-1] != first[:-1] for other in others):
            raise ValueError("concat takes inputs of one size")
        return (*first[:-1], first[-1] + sum(other[-1] for other in others))
    return {
        "global_pool": (1, 1, first[-1]),
        "upsample": (first[0] * stride, first[1] * stride, first[-1]) if len(first) == 3 else (),
        "tokens": (math.prod(first[:-1]), first[-1]),
        "flatten": (1, math.prod(first)),
        "image": (math.isqrt(first[0]), math.isqrt(first[0]), first[-1]),
        "transpose": (first[-1], first[0]),
    }.get(op, first)


def _invalid(path: Path, line: int, why: str) -> UsageError:
    return UsageError(
        f"the validation network '{path.stem}' cannot be used",
        where=f"{path}:{line}",
        why=why,
        fix="correct the file; targets/validation/networks/mobilenet-v1.csv is an example",
        code="NETWORK_INVALID",
    )
