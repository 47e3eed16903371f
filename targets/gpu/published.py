"""The published latencies of mobile GPUs, as kernels: what was measured of each, and of each network end to end.

The tables are those of qed-usc/mobile-ml-benchmark (EdgeSys 2024), TFLite 2.10's GPU delegate in half precision on six
GPUs, in two files of a folder the user names: `gpu_ops_published.csv.gz`, a row an operator in microseconds, and
`gpu_end_to_end_published.csv`, a row a network in milliseconds. They are not part of planish; `targets.gpu.fit` learns
its constants from them and `targets.gpu.validation` is tested on them.

The operators' table has no rows of element-wise kernels that could not be linked to another. A kernel's name holds its
place in the graph, so what is missing between the rows is known, and its size follows from its neighbours.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from targets.errors import UsageError
from targets.gpu import kernel as choices
from targets.gpu.dispatch import Unit
from targets.gpu.kernel import Kernel, convolution, moved

OPERATORS, END_TO_END = "gpu_ops_published.csv.gz", "gpu_end_to_end_published.csv"
FRAMEWORK = "TFLite 2.10 GPU delegate fp16"
RUNTIME = "TFLite 2.10 GPU delegate"
SOURCE = "qed-usc/mobile-ml-benchmark@40ba833 (EdgeSys 2024), TFLite 2.10 GPU delegate, fp16"
CURVES = ("hard_swish", "sigmoid", "tanh", "elu", "gelu")
FAMILIES = ("mobilenetv2", "mobilenetv3", "mobilenet", "regnet", "resnet")  # with several members of other names
MEASURED = {  # as the tables call the GPU -> what the delegate knows of it
    "Adreno 640": Unit("adreno-6xx", 2),
    "Adreno 616": Unit("adreno-6xx", 1),
    "Mali-G76 MP12": Unit("mali-bifrost", 12),
    "PowerVR GE8320": Unit("powervr", 1),
    "PowerVR GT7600 Plus": Unit("apple-a9", 6),
    "Apple G11P": Unit("apple-a11", 4),
}


@dataclass(frozen=True)
class Timed:
    """A kernel; `microseconds` is None for one that the table leaves out."""

    kernel: Kernel
    microseconds: float | None


@dataclass(frozen=True)
class Network:
    """One network on one GPU."""

    name: str
    kernels: tuple[Timed, ...]
    milliseconds: float  # of a whole inference

    @property
    def family(self) -> str:
        """What its name says it descends from: networks of one family share most of their shapes."""
        return next((family for family in FAMILIES if family in self.name), re.match("[a-z]+", self.name)[0])


def load(folder: Path, gpu: str) -> list[Network]:
    """The networks of the tables in `folder` on `gpu`, a key of `MEASURED`.

    Raises:
        UsageError: `TABLES_MISSING`.
    """
    for name in (OPERATORS, END_TO_END):
        if not (folder / name).is_file():
            raise UsageError(
                "the published latencies of mobile GPUs are not there",
                where=str(folder / name),
                why="the folder has no such file",
                fix=f"name the folder that holds {OPERATORS} and {END_TO_END}",
                code="TABLES_MISSING",
            )
    rows = [row for row in _rows(folder) if row["gpu"] == gpu]
    with (folder / END_TO_END).open(encoding="utf-8", newline="") as stream:
        whole = {
            row["model"]: float(row["latency_ms"])
            for row in csv.DictReader(stream)
            if row["runtime"] == RUNTIME and row["core"] == gpu
        }
    by_model: dict[str, list[dict[str, str]]] = {}
    for row in sorted(rows, key=lambda row: int(row["op_index"])):
        by_model.setdefault(row["model"], []).append(row)
    unit = MEASURED[gpu]
    return [
        Network(name, tuple(kernels(unit, by_model[name])), whole[name]) for name in sorted(by_model) if name in whole
    ]


def _rows(folder: Path) -> list[dict[str, str]]:
    with gzip.open(folder / OPERATORS, "rt", encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["framework"] == FRAMEWORK]


@dataclass(frozen=True)
class Rule:
    """One of the delegate's choices, and on how many rows it was not as `targets.gpu.kernel` has it."""

    what: str
    rows: int
    exceptions: int


def rules(folder: Path) -> tuple[Rule, ...]:
    """The rules of `targets.gpu.kernel` on every row they speak of; what was chosen is in the kernel's name."""
    by_network: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in _rows(folder):
        by_network.setdefault((row["gpu"], row["model"]), []).append(row)
    winograd, dense, separable = [], [], []
    for (gpu, _), rows in by_network.items():
        unit = MEASURED[gpu]
        rows.sort(key=lambda row: int(row["op_index"]))
        for row in rows:
            name = row["gpu_kernel"]
            if row["op"] == "CONV_2D" and not name.startswith("depthwise"):
                chosen = _kernel(unit, row | {"gpu_kernel": ""}, None).choice
                winograd.append((chosen == "winograd") == chose_winograd(row))
                dense.append((chosen == "dense") == name.startswith("fully_connected"))
        for row, behind in zip(rows, rows[1:]):
            if (row["op"], behind["op"]) == ("DEPTHWISE_CONV_2D", "CONV_2D"):
                pair = (_kernel(unit, one | {"gpu_kernel": ""}, None) for one in (row, behind))
                together = choices.separable(unit.architecture, *pair) is not None
                separable.append(together == (row["gpu_kernel"] == behind["gpu_kernel"]))
    kinds = {"Winograd": winograd, "one pixel as a matrix product": dense, "depthwise and pointwise in one": separable}
    return tuple(Rule(what, len(held), held.count(False)) for what, held in kinds.items())


def kernels(unit: Unit, rows: Sequence[dict[str, str]]) -> Iterator[Timed]:
    """The kernels of one network's rows, and those between them that have no row."""
    seen: set[str] = set()
    for row in rows:
        name = row["gpu_kernel"]
        if name in seen:  # a kernel of two operators is listed twice, each time with all it takes
            continue
        seen.add(name)
        behind = next((other for other in rows if other is not row and other["gpu_kernel"] == name), None)
        yield Timed(_kernel(unit, row, behind), float(row["latency_us"]))
    for alone in _unlisted(rows):
        yield Timed(alone, None)


def _kernel(unit: Unit, row: dict[str, str], behind: dict[str, str] | None) -> Kernel:
    operator, name = row["op"], row["gpu_kernel"]
    before, after = _size(row["in_hw"]), _size(row["out_hw"])
    channels, out = _number(row["in_c"]), _number(row["filters"])
    window, stride, groups = _number(row["kernel"]) or 1, _number(row["stride"]) or 1, _number(row["group"]) or 1
    square = (window, window)
    linked = re.findall(r"linked_:_([a-z_]+)_\d+", name)
    links = {
        "adds": linked.count("add"),
        "muls": linked.count("mul"),
        "curves": sum(link in CURVES for link in linked),
    }
    if behind is not None:
        return Kernel("separable", before, after, channels, _number(behind["filters"]), square, stride, **links)
    if name.startswith("fully_connected"):
        return Kernel("dense", (1, 1), (1, 1), channels, out, **links)
    if operator.startswith("CONV_2D"):
        return replace(convolution(unit.architecture, before, after, channels, out, square, stride, groups), **links)
    if operator == "DEPTHWISE_CONV_2D":
        return Kernel("depthwise", before, after, channels, channels, square, stride, channels, **links)
    if name.startswith("mean"):
        return Kernel("mean", before, (1, 1), channels, channels, before, **links)
    if operator == "CONCATENATION":
        return Kernel("concat", before, after, channels, out, inputs=window, **links)
    return Kernel("pool", before, after, channels, channels, square, stride, **links)


def chose_winograd(row: dict[str, str]) -> bool:
    return row["gpu_kernel"].startswith("convolution_winograd")


def _unlisted(rows: Sequence[dict[str, str]]) -> Iterator[Kernel]:
    """Element-wise kernels between the rows. What follows a Winograd convolution is linked to its last kernel."""
    at = {place: row for row in reversed(rows) for place in _places(row["gpu_kernel"])}
    sizes = {_number(row["out_hw"]) for row in rows if row["op"] not in ("MEAN", "FULLY_CONNECTED")} | {224}
    before: dict[str, str] | None = None
    squeezed: dict[str, str] | None = None  # the last mean, whose input a squeeze-and-excitation scales
    place = 0
    while place <= max(at):
        if place in at:
            before = at[place]
            squeezed = before if before["op"] == "MEAN" else squeezed
            place += 1
            continue
        first = place
        while place not in at:
            place += 1
        if place - first > _is_padding(before, at[place], sizes) and before is not None and not chose_winograd(before):
            source = squeezed if before["gpu_kernel"].startswith("fully_connected") else None
            yield _alone(before, source)


def _is_padding(before: dict[str, str] | None, after: dict[str, str], sizes: set[int]) -> bool:
    """Whether one of the missing operators is a padding, which the delegate merges with what reads it."""
    return before is None or (
        after["op"] not in ("MEAN", "FULLY_CONNECTED", "CONCATENATION") and _number(after["in_hw"]) not in sizes
    )


def _alone(before: dict[str, str], source: dict[str, str] | None) -> Kernel:
    if source is not None:
        size, channels = _size(source["in_hw"]), _number(source["in_c"])
    else:
        size = _size(before["out_hw"])
        own = before["op"] in ("DEPTHWISE_CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D")
        channels = _number(before["in_c"] if own else before["filters"])
    return moved(size, channels)


def _places(name: str) -> Iterator[int]:
    """Places in the graph of all operators of a kernel."""
    return (int(place) for place in re.findall(r"_(\d+)(?=_|$)", name))


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _size(text: str) -> tuple[int, int]:
    return (_number(text) or 1,) * 2
