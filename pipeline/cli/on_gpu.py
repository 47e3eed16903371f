"""What of a network a mobile GPU would run, and what it leaves to the CPU: an export that is thrown away tells."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from targets.errors import MissingEnvironmentError

FORMAT = "tflite"  # whose delegate runs on this machine, too


@dataclass(frozen=True)
class GpuPlaces:
    """Where the operators of the artifact would run.

    Attributes:
        sentences: what does not run on the GPU, by the user's modules.
        refused: kinds of operators that the delegate does not know, with its reason.
        unknown: why nothing is known, with what helps.
    """

    taken: int = 0
    operators: int = 0
    sentences: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    unknown: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "operators": self.operators,
            "on_gpu": self.taken,
            "left": list(self.sentences),
            "refused": dict(self.refused),
            "unknown": self.unknown or None,
        }

    def lines(self) -> list[Text]:
        if self.unknown:
            return [Text(), Text(f"What of it the GPU runs is not known: {self.unknown}", "yellow")]
        lines = [Text(), Text(f"The GPU runs {self.taken} of {self.operators} operators of the .tflite", "bold")]
        lines += [Text(f"  {sentence}") for sentence in self.sentences]
        lines += [Text(f"  the delegate says of {kind}: {reason}") for kind, reason in self.refused]
        if self.sentences:
            told = (
                "the delegate takes one run of operators, the longest; all others stay on the CPU with those it refuses"
            )
            lines.append(Text(f"  {told}", "dim"))
        return lines


def placed_on_gpu(program: Path, target: str, progress: Callable[[str], None]) -> GpuPlaces:
    """Of the network saved at `program` (.pt2).

    Raises:
        PlanishError: as `pipeline.export.child.export`; `DELEGATION_UNREAD`.
    """
    import torch

    from pipeline.export.child import export
    from pipeline.verify.delegation import delegation, violations
    from pipeline.verify.sites import sites
    from targets.delegation.gpu import on_gpu
    from targets.gpu.places import require

    try:
        require()
    except MissingEnvironmentError as error:
        return GpuPlaces(unknown=f"{error.what}; {error.fix}")
    with tempfile.TemporaryDirectory(prefix="planish-inspect-") as scratch:
        folder = Path(scratch)
        artifact = export(program, format=FORMAT, directory=folder, log=folder / "log", progress=progress)
        progress("asking the GPU's delegate")
        found = delegation(artifact, target=target, gpu=True, sites=sites(torch.export.load(program)))
        told = on_gpu(artifact.path)
    return GpuPlaces(
        found.delegated_nodes,
        found.nodes,
        violations(found),
        tuple({told.kinds[index]: reason for index, reason in told.refused.items()}.items()),
    )
