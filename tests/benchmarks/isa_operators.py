"""Published convolutions as operators of their own, compiled, and the numbers that tell of code and of shapes."""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import random
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from targets.errors import PlanishError
from targets.gpu import published
from targets.gpu.counts import KernelStatistics, compiled, count
from targets.gpu.dispatch import Unit, Work, convolution_work, depthwise_work
from targets.gpu.kernel import Kernel, slices
from targets.gpu.published import MEASURED, Network
from targets.probes.flatbuffer import ACTIVATIONS, Writer

LINKS = ((), ("relu",), ("hard_swish",), ("add",), ("add", "relu"))  # that are built
NAMES = {"CONV_2D": "convolution_2d", "CONV_2D_GROUP": "convolution_2d_grouped"}  # of kernels, else depthwise
TOGETHER = 30  # operators of a file, each with inputs and outputs of its own
PARTIAL = 1.7  # threads a dispatch has at most of those that its outputs need, for groups that are not whole
SEED = 7
Row = dict[str, str]


@dataclass(frozen=True)
class Published:
    """A convolution of a network, and what its kernel took."""

    network: str
    kernel: Kernel
    links: tuple[str, ...]
    microseconds: float


@dataclass(frozen=True)
class Compiled:
    """Its kernel as Mesa compiled it."""

    operator: Published
    statistics: KernelStatistics
    groups: int  # of its dispatch

    @property
    def invocations(self) -> int:
        return math.prod(self.statistics.workgroup) * self.groups


# Which operators


def chosen(folder: Path, gpu: str, networks: Sequence[Network], most: int) -> list[Published]:
    """Different kernels, as evenly as there are over families and classes; one dispatch each, so no Winograd."""
    draw = random.Random(SEED)
    family = {network.name: network.family for network in networks}
    rows = [row for row in _rows(folder, gpu) if row["model"] in family]
    draw.shuffle(rows)
    seen: set[tuple[Kernel, tuple[str, ...]]] = set()
    ranked: dict[tuple[str, str, bool], list[Published]] = {}
    for row in rows:
        links = tuple(re.findall(r"linked_:_([a-z_]+?)_\d+", row["gpu_kernel"]))
        name = re.sub(r"(_linked.*)?_\d+$", "", row["gpu_kernel"].partition("_linked")[0])
        if links not in LINKS or name != NAMES.get(row["op"], "depthwise_convolution"):
            continue
        (timed,) = published.kernels(MEASURED[gpu], [row])
        kernel = timed.kernel
        if (kernel, links) not in seen:
            seen.add((kernel, links))
            group = (family[row["model"]], kernel.choice, kernel.groups > 1)
            ranked.setdefault(group, []).append(Published(row["model"], kernel, links, timed.microseconds))
    turns = itertools.zip_longest(*ranked.values())
    return [one for one in itertools.chain.from_iterable(turns) if one is not None][:most]


def _rows(folder: Path, gpu: str) -> list[Row]:
    with gzip.open(folder / published.OPERATORS, "rt", encoding="utf-8", newline="") as stream:
        return [
            row
            for row in csv.DictReader(stream)
            if row["framework"] == published.FRAMEWORK and row["gpu"] == gpu and "CONV" in row["op"]
        ]


# What the compiler says of them


def built(operators: Sequence[Published]) -> bytes:
    """A .tflite of operators that have nothing to do with one another; weights are random."""
    rng = np.random.default_rng(SEED)
    writer = Writer()
    return writer.finish([_convolution(writer, one.kernel, one.links, rng) for one in operators])


def _convolution(writer: Writer, kernel: Kernel, links: tuple[str, ...], rng: np.random.Generator) -> int:
    def weights(*shape: int) -> int:
        return writer.constant(rng.uniform(0.1, 1.0, shape).astype(np.float32))

    out = (1, *kernel.out_size, kernel.out_channels)
    depthwise = kernel.choice == "depthwise"
    shape = (1, *kernel.taps, kernel.out_channels)
    if not depthwise:
        shape = (kernel.out_channels, *kernel.taps, kernel.in_channels // kernel.groups)
    value = writer.node(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
        [writer.input((1, *_unpadded(kernel), kernel.in_channels)), weights(*shape), weights(kernel.out_channels)],
        writer.tensor(out),
        padding=schema.Padding.SAME,
        strideH=kernel.stride,
        strideW=kernel.stride,
        fusedActivationFunction=ACTIVATIONS.RELU if links == ("relu",) else ACTIVATIONS.NONE,
        **({"depthMultiplier": 1} if depthwise else {}),
    )
    if links[:1] == ("add",):
        activation = ACTIVATIONS.RELU if "relu" in links else ACTIVATIONS.NONE
        inputs = [value, writer.input(out)]
        value = writer.node("ADD", "AddOptions", inputs, writer.tensor(out), fusedActivationFunction=activation)
    if links == ("hard_swish",):
        value = writer.node("HARD_SWISH", "HardSwishOptions", [value], writer.tensor(out))
    return value


def _unpadded(kernel: Kernel) -> tuple[int, int]:
    """The input's size before a padding that the file has as an operator; the delegate merges it."""
    if all(-(-size // kernel.stride) == out for size, out in zip(kernel.in_size, kernel.out_size, strict=True)):
        return kernel.in_size
    height, width = (size - 2 * (taps // 2) for size, taps in zip(kernel.in_size, kernel.taps, strict=True))
    return height, width


def compile_all(operators: Sequence[Published], gpu: str) -> tuple[list[Compiled], list[Published], str]:
    """Each operator's kernel, the operators that are not one kernel each, and the driver."""
    found: list[Compiled] = []
    refused: list[Published] = []
    driver = ""
    with tempfile.TemporaryDirectory(prefix="planish-isa-") as scratch:
        path = Path(scratch) / "operators.tflite"
        for start in range(0, len(operators), TOGETHER):
            waiting = [operators[start : start + TOGETHER]]
            while waiting:
                some = waiting.pop()
                path.write_bytes(built(some))
                try:
                    kernels = _of_operators(some, compiled(path, gpu))
                except PlanishError as error:  # one of them is more than the driver bears
                    print(f"{len(some)} operators: {error}", flush=True)
                    kernels = None
                if kernels is not None:
                    found += kernels
                    driver = count(path, gpu).driver
                elif len(some) > 1:
                    waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
                else:
                    refused += some
            print(f"{gpu}: {len(found)} of {len(operators)} compiled", flush=True)
    return found, refused, driver


def _of_operators(operators: Sequence[Published], kernels: Iterable[KernelStatistics]) -> list[Compiled] | None:
    """Dispatches are first the copies of the inputs, then the operators, then the copies of the outputs."""
    inputs = sum(1 + one.kernel.adds for one in operators)
    by_order = {
        order: (kernel, math.prod(groups))
        for kernel in kernels
        for order, groups in zip(kernel.order, kernel.groups, strict=True)
    }
    if len(by_order) != inputs + 2 * len(operators):
        return None
    return [Compiled(one, *by_order[inputs + index]) for index, one in enumerate(operators)]


def work(unit: Unit, kernel: Kernel) -> Work:
    return depthwise_work(unit, kernel) if kernel.choice == "depthwise" else convolution_work(unit, kernel)


def as_measured(unit: Unit, one: Compiled) -> bool:
    """Whether today's delegate gives a thread as much to do as the measured one did: partial groups aside, as many."""
    kernel = one.operator.kernel
    across, down, deep = work(unit, kernel).block
    threads = -(-kernel.out_size[1] // across) * -(-kernel.out_size[0] // down) * -(-kernel.out_slices // deep)
    if kernel.choice == "constant":
        threads = kernel.pixels
    return threads <= one.invocations < PARTIAL * threads


# Features: as many of either kind


def of_code(one: Compiled) -> list[float]:
    """`Steps` is how often a loop over input slices and taps turns; a compiler's statistics count it once."""
    held, kernel = one.statistics.statistics, one.operator.kernel
    adreno = "Instruction Count" in held
    instructions = held["Instruction Count" if adreno else "Instructions"]
    steps = kernel.window * (1 if kernel.choice == "depthwise" else kernel.in_slices)
    common = [
        math.log(instructions * one.invocations),
        math.log(instructions * one.invocations * (steps if held["Loops"] else 1)),
        math.log(instructions),
        held["Loops"],
        math.log(held["Registers used"]),
        math.log(one.statistics.spirv_words),
    ]
    if adreno:
        return [
            *common,
            held["Max Waves Per Core"],
            math.log1p(held["Estimated cycles stalled on SY"]),
            held["NOPs Count"] / instructions,
            (held["cat2 instructions"] + held["cat3 instructions"]) / instructions,
            (held["cat5 instructions"] + held["cat6 instructions"]) / instructions,
        ]
    return [
        *common,
        held["Threads"],
        math.log(held["Cycles"] * one.invocations),
        math.log1p(held["Arithmetic"]),
        math.log1p(held["Texture"]),
        math.log1p(held["Load/store"]),
    ]


def of_shape(unit: Unit, one: Compiled) -> list[float]:
    kernel = one.operator.kernel
    dispatched = work(unit, kernel)
    return [
        math.log(kernel.pixels),
        math.log(slices(kernel.in_channels)),
        math.log(kernel.out_slices),
        math.log(kernel.window),
        float(kernel.stride),
        float(kernel.choice == "depthwise"),
        float(kernel.adds),
        math.log(kernel.flops),
        math.log(kernel.bytes),
        math.log(dispatched.total),
        math.log(dispatched.outputs),
    ]
