"""`planish export`: one network to artifacts, checked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from pipeline.cli.speaking import speaking
from pipeline.export.formats import FORMATS
from pipeline.store import writing
from reports.console import Console
from targets.errors import PlanishError

if TYPE_CHECKING:
    from pipeline.export.artifact import Artifact
    from pipeline.verify.parity import Parity
    from pipeline.verify.reference import Reference


@click.command("export")
@click.argument("model")
@click.option("--weights", help="State dict to load, .safetensors or .pt.")
@click.option("--data", required=True, help="Samples that the artifact is checked on.")
@click.option("--mean", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option("--std", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(list(FORMATS)),
    default=["tflite"],
    show_default=True,
    help="Repeatable; several are exported side by side.",
)
@click.option("--channels-first", is_flag=True, help="TFLite input and output stay NCHW (default: NHWC).")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("artifacts"), show_default=True)
@speaking
def command(
    model: str,
    weights: str | None,
    data: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    formats: tuple[str, ...],
    channels_first: bool,
    output: Path,
    console: Console,
) -> int:
    """Export MODEL as it is and check every artifact against it on real samples.

    A format that fails leaves the others alone; the exit code is then that of the first failure.
    """
    import torch

    from calibration.dataset import open_samples
    from pipeline.export.contract import Contract
    from pipeline.export.together import export_all
    from pipeline.model.ingest import ingest, require_one_tensor
    from pipeline.verify.reference import Reference

    normalisation: dict[str, Any] = {"mean": mean or None, "std": std or None}
    with console.stage("reading"):
        network = ingest(
            model,
            weights=Path(weights) if weights else None,
            example=lambda: next(open_samples(data, **normalisation).take(2).batches(2))[0],
        )
        require_one_tensor(network, model)
        samples = open_samples(data, input_shape=network.input_shape, limit=64, **normalisation)
        seen, pixels = samples.validate(), samples.pixel_normalization
        x, labels = next(samples.batches(64))
        reference = Reference.of(
            network.graph, x.numpy(), None if labels is None else labels.numpy(), (seen.minimum, seen.maximum)
        )
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="planish-export-") as scratch,
        console.stage(f"exporting {', '.join(formats)}") as stage,
    ):
        torch.export.save(network.exported(), Path(scratch) / "network.pt2")
        found = export_all(
            Path(scratch) / "network.pt2",
            formats=formats,
            directory=output,
            channels_last=not channels_first,
            contract=Contract(
                seen.minimum,
                seen.maximum,
                None if pixels is None else pixels.mean,
                None if pixels is None else pixels.std,
                samples.class_names,
            ),
            progress=lambda format, phase: stage.update(f"{format}: {phase}"),
        )
    with console.stage("checking"):
        rows, lines, errors = _checked(found, reference, output)
    if not lines:
        raise errors[0]
    for error in errors:
        console.error(error)
    console.result(lines, artifacts=rows)
    return errors[0].exit_code if errors else 0


def _checked(
    found: dict[str, Artifact | PlanishError], reference: Reference, output: Path
) -> tuple[list[dict[str, Any]], list[Text], list[PlanishError]]:
    """For each format a row and, unless it failed, a line; a file that is there is a file that did not fail."""
    from pipeline.verify.levels import check_host
    from pipeline.verify.parity import failure

    rows, lines, errors = [], [], []
    unchecked = [artifact for artifact in found.values() if not isinstance(artifact, PlanishError)]
    try:
        for format, artifact in found.items():
            if isinstance(artifact, PlanishError):
                errors.append(artifact)
                rows.append({"format": format, "error": artifact.to_json()})
                continue
            parity = check_host(artifact, reference)
            if parity.failed:
                errors.append(failure(parity, artifact.path))
                artifact.discard()
            else:
                lines.append(_line(artifact, parity))
            unchecked.remove(artifact)
            rows.append({"format": format, "artifact": artifact.to_json(output), "parity": parity.to_json()})
    finally:
        for artifact in unchecked:
            artifact.discard()
    return rows, lines, errors


def _line(artifact: Artifact, parity: Parity) -> Text:
    worst = max((output.relative_rmse for output in parity.outputs), default=0.0)
    checked = (
        f"relative RMSE {worst:.1e} on {parity.samples} samples"
        if parity.passed
        else f"not run here: {parity.reasons[0]}"
    )
    return Text(f"{artifact.path}  {artifact.bytes:,} bytes, {checked}, exported in {artifact.seconds:.0f} s")
