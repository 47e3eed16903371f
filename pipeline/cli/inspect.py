"""`planish inspect`: what a network is made of and what it would cost."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from pipeline.cli.covered import coverage_tables
from pipeline.cli.on_gpu import FORMAT, GpuPlaces, placed_on_gpu
from pipeline.cli.speaking import speaking
from pipeline.export.failure import short
from pipeline.export.formats import FORMATS
from reports.console import Console

if TYPE_CHECKING:
    from pipeline.export.survey import Coverage
    from pipeline.model.network import Network
    from targets.profile import Profile


@click.command("inspect")
@click.argument("model")
@click.option("--weights", help="State dict to load, .safetensors or .pt.")
@click.option("--data", help="Samples for the entropy of the activations, and for the input's shape.")
@click.option("--mean", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option("--std", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel.")
@click.option("--target", help="Target whose cost table prices the layers.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(list(FORMATS)),
    help="Also show what its converter makes of each operator. Repeatable.",
)
@click.option("--lowering", is_flag=True, help="The same for the usual formats of the emulated phones.")
@click.option("--logs", type=click.Path(path_type=Path), help="Directory for all that the converters print.")
@speaking
def command(
    model: str,
    weights: str | None,
    data: str | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    target: str | None,
    formats: tuple[str, ...],
    lowering: bool,
    logs: Path | None,
    console: Console,
) -> None:
    """Layers, activations, entropy and predicted cost of MODEL; writes nothing.

    With --format or --lowering MODEL is converted as it is, in a child interpreter, and each operator is shown with
    what each format makes of it: native (one operator of the format), decomposed (into several), fallback (the
    delegate leaves it to slower kernels) or unsupported. For a mobile GPU, whose costs are modelled and never measured,
    --format tflite also tells which operators would not run on it.
    """
    from calibration.dataset import open_samples
    from calibration.statistics import collect
    from pipeline.compress.linearize import channel_dims, sites
    from pipeline.model.ingest import ingest
    from pipeline.model.operators import operators
    from targets.cost import CostTable
    from targets.profile import load_profile

    normalisation: dict[str, Any] = {"mean": mean or None, "std": std or None}
    profile = load_profile(target) if target else None
    costs = CostTable.load(profile) if profile else None
    how = "modelled" if profile and profile.gpu else "predicted"
    with console.stage("reading") as stage:
        stage.update(model)
        network = ingest(
            model,
            weights=Path(weights) if weights else None,
            example=(lambda: next(open_samples(data, **normalisation).take(2).batches(2))[0]) if data else None,
        )
        entropy: dict[str, float] = {}
        if data:
            samples = open_samples(data, input_shape=network.input_shape, **normalisation)
            found = collect(
                network.graph, sites(network), samples.take(512).batches(), channel_dims=channel_dims(network)
            )
            entropy = {site: found[site].entropy() for site in found}
    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "description": row.description,
            "parameters": row.parameters,
            "macs": row.macs,
            "predicted_ms": costs.milliseconds(row.operator) if costs else None,
        }
        for row in operators(network)
    ]
    layers = Table("layer", "what", "parameters", "MMACs", *([f"{how} ms"] if costs else []), box=None, pad_edge=False)
    for row in rows:
        layers.add_row(
            row["name"],
            row["description"],
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:.2f}",
            *([f"{row['predicted_ms']:.4f}"] if costs else []),
        )
    activations = Table("activation", "kind", "entropy, bits", "where", box=None, pad_edge=False)
    for site in sorted(sites(network), key=lambda name: entropy.get(name, 0.0)):
        activations.add_row(
            site,
            type(network.layer(site)).__name__,
            f"{entropy[site]:.3f}" if site in entropy else "",
            short(network.sources.get(site, "")),
        )
    coverages, on_gpu = _covered(network, formats, lowering, logs, profile, console)
    total = sum(row["predicted_ms"] for row in rows) if costs else None
    line = f"{network.parameters():,} parameters, {sum(row['macs'] for row in rows) / 1e6:.1f} MMACs"
    if costs:
        once = f" and {costs.invoke_ms:.3g} ms once an inference" if profile.gpu else ""
        line += f", {how} {total:.3g} ms{once} on {target} (cost table, {costs.source})"
    console.result(
        [
            *(layers, Text(), activations, Text(), Text(line)),
            *coverage_tables(coverages, console.width),
            *(on_gpu.lines() if on_gpu else []),
        ],
        layers=rows,
        entropy=entropy,
        parameters=network.parameters(),
        predicted_ms=total,
        **({"modelled": True, "once_ms": costs.invoke_ms} if profile and profile.gpu else {}),
        **({"coverage": [each.to_json() for each in coverages]} if coverages else {}),
        **({"gpu": on_gpu.to_json()} if on_gpu else {}),
    )


def _covered(
    network: Network,
    formats: tuple[str, ...],
    lowering: bool,
    logs: Path | None,
    profile: Profile | None,
    console: Console,
) -> tuple[list[Coverage], GpuPlaces | None]:
    if not formats and not lowering:
        return [], None
    import torch

    from pipeline.export.coverage import cover, usual_formats

    with tempfile.TemporaryDirectory(prefix="planish-inspect-") as scratch, console.stage("lowering") as stage:
        program = Path(scratch) / "network.pt2"
        torch.export.save(network.exported(), program)
        coverages = cover(
            program,
            formats=formats or usual_formats(),
            logs=logs or Path(scratch),
            sources=network.sources,
            progress=lambda format, phase: stage.update(f"{format}: {phase}"),
        )
        converted = any(each.format == FORMAT and each.converted for each in coverages)
        asked = profile is not None and profile.gpu is not None and converted
        return coverages, placed_on_gpu(program, profile.name, stage.update) if asked else None
