"""What of an artifact a delegate runs, what falls back, and what it costs to get across.

A runtime says nothing when a delegate leaves an operator behind: the artifact works, and is slow. Here every operator
that falls back is named with the user's module, partitions are counted, and so are the transposes of activations and the
bytes that cross. `violations` is the gate of `--strict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.export.artifact import Artifact
from targets.delegation.placement import Where
from targets.errors import VerificationError
from targets.operators import OperatorTime

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Fallback:
    """Operators of one kind in one of the user's modules that no delegate takes.

    Attributes:
        kind: as the format calls it.
        module: the user's; "" is the network itself, or unknown.
        count: how many of them.
        reason: why, where the delegate says; else "".
        milliseconds: of one inference, where operators were timed.
    """

    kind: str
    module: str
    count: int
    reason: str = ""
    milliseconds: float | None = None


@dataclass(frozen=True)
class Transposes:
    """Operators of one kind that move activations to another order of axes, in one module.

    Attributes:
        where: "border" when nothing but views lies between them and the artifact's inputs or outputs.
        asked: the network itself permutes there, so that no choice of layout could avoid them.
        shape: of the first one's result.
    """

    kind: str
    module: str
    count: int
    where: Where
    asked: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Estimate:
    """What another delegate would take, by a table of the operators it knows: no run, no promise."""

    delegate: str
    partitions: int
    delegated_nodes: int
    nodes: int
    verdict: str
    source: str


@dataclass(frozen=True)
class Delegation:
    """One artifact on one target. Counts are None where nothing could be learned; `learned` says so.

    Attributes:
        target: name of the profile, "" for the host.
        delegate: "XNNPACK", "Vulkan", "Core ML", "CPU".
        learned: how the figures are known, a clause.
        partitions: calls of the delegate in one inference.
        nodes, delegated_nodes: operators, and those of them that the delegate runs.
        time_share: of an inference, 0..1, spent in the delegate; None where operators were not timed.
        crossing_bytes: of activations that enter or leave partitions, without the artifact's own inputs and outputs.
        border_bytes: of these.
    """

    artifact_sha256: str
    format: str
    target: str
    runtime: str
    delegate: str
    learned: str
    partitions: int | None = None
    nodes: int | None = None
    delegated_nodes: int | None = None
    time_share: float | None = None
    fallbacks: tuple[Fallback, ...] = ()
    transposes: tuple[Transposes, ...] = ()
    crossing_bytes: int | None = None
    border_bytes: int | None = None
    estimates: tuple[Estimate, ...] = ()

    @property
    def known(self) -> bool:
        return self.partitions is not None

    @property
    def node_share(self) -> float | None:
        """Share of the operators that the delegate runs, 0..1."""
        return self.delegated_nodes / self.nodes if self.nodes else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Delegation:
        """The inverse of `to_json`."""
        transposes = tuple(Transposes(**{**row, "shape": tuple(row["shape"])}) for row in data["transposes"])
        return cls(
            **{
                **data,
                "fallbacks": tuple(Fallback(**row) for row in data["fallbacks"]),
                "transposes": transposes,
                "estimates": tuple(Estimate(**row) for row in data["estimates"]),
            }
        )


@dataclass(frozen=True)
class Limits:
    """What `--strict` lets pass."""

    partitions: int = 1
    fallbacks: int = 0
    transposes: int = 0


def delegation(
    artifact: Artifact,
    *,
    target: str = "",
    program: ExportedProgram | None = None,
    times: Sequence[OperatorTime] = (),
) -> Delegation:
    """What of `artifact` is delegated on `target`.

    Args:
        program: the network as exported, whose modules name the artifact's operators.
        times: of an inference of this very artifact on an emulated target; without them no share of time is told.
    """
    raise NotImplementedError


def violations(delegation: Delegation, limits: Limits = Limits()) -> tuple[str, ...]:
    """A sentence for each thing that `limits` do not let pass; empty when nothing is known."""
    raise NotImplementedError


def require_strict(delegation: Delegation, artifact: Artifact, limits: Limits = Limits()) -> None:
    """Raises VerificationError `NOT_DELEGATED` when there are violations."""
    if found := violations(delegation, limits):
        raise VerificationError(
            f"The {artifact.format} artifact is not delegated as a whole.",
            where=str(artifact.path),
            why=" ".join(found),
            fix="replace the operator in the network, choose another format, or go without --strict.",
            code="NOT_DELEGATED",
        )
