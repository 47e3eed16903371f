"""`planish export`: one network to artifacts, checked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from pipeline.cli.reading import network_and_samples
from pipeline.cli.speaking import speaking
from pipeline.export.formats import FORMATS
from pipeline.store.writing import writing
from reports.console import Console
from targets.errors import PlanishError

if TYPE_CHECKING:
    from pipeline.export.artifact import Artifact
    from pipeline.model.network import Network
    from pipeline.verify.delegation import Delegation
    from pipeline.verify.parity import Parity
    from pipeline.verify.reference import Reference
    from targets.delegation.naming import Site

SAMPLES = 64


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
@click.option("--labels", help="Text file with the names of the classes, one a line (default: class folders).")
@click.option("--strict", is_flag=True, help="Refuse an artifact that its delegate does not take whole.")
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
    labels: str | None,
    strict: bool,
    output: Path,
    console: Console,
) -> int:
    """Export MODEL as it is and check every artifact against it on real samples.

    A format that fails leaves the others alone; the exit code is then that of the first failure.
    """
    import torch

    from pipeline.export.contract import Contract
    from pipeline.export.together import export_all
    from pipeline.verify.reference import Reference

    with console.stage("reading"):
        network, samples = network_and_samples(model, weights, data, mean, std, SAMPLES)
        contract = Contract.of(samples, labels, network.classes)
        span = contract.minimum, contract.maximum
        reference = Reference.of_samples(network.graph, samples, network.classes, span)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="planish-export-") as scratch:
        program = Path(scratch) / "network.pt2"
        torch.export.save(network.exported(), program)
        with console.stage(f"exporting {', '.join(formats)}") as stage:
            found = export_all(
                program,
                formats=formats,
                directory=output,
                channels_last=not channels_first,
                contract=contract,
                progress=lambda format, phase: stage.update(f"{format}: {phase}"),
            )
        with console.stage("checking") as stage:
            check = _Check(network, program, reference, strict, output, stage.update)
            rows, lines, errors = check.all(found)
    if not lines:
        for error in errors[1:]:
            console.error(error)
        raise errors[0]
    for error in errors:
        console.error(error)
    console.result(lines, artifacts=rows)
    return errors[0].exit_code if errors else 0


@dataclass
class _Check:
    """What stays of an export: a file that is there is a file that did not fail."""

    network: Network
    program: Path
    reference: Reference
    strict: bool
    output: Path
    progress: Callable[[str], None]

    def all(
        self, found: dict[str, Artifact | PlanishError]
    ) -> tuple[list[dict[str, Any]], list[Text], list[PlanishError]]:
        """For each format a row and, unless it failed, lines."""
        import torch

        from pipeline.verify.sites import sites

        known = sites(torch.export.load(self.program))
        rows, lines, errors = [], [], []
        unchecked = [artifact for artifact in found.values() if not isinstance(artifact, PlanishError)]
        try:
            for format, artifact in found.items():
                self.progress(format)
                if isinstance(artifact, PlanishError):
                    errors.append(artifact)
                    rows.append({"format": format, "error": artifact.to_json()})
                    continue
                row, line, error = self._one(artifact, known)
                rows.append(row)
                lines += line
                if error is not None:
                    errors.append(error)
                    artifact.discard()
                unchecked.remove(artifact)
        finally:
            for artifact in unchecked:
                artifact.discard()
        return rows, lines, errors

    def _one(self, artifact: Artifact, known: Sequence[Site]) -> tuple[dict[str, Any], list[Text], PlanishError | None]:
        from pipeline.verify.delegation import delegation, require_strict
        from pipeline.verify.failed import keep_failed
        from pipeline.verify.levels import check_host

        parity = check_host(artifact, self.reference)
        row = {"format": artifact.format, "artifact": artifact.to_json(self.output), "parity": parity.to_json()}
        if parity.failed:
            self.progress(f"looking for what {artifact.format} gets wrong")
            kept = self.output / "failed" / artifact.format
            return row, [], keep_failed(kept, parity, self.network, artifact, self.reference)
        placed = delegation(artifact, sites=known)
        row["delegation"] = placed.to_json()
        if self.strict:
            try:
                require_strict(placed, artifact)
            except PlanishError as error:
                return row, [], error
        return row, [_line(artifact, parity), _placed(placed)], None


def _line(artifact: Artifact, parity: Parity) -> Text:
    worst = max((output.relative_rmse for output in parity.outputs), default=0.0)
    checked = (
        f"relative RMSE {worst:.1e} on {parity.samples} samples"
        if parity.passed
        else f"not run here: {parity.reasons[0]}"
    )
    return Text(f"{artifact.path}  {artifact.bytes:,} bytes, {checked}, exported in {artifact.seconds:.0f} s")


def _placed(delegation: Delegation) -> Text:
    """What is delegated, in a line."""
    if not delegation.known or delegation.nodes is None:
        return Text(f"  {delegation.delegate}: {delegation.learned}", "dim")
    left = [f"{each.count} {each.kind} in {each.module or 'the network itself'}" for each in delegation.fallbacks]
    moved = sum(each.count for each in delegation.transposes)
    text = (
        f"  {delegation.delegate} takes {delegation.delegated_nodes} of {delegation.nodes} operators, "
        f"{delegation.partitions} partition{'' if delegation.partitions == 1 else 's'}"
    )
    text += f"; left: {', '.join(left)}" if left else ""
    many = "" if moved == 1 else "s"
    return Text(text + (f"; {moved} transpose{many} of activations" if moved else ""), "dim")
