"""`planish verify`: whether artifacts compute what the network computes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from pipeline.cli.reading import network_and_samples
from pipeline.cli.speaking import speaking
from pipeline.store.writing import writing
from reports.console import Console


@click.command("verify")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The network they were exported from.")
@click.option("--weights", help="State dict to load, .safetensors or .pt.")
@click.option("--data", required=True, help="Real samples to check on: file.py:callable, a folder, or an .npz.")
@click.option("--mean", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option("--std", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option("--samples", "count", type=click.IntRange(min=1), default=64, show_default=True, help="Samples to take.")
@click.option("--target", help="Emulated phone to run them on as well, see `planish targets list`.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="What they compute in; decides how far they may be off.",
)
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Of tensors whose shape fits both.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to keep what is known of an artifact that fails: a page, the first wrong block, a reproducer.",
)
@speaking
def command(
    artifacts: tuple[Path, ...],
    model: str,
    weights: str | None,
    data: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    count: int,
    target: str | None,
    precision: str,
    layout: Any,
    output: Path | None,
    console: Console,
) -> None:
    """Check ARTIFACTS (.onnx, .ort, .tflite, .pte, .mlpackage) against the network they were exported from.

    On samples of yours and on edge cases made from them, at three levels: the exported program, the artifact on this
    machine, and with --target the artifact on an emulated phone. Exit code 4 when any fails.
    """
    import torch

    from pipeline.verify.failed import keep_failed
    from pipeline.verify.from_file import artifact_at
    from pipeline.verify.levels import check_emulator, check_host, check_program
    from pipeline.verify.parity import failure
    from pipeline.verify.reference import Reference
    from pipeline.verify.table import parity_report
    from pipeline.verify.tolerance import TOLERANCES
    from targets.profile import load_profile

    profile = load_profile(target) if target else None
    tolerance = TOLERANCES[precision]
    with console.stage("reading"):
        network, samples = network_and_samples(model, weights, data, mean, std, count)
        seen = samples.validate()
    with console.stage("running the network"):
        span = seen.minimum, seen.maximum
        reference = Reference.of_samples(network.graph, samples, network.classes, span)
    found = [artifact_at(path, reference, layout) for path in artifacts]
    with (
        console.stage("checking the exported program"),
        tempfile.TemporaryDirectory(prefix="planish-verify-") as scratch,
    ):
        path = Path(scratch) / "network.pt2"
        torch.export.save(network.exported(), path)
        program = check_program(path, reference)
    checked = []
    for artifact in found:
        with console.stage(f"checking {artifact.path}") as stage:
            host = check_host(artifact, reference, tolerance)
            phone = check_emulator(artifact, reference, profile, tolerance, progress=stage.update)
            checked.append((artifact, (host, phone)))
    human = parity_report(model, [program], console.width)
    for artifact, levels in checked:
        human += [Text(), *parity_report(str(artifact.path), levels, console.width)]
    errors = [failure(program, Path(model))] if program.failed else []
    for artifact, levels in checked:
        for level in levels:
            if level.failed and output is not None:
                with console.stage(f"looking for what {artifact.path} gets wrong"), writing(output):
                    kept = output / f"{artifact.path.stem}-{level.format}-{level.level}"
                    errors.append(keep_failed(kept, level, network, artifact, reference))
            elif level.failed:
                errors.append(failure(level, artifact.path))
    console.result(
        human,
        verdict="failed" if errors else "passed",
        program=program.to_json(),
        artifacts=[
            {
                "file": str(artifact.path),
                "format": artifact.format,
                "sha256": artifact.sha256,
                "levels": [level.to_json() for level in levels],
            }
            for artifact, levels in checked
        ],
    )
    for error in errors[:-1]:
        console.error(error)
    if errors:
        raise errors[-1]
