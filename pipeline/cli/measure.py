"""`planish measure`: what an artifact takes on a target, and which of several is the fastest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from rich.table import Table
from rich.text import Text

from pipeline.cli.speaking import speaking
from reports.console import Console
from reports.operators import operator_table, why
from reports.records import OperatorRecord
from targets.errors import UsageError
from targets.profile import Profile

if TYPE_CHECKING:
    from calibration.dataset import Samples


@click.command("measure")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", required=True, help="Target profile, see `planish targets list`.")
@click.option("--data", required=True, help="Real samples to run it on: file.py:callable, a folder, or an .npz.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of the runtime.")
@click.option("--runtime", help="tflite-runtime: what apps ship that predate LiteRT; .tflite, emulated targets.")
@click.option("--mean", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option("--std", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option("--operators", is_flag=True, help="Also what each operator takes, and what bounds it; emulated targets.")
@click.option("--top", type=click.IntRange(min=1), default=15, show_default=True, help="Operators to show.")
@click.option("--model", help="The artifacts' model: it names the operators of a .tflite, as an .onnx does.")
@speaking
def command(
    artifacts: tuple[Path, ...],
    target: str,
    data: str,
    threads: int,
    runtime: str | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    operators: bool,
    top: int,
    model: str | None,
    console: Console,
) -> None:
    """Time ARTIFACTS (.tflite, .onnx, .pte) on a target; samples are given as the network takes them, channels first.

    Given one network in several formats it recommends the fastest, where the measurements can tell. With --operators it
    says where the time goes. With --runtime tflite-runtime a .tflite runs in TensorFlow Lite 2.14, as in an app that
    has not moved to its successor.
    """
    from targets.measure import measure_many
    from targets.profile import load_profile
    from targets.recommendation import recommend

    if runtime and operators:
        raise UsageError(
            "operators are not told apart in another runtime",
            where=f"--runtime {runtime} --operators",
            why="only the formats' own runtimes are run with their profilers",
            fix="leave out one of the two",
            code="OPTIONS_CLASH",
        )
    profile = load_profile(target)
    with (
        tempfile.TemporaryDirectory(prefix="planish-measure-") as scratch,
        console.stage(f"measuring on {target}") as stage,
    ):
        jobs, shapes = [], []
        for i, artifact in enumerate(artifacts):
            inputs = Path(scratch) / f"{i}.npz"
            shapes.append(_write_sample(artifact, data, mean, std, inputs))
            jobs.append((artifact, artifact.suffix[1:], inputs))
        found = measure_many(jobs, profile=profile, progress=stage.update, threads=threads, runtime=runtime)
        broken_down = []
        if operators:
            layers = _layers(jobs, model, lambda: _samples(data, shapes[0], mean, std))
            broken_down = _break_down(jobs, profile, threads, layers, stage.update)
    measured = sorted(zip(map(str, artifacts), found, strict=True), key=lambda pair: pair[1].median_ms)
    table = Table("artifact", "runtime", "median ms", "interval", "instructions", box=None, pad_edge=False)
    for name, m in measured:
        table.add_row(
            name,
            m.runtime,
            f"{m.median_ms:.4g}",
            f"{m.low_ms:.4g} … {m.high_ms:.4g}",
            f"{m.instructions:,}" if m.instructions else "",
        )
    alike = len({tuple(sorted(shape)) for shape in shapes}) == 1  # inputs of other sizes: other networks
    advice = recommend(measured) if alike else None
    explained = [
        part
        for name, rows in zip(map(str, artifacts), broken_down)
        for part in (Text(), Text(name, "bold"), operator_table(rows, top, console.width), Text(why(rows)))
    ]
    console.result(
        [table, *([Text(advice.text)] if advice else []), *explained],
        measurements=[m.to_json() for m in found],
        recommendation=advice.to_json() if advice else None,
        operators=[
            {"artifact": str(artifact), "why": why(rows), "operators": [row.model_dump() for row in rows]}
            for artifact, rows in zip(artifacts, broken_down)
        ],
    )


def _break_down(
    jobs: list[tuple[Path, str, Path]],
    profile: Profile,
    threads: int,
    layers: list[tuple[str, int]],
    progress: Callable[[str], None],
) -> list[tuple[OperatorRecord, ...]]:
    """The operators of each artifact, named by `layers` where the artifact does not name them."""
    from targets.explain import explain

    return [
        tuple(
            OperatorRecord(**row.to_json())
            for row in explain(
                path, format=format, profile=profile, inputs=inputs, threads=threads, layers=layers, progress=progress
            )
        )
        for path, format, inputs in jobs
    ]


def _layers(
    jobs: list[tuple[Path, str, Path]], model: str | None, samples: Callable[[], Samples]
) -> list[tuple[str, int]]:
    """(module, multiply-accumulates) in the order of execution, of an .onnx among the artifacts, else of `model`."""
    from targets.graph import layers, read_graph

    for artifact, format, _ in jobs:
        if format == "onnx" and (found := layers(read_graph(artifact, format))):
            return found
    if model is None:
        return []
    from pipeline.model.ingest import ingest
    from pipeline.model.operators import operators

    network = ingest(model, example=lambda: next(samples().take(2).batches(2))[0])
    return [(row.name, row.macs) for row in operators(network) if row.macs]


def _write_sample(
    artifact: Path, data: str, mean: tuple[float, ...], std: tuple[float, ...], into: Path
) -> tuple[int, ...]:
    """Write one sample of `data`, laid out as the artifact's input, as the .npz `into`; returns that input's shape."""
    import numpy as np

    from targets.measure import Format
    from targets.runners.artifact import ArtifactError, open_artifact

    format = artifact.suffix.lstrip(".")
    if format not in get_args(Format):
        raise UsageError(
            "this kind of artifact cannot be measured",
            where=str(artifact),
            code="FORMAT_UNKNOWN",
            why=f"the file ends in '{artifact.suffix}'",
            fix="give a .tflite, an .onnx or a .pte file",
        )
    try:
        inputs = open_artifact(artifact, format).inputs
    except ArtifactError as error:
        raise UsageError(
            "the artifact cannot be opened",
            where=str(artifact),
            why=str(error),
            code="ARTIFACT_UNUSABLE",
            fix="give a file that `planish export` or `planish fit` wrote",
        ) from error
    shape = inputs[0][1]
    sample = next(_samples(data, shape, mean, std).take(1).arrays(1))[0]
    last = sample.ndim == 4 and shape != sample.shape and shape == tuple(sample.shape[i] for i in (0, 2, 3, 1))
    np.savez(into, x=np.ascontiguousarray(sample.transpose(0, 2, 3, 1)) if last else sample)
    return shape


def _samples(data: str, shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...]) -> Samples:
    """`data` for an artifact with an input of that shape: images of a folder are cut to its size."""
    from calibration.dataset import open_samples

    # A last dimension of 1 or 3 is the channels.
    chw = (shape[3], *shape[1:3]) if len(shape) == 4 and shape[3] in (1, 3) else tuple(shape[1:])
    wanted = chw if Path(data).is_dir() else None
    return open_samples(data, input_shape=wanted, mean=mean or None, std=std or None)
