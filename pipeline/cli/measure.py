"""`planish measure`: what an artifact takes on a target."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.table import Table

from pipeline.cli.speaking import speaking
from reports.console import Console
from targets.errors import UsageError


@click.command("measure")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", required=True, help="Target profile, see `planish targets list`.")
@click.option("--data", required=True, help="Real samples to run it on: file.py:callable, a folder, or an .npz.")
@click.option("--mean", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option("--std", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@speaking
def command(
    artifacts: tuple[Path, ...],
    target: str,
    data: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    console: Console,
) -> None:
    """Time ARTIFACTS (.tflite, .onnx) on a target; samples are given as the network takes them, channels first."""
    import numpy as np

    from calibration.dataset import open_samples
    from targets.measure import measure_many
    from targets.profile import load_profile
    from targets.runners.artifact import ArtifactError, open_artifact

    profile = load_profile(target)
    with (
        tempfile.TemporaryDirectory(prefix="planish-measure-") as scratch,
        console.stage(f"measuring on {target}") as stage,
    ):
        jobs = []
        for i, artifact in enumerate(artifacts):
            format = artifact.suffix.lstrip(".")
            if format not in ("tflite", "onnx"):
                raise UsageError(
                    "this kind of artifact cannot be measured",
                    where=str(artifact),
                    code="FORMAT_UNKNOWN",
                    why=f"the file ends in '{artifact.suffix}'",
                    fix="give a .tflite or an .onnx file",
                )
            try:
                shape = open_artifact(artifact, format).inputs[0][1]
            except ArtifactError as error:
                raise UsageError(
                    "the artifact cannot be opened",
                    where=str(artifact),
                    why=str(error),
                    code="ARTIFACT_UNUSABLE",
                    fix="give a file that `planish export` or `planish fit` wrote",
                ) from error
            # Images of a folder are cut to the artifact's size; a last dimension of 1 or 3 is the channels.
            chw = (shape[3], *shape[1:3]) if len(shape) == 4 and shape[3] in (1, 3) else tuple(shape[1:])
            wanted = chw if Path(data).is_dir() else None
            samples = open_samples(data, input_shape=wanted, mean=mean or None, std=std or None)
            sample = next(samples.take(1).batches(1))[0].numpy()
            last = sample.ndim == 4 and shape != sample.shape and shape == tuple(sample.shape[i] for i in (0, 2, 3, 1))
            inputs = Path(scratch) / f"{i}.npz"
            np.savez(inputs, x=np.ascontiguousarray(sample.transpose(0, 2, 3, 1)) if last else sample)
            jobs.append((artifact, format, inputs))
        found = measure_many(jobs, profile=profile, progress=stage.update)
    table = Table("artifact", "runtime", "median ms", "interval", "instructions", box=None, pad_edge=False)
    for artifact, m in zip(artifacts, found, strict=True):
        table.add_row(
            str(artifact),
            m.runtime,
            f"{m.median_ms:.4g}",
            f"{m.low_ms:.4g} … {m.high_ms:.4g}",
            f"{m.instructions:,}" if m.instructions else "",
        )
    console.result([table], measurements=[m.to_json() for m in found])
