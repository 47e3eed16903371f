"""`planish export`: one network to artifacts, checked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from pipeline.cli.speaking import speaking
from pipeline.store import writing
from reports.console import Console


@click.command("export")
@click.argument("model")
@click.option("--weights", help="State dict to load, .safetensors or .pt.")
@click.option("--data", required=True, help="Samples that the artifact is checked on.")
@click.option("--mean", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option("--std", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(["tflite", "onnx"]), default=["tflite"], show_default=True
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
) -> None:
    """Export MODEL as it is and check every artifact against it on real samples."""
    import torch

    from calibration.dataset import open_samples
    from pipeline.compress.analysis import run
    from pipeline.export.child import export
    from pipeline.model.ingest import ingest, require_one_tensor
    from pipeline.verify.parity import check, require

    normalisation: dict[str, Any] = {"mean": mean or None, "std": std or None}
    with console.stage("reading"):
        network = ingest(
            model,
            weights=Path(weights) if weights else None,
            example=lambda: next(open_samples(data, **normalisation).take(2).batches(2))[0],
        )
        require_one_tensor(network, model)
        samples = open_samples(data, input_shape=network.input_shape, limit=64, **normalisation)
        info = samples.validate()
        x = next(samples.batches(64))[0]
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    rows, lines = [], []
    with tempfile.TemporaryDirectory(prefix="planish-export-") as scratch:
        torch.export.save(network.exported(), Path(scratch) / "network.pt2")
        for format in formats:
            with console.stage(f"exporting {format}") as stage:
                artifact = export(
                    Path(scratch) / "network.pt2",
                    format=format,
                    directory=output,
                    channels_last=not channels_first,
                    input_range=(info.minimum, info.maximum),
                    log=output / f"{format}.log",
                    progress=stage.update,
                )
                try:
                    parity = check(artifact, [run(network, [x]).numpy()], x.numpy())
                    require(parity, artifact)
                except BaseException:
                    artifact.path.unlink()  # a file that is there is a file that passed
                    raise
            worst = max(parity.outputs, key=lambda o: o.relative_rmse)
            rows.append({"artifact": artifact.to_json(output), "parity": parity.to_json()})
            lines.append(
                Text(
                    f"{artifact.path}  {artifact.bytes:,} bytes, relative RMSE {worst.relative_rmse:.1e} on "
                    f"{parity.samples} samples, exported in {artifact.seconds:.0f} s"
                )
            )
    console.result(lines, artifacts=rows)
