"""What a converter makes of each kind of operator of a network: the dry lowering, on the child's side.

Two conversions say it. The network as a whole goes through the converter: that is the answer to whether it can be
exported at all. Then one call of each kind of operator goes through it side by side (`lowering`), none joined to another,
so that what came out of each can be followed from its outputs back to its inputs. Where the converter refuses that
program, it is halved until the kinds it refuses are known.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.export.failure import Failure, Place, clean, explain, place, root_of
from pipeline.export.formats import FORMATS
from pipeline.export.lowering import Kind, attempts, kinds, lowering, side_by_side
from targets.delegation.placement import Placed

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from pipeline.export.conversion import Conversion

Verdict = Literal["native", "decomposed", "fallback", "unsupported", "not known"]
ORDER: tuple[Verdict, ...] = ("unsupported", "fallback", "not known", "decomposed", "native")
SHARE, LEAST_S = 1.0, 60.0  # the search for refused kinds may take the time of one conversion, or this

_LAYOUT = {"TRANSPOSE", "Transpose", "XNNStaticTranspose", "transpose", "permute"}


@dataclass(frozen=True)
class OperatorCoverage:
    """The calls of one operator that fare alike in one format.

    Attributes:
        operator: `aten.roll`.
        count: calls of it in the network.
        verdict: native (one operator of the format, or none), decomposed (several), fallback (converted, but not all of
            it is run by the delegate), unsupported, or not known: it cannot stand by itself, or time ran out.
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
    """What the converter to `format` makes of `program`, at batch 1 and of fixed shapes."""
    started = time.monotonic()
    lower = lowering(format)
    phase("converting the network as a whole")
    whole: Conversion | None = None
    failure: Failure | None = None
    try:
        whole = lower(program)
    except Exception as error:  # whatever a converter raises is the answer
        failure = explain(error, program, format, seconds=0)
    took = time.monotonic() - started
    every = kinds(program)
    fates: dict[str, OperatorCoverage] = {}
    rows: list[OperatorCoverage] = []
    phase(f"converting {len(every)} kinds of operators side by side")
    deadline = time.monotonic() + max(SHARE * took, LEAST_S)
    fate: dict[int, tuple[Verdict, tuple[str, ...], str]] = {}
    for group, outcome in attempts(every, program, lower, deadline=deadline):
        phase(f"converting {len(every)} kinds of operators side by side, {len(fate) + len(group)} done")
        if isinstance(outcome, Exception):
            fate[id(group[0])] = ("unsupported", (), clean(root_of(outcome)))
        else:
            for kind, verdict, becomes in _read(outcome, format, group, program):
                fate[id(kind)] = (verdict, becomes, "")
    raise NotImplementedError(
        fates,
        rows,
        ORDER,
        FORMATS,
        Counter,
        replace,
        Path,
        tempfile,
        Placed,
        Sequence,
        _LAYOUT,
        side_by_side,
        place,
        failure,
        whole,
    )


def _read(conversion: Conversion, format: str, group: list[Kind], program: ExportedProgram) -> Any:
    raise NotImplementedError
