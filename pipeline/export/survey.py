"""What a converter makes of each kind of operator of a network: the dry lowering, on the child's side.

Two conversions say it. The network as a whole goes through the converter: that is the answer to whether it can be
exported at all. Then one call of each kind of operator goes through it side by side (`lowering`), none joined to
another, so that what came out of each can be followed from its outputs back to its inputs. Where the converter refuses
that program, it is halved until the kinds it refuses are known.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pipeline.export.failure import Failure, Place, blamed, clean, explain, place, root_of, short_name
from pipeline.export.lowering import Kind, attempts, first_refused, kinds, lowering
from pipeline.export.traced import Branch, Traced, traced

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Verdict = Literal["native", "decomposed", "fallback", "converted", "unsupported", "not known"]
ORDER: tuple[Verdict, ...] = ("unsupported", "not known", "fallback", "converted", "decomposed", "native")
LEAST_S = 60.0  # the search for refused kinds may take twice the conversion of the network, and at least this
APART = {"ort": "onnx"}  # an ORT file holds the same graph; ONNX's is read more easily


@dataclass(frozen=True)
class OperatorCoverage:
    """The calls of one operator that fare alike in one format.

    Attributes:
        operator: `aten.roll`.
        count: calls of it in the network.
        verdict: native (one operator of the format, or none), decomposed (several), fallback (converted, but not all of
            it is run by the delegate), unsupported; converted (in this network, but what became of it could not be
            followed), or not known (it cannot stand by itself, or time ran out).
        becomes: what it turns into, in the format's words; of a fallback what is left to the runtime's own kernels.
        places: where it stands in the user's model, for anything not native.
        reason: the converter's sentence where it is unsupported.
    """

    operator: str
    count: int
    verdict: Verdict
    becomes: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Coverage:
    """One format's verdicts.

    Attributes:
        operators: the worst first, then in the network's order.
        converted: whether the network as a whole went through the converter.
        learned: how the verdicts came about, a sentence.
        outside: operators of the whole network that the delegate left, by kind; None where it does not say.
        failure: of the whole network, else None.
        seconds: wall-clock time, starting the converter included.
    """

    format: str
    operators: tuple[OperatorCoverage, ...]
    converted: bool
    learned: str
    outside: Mapping[str, int] | None = None
    failure: Failure | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Coverage:
        """The inverse of `to_json`."""
        operators = tuple(
            OperatorCoverage(
                **{
                    **row,
                    "becomes": tuple(row["becomes"]),
                    "places": tuple(Place(**one) for one in row["places"]),
                }
            )
            for row in data["operators"]
        )
        failure = Failure.from_json(data["failure"]) if data["failure"] else None
        return cls(**{**data, "operators": operators, "failure": failure})


def survey(program: ExportedProgram, format: str, *, phase: Callable[[str], None]) -> Coverage:
    """What the converter to `format` makes of `program`, whose shapes are fixed."""
    started = time.monotonic()
    lower, every = lowering(format), kinds(program)
    phase("converting the network as a whole")
    whole: Traced | None = None
    failure: Failure | None = None
    try:
        whole = traced(lower(program), format)
    except Exception as error:  # whatever a converter raises is the answer
        traceback.print_exc()
        failure = explain(error, program, format, seconds=0)
    deadline = time.monotonic() + max(2 * (time.monotonic() - started), LEAST_S)
    phase(f"converting {len(every)} kinds of operators side by side")
    apart = APART.get(format, format)
    fates: dict[Kind, Fate] = {}
    suspect = next((kind.operator for kind in every if failure and short_name(kind.operator) == failure.operator), "")
    for group, outcome in attempts(every, program, lowering(apart), deadline=deadline, suspect=suspect):
        if isinstance(outcome, Exception):
            fates[group[0]] = Fate("unsupported", reason=clean(root_of(outcome)))
        else:
            branches = traced(outcome, apart).branches([kind.results for kind in group])
            fates |= dict(zip(group, map(_fate, branches)))
        phase(f"converting {len(every)} kinds of operators side by side: {len(fates)} done")
    if failure is not None and not failure.operator:
        unsupported = next((kind for kind, fate in fates.items() if fate.verdict == "unsupported"), None)
        if unsupported is not None:
            failure = blamed(failure, unsupported.nodes, "alone")
        else:
            phase("looking for the operator that is refused behind others")
            first = first_refused(program, lower, deadline=deadline)
            failure = blamed(failure, [first] if first is not None else [], "in place")
    settled = {kind: _settled(kind, fates.get(kind), whole, failure) for kind in every}
    return Coverage(
        format,
        _rows(settled),
        whole is not None,
        _learned(whole is not None, len(fates), len(every)),
        dict(whole.outside) if whole is not None and whole.outside is not None else None,
        failure,
        time.monotonic() - started,
    )


@dataclass(frozen=True)
class Fate:
    """What became of one kind of operator."""

    verdict: Verdict
    becomes: tuple[str, ...] = ()
    reason: str = ""


def _fate(branch: Branch) -> Fate:
    if branch.left:
        return Fate("fallback", branch.left)
    return Fate("native" if len(branch.operators) <= 1 else "decomposed", branch.operators)


def _settled(kind: Kind, alone: Fate | None, whole: Traced | None, failure: Failure | None) -> Fate:
    """The verdict in the network, which overrules the one side by side."""
    if whole is None:
        if failure is not None and short_name(kind.operator) == failure.operator:
            return Fate("unsupported", reason=failure.sentence)
        return alone or Fate("not known", reason="not tried: time ran out, or it cannot stand by itself")
    if alone is None or alone.verdict == "unsupported":
        return Fate("converted")
    if alone.verdict == "fallback" and not {*alone.becomes} & {*(whole.outside or ())}:
        return Fate("converted", reason="the delegate takes it together with its neighbours")
    return alone


def _rows(settled: Mapping[Kind, Fate]) -> tuple[OperatorCoverage, ...]:
    """One row an operator and verdict."""
    rows: dict[tuple[str, Verdict], OperatorCoverage] = {}
    for kind, fate in settled.items():
        name = short_name(kind.operator)
        row = rows.get((name, fate.verdict)) or OperatorCoverage(name, 0, fate.verdict, reason=fate.reason)
        places = (place(node) for node in kind.nodes) if fate.verdict != "native" else ()
        rows[name, fate.verdict] = replace(
            row,
            count=row.count + len(kind.nodes),
            becomes=tuple(dict.fromkeys((*row.becomes, *fate.becomes))),
            places=tuple(dict.fromkeys((*row.places, *places))),
        )
    return tuple(sorted(rows.values(), key=lambda row: ORDER.index(row.verdict)))


def _learned(converted: bool, tried: int, count: int) -> str:
    kinds = f"{tried} of {count}" if tried < count else str(count)
    whole = "the network as a whole" if converted else "the network as a whole (refused)"
    return f"learned by converting {whole}, and {kinds} kinds of its operators side by side"
