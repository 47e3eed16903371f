"""What of an artifact a delegate runs, what falls back, and what it costs to get across.

A runtime says nothing when a delegate leaves an operator behind: the artifact works, and is slow. Here every operator
that falls back is named with the user's module; partitions, transposes of activations and the bytes that cross are
counted. `violations` is the gate of `--strict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.export.artifact import Artifact
from pipeline.export.formats import FORMATS
from pipeline.verify.execute import silent_stderr
from targets.delegation import READERS
from targets.delegation.gpu import DELEGATE as GPU
from targets.delegation.gpu import read_gpu
from targets.delegation.naming import Site, name_modules, plain
from targets.delegation.onnx import REORDERS, Estimate, estimates, read_onnx
from targets.delegation.placement import Placed, Placement, Where
from targets.errors import VerificationError
from targets.operators import RUNTIME, align
from targets.runners.artifact import runtime_version

if TYPE_CHECKING:
    from reports.records import OperatorRecord
    from targets.operators import OperatorTime

_SESSIONS = {"onnx": "onnx", "ort": "onnx", "tflite": "tflite"}  # formats that a runtime here loads, and its name there


@dataclass(frozen=True)
class Fallback:
    """Operators of one kind in one of the user's modules that no delegate takes.

    Attributes:
        kind: as the format calls it: "ATAN2", "aten::atan".
        module: the user's; "" is the network itself.
        milliseconds: of one inference, all of them together; None where operators were not timed.
        between: the modules before and after, where `module` is empty.
    """

    kind: str
    module: str
    count: int
    milliseconds: float | None = None
    between: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Transposes:
    """Operators of one kind that move activations to another order of axes, in one module.

    Attributes:
        where: "border" when nothing but views lies between them and the artifact's inputs or outputs.
        asked: the network itself permutes there, so that no choice of layout could avoid them.
        shape: of the first one's result; empty where the file does not tell.
        between: as of `Fallback`.
    """

    kind: str
    module: str
    count: int
    where: Where
    asked: bool
    shape: tuple[int, ...]
    between: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Delegation:
    """One artifact on one target. Figures are None where nothing could be learned; `learned` says why.

    Attributes:
        target: name of the profile, "" for this machine.
        runtime: that placed the operators, with its version; where the file itself says it, the one it is for.
        delegate: "XNNPACK", "Vulkan", "Core ML", or "CPU" for ONNX Runtime's own kernels.
        learned: how the figures are known, a clause.
        partitions: calls of the delegate in one inference.
        nodes, delegated_nodes: operators as the artifact has them, and those that the delegate runs; None for a
            delegate that hides what it holds (Core ML), unless the converter says it.
        time_share: of an inference, 0..1, spent in the delegate; None where operators were not timed.
        crossing_bytes: of activations that enter or leave partitions, without the artifact's own inputs and outputs.
        border_bytes: of these.
        estimates: other delegates, by tables of what they know; nothing was run.
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
        """Whether there are figures at all."""
        return self.partitions is not None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Delegation:
        """The inverse of `to_json`."""
        fallbacks = (Fallback(**{**row, "between": tuple(row["between"])}) for row in data["fallbacks"])
        transposes = (
            Transposes(**{**row, "between": tuple(row["between"]), "shape": tuple(row["shape"])})
            for row in data["transposes"]
        )
        return cls(
            **{
                **data,
                "fallbacks": tuple(fallbacks),
                "transposes": tuple(transposes),
                "estimates": tuple(Estimate(**row) for row in data["estimates"]),
            }
        )


@dataclass(frozen=True)
class Limits:
    """What `--strict` lets pass.

    Transposes count where the network does not ask for them itself, and at the border in formats whose border could
    have been channels-last. On a GPU they count for nothing: a transpose there is a dispatch like any other, which the
    modelled latency contains, and one that the delegate leaves to the CPU is a fallback.
    """

    partitions: int = 1
    fallbacks: int = 0
    transposes: int = 0


def delegation(
    artifact: Artifact,
    *,
    target: str = "",
    gpu: bool = False,
    sites: Sequence[Site] = (),
    times: Sequence[OperatorTime | OperatorRecord] = (),
) -> Delegation:
    """What of `artifact` is delegated on `target`.

    Delegates of a CPU decide by operators, types and shapes, not by the core, so this machine's runtime answers for the
    emulated phone, too, which has the same release of it.

    Args:
        gpu: the target is a mobile GPU; of a .tflite LiteRT's GPU delegate is asked.
        sites: operators of the network, as `pipeline.verify.sites.sites` gives them, that name the artifact's.
        times: of an inference of this very artifact on an emulated target; without them no share of time is told.

    Raises:
        VerificationError: `ARTIFACT_CHANGED`; `DELEGATION_UNREAD` when the runtime does not take the file.
    """
    artifact.require_unchanged()
    reader = read_gpu if gpu and artifact.format == "tflite" else READERS.get(artifact.format)
    told = {"artifact_sha256": artifact.sha256, "format": artifact.format, "target": target}
    if reader is None:
        why = FORMATS[artifact.format].why_not
        return Delegation(
            **told, runtime=artifact.runtime, delegate=FORMATS[artifact.format].title, learned=f"not run here: {why}"
        )
    try:
        with silent_stderr():
            blocked = reader is read_onnx and any(row.kind in REORDERS for row in times)
            placement = read_onnx(artifact.path, blocked=True) if blocked else reader(artifact.path)
            estimated = estimates(artifact.path) if artifact.format == "onnx" else ()
    except (ValueError, RuntimeError) as error:
        raise VerificationError(
            f"What of the {artifact.format} artifact is delegated cannot be told.",
            where=str(artifact.path),
            why=str(error),
            fix="export it again; if that does not help, choose another format.",
            code="DELEGATION_UNREAD",
        ) from error
    placement = name_modules(_with_left_modules(placement, artifact), sites)
    inside = _inside(placement, artifact)
    session = _SESSIONS.get(artifact.format)
    crossing, border = placement.crossing()
    return Delegation(
        **told,
        runtime=runtime_version(session) if session else artifact.runtime,
        delegate=placement.delegate,
        learned=placement.learned,
        partitions=placement.partitions,
        nodes=None if inside is None else inside + len(placement.fallbacks),
        delegated_nodes=inside,
        time_share=_time_share(placement, times),
        fallbacks=_fallbacks(placement, times),
        transposes=_transposes(placement),
        crossing_bytes=crossing,
        border_bytes=border,
        estimates=estimated,
    )


def _with_left_modules(placement: Placement, artifact: Artifact) -> Placement:
    """With the modules of what ExecuTorch runs itself, which the converter saw before it turned them into kernels."""
    if artifact.delegation is None:
        return placement
    kernels = [each for each in artifact.delegation["outside"] if each["kernel"]]
    left = [index for index, operator in enumerate(placement.operators) if operator.partition is None]
    pairs = align(left, kernels, lambda at, one: int(placement.operators[at].kind == one["kernel"].partition(".")[0]))
    modules = {left[mine]: kernels[its]["module"] for mine, its in pairs}
    operators = (replace(each, module=modules.get(at, "")) for at, each in enumerate(placement.operators))
    return replace(placement, operators=tuple(operators))


def _inside(placement: Placement, artifact: Artifact) -> int | None:
    """Operators that the delegate runs; where it hides them, those that the converter gave it, if that is known."""
    if not placement.opaque:
        return len(placement.operators) - len(placement.fallbacks)
    if artifact.delegation is None:
        return None
    return sum(len(each["operators"]) for each in artifact.delegation["delegates"])


def _fallbacks(placement: Placement, times: Sequence[OperatorTime | OperatorRecord]) -> tuple[Fallback, ...]:
    """Grouped, in the order of the first of each group."""
    groups: dict[tuple[str, str, tuple[str, str]], list[float | None]] = {}
    for operator, milliseconds in zip(placement.fallbacks, _milliseconds(placement.fallbacks, times)):
        groups.setdefault(_place(operator), []).append(milliseconds)
    return tuple(
        Fallback(kind, module, len(each), None if None in each else sum(each), between)
        for (kind, module, between), each in groups.items()
    )


def _place(operator: Placed) -> tuple[str, str, tuple[str, str]]:
    """Kind, module, and what it stands between where that is the network itself."""
    return operator.kind, operator.module, ("", "") if operator.module else operator.between


def _milliseconds(operators: Sequence[Placed], times: Sequence[OperatorTime | OperatorRecord]) -> list[float | None]:
    """Of each operator: the runtime keeps the order of those of one kind. None where it ran another number of them."""
    found: list[float | None] = [None] * len(operators)
    for kind in dict.fromkeys(plain(operator.kind) for operator in operators):
        mine = [index for index, operator in enumerate(operators) if plain(operator.kind) == kind]
        rows = [row for row in times if plain(row.kind) == kind]
        if len(rows) == len(mine):
            for index, row in zip(mine, rows):
                found[index] = row.milliseconds
    return found


def _time_share(placement: Placement, times: Sequence[OperatorTime | OperatorRecord]) -> float | None:
    """Of all operators that are neither the runtime's own kernels nor its work between them."""
    if not times:
        return None
    own = {plain(operator.kind) for operator in placement.fallbacks} | {RUNTIME}
    return min(1.0, sum(row.share for row in times if plain(row.kind) not in own))


def _transposes(placement: Placement) -> tuple[Transposes, ...]:
    moving = [operator for operator in placement.operators if operator.moves]
    groups: dict[tuple[tuple[str, str, tuple[str, str]], Where, bool], list[Placed]] = {}
    for operator in moving:
        groups.setdefault((_place(operator), placement.where(operator), operator.asked), []).append(operator)
    return tuple(
        Transposes(kind, module, len(each), where, asked, each[0].out_shapes[0], between)
        for ((kind, module, between), where, asked), each in groups.items()
    )


def violations(delegation: Delegation, limits: Limits = Limits()) -> tuple[str, ...]:
    """A sentence for each thing that `limits` do not let pass; none where nothing is known."""
    if not delegation.known:
        return ()
    found = []
    if sum(each.count for each in delegation.fallbacks) > limits.fallbacks:
        found += [f"{_counted(each)} is not taken by {delegation.delegate}." for each in delegation.fallbacks]
    if delegation.partitions > limits.partitions:
        found.append(
            f"{delegation.delegate} is called {delegation.partitions} times an inference; the limit is "
            f"{limits.partitions}."
        )
    avoidable = [each for each in delegation.transposes if _avoidable(each, delegation)]
    if sum(each.count for each in avoidable) > limits.transposes:
        found += [f"{_counted(each)} moves an activation{_what(each)}." for each in avoidable]
    return tuple(found)


def _avoidable(transposes: Transposes, delegation: Delegation) -> bool:
    if transposes.asked or delegation.delegate == GPU:
        return False
    return transposes.where == "inside" or FORMATS[delegation.format].channels_last


def _what(moved: Transposes) -> str:
    size = f" of {'×'.join(map(str, moved.shape))}" if moved.shape else ""
    return size + (" at the border" if moved.where == "border" else "")


def _counted(operators: Fallback | Transposes) -> str:
    """ "ATAN2 in 'stem.odd'", "ADD (2 times) between 'stem' and 'head'"."""
    times = f" ({operators.count} times)" if operators.count > 1 else ""
    before, after = operators.between
    if before and after:
        return f"{operators.kind}{times} between '{before}' and '{after}'"
    place = f"in '{operators.module}'" if operators.module else "in the network itself"
    if before or after:
        place = f"behind '{before}'" if before else f"before '{after}'"
    return f"{operators.kind}{times} {place}"


def require_strict(delegation: Delegation, artifact: Artifact, limits: Limits = Limits()) -> None:
    """Raises VerificationError `NOT_DELEGATED` when there are violations."""
    if found := violations(delegation, limits):
        raise VerificationError(
            f"The {artifact.format} artifact is not delegated as a whole.",
            where=str(artifact.path),
            why=" ".join(found),
            fix="replace what is named in the network, choose another format, or go without --strict.",
            code="NOT_DELEGATED",
        )
