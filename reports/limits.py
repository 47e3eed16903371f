"""The limits of a goal in words: what is limited, where, and how far a candidate is from it."""

from __future__ import annotations

from collections.abc import Sequence

from reports import quantities
from reports.measured import QualityRecord
from reports.records import GoalRecord, LimitRecord, OutcomeRecord, TargetRecord

QUANTITIES = {"latency": "median", "p90": "p90", "size": "size", "memory": "peak memory"}
SIGNS = {"met": "●", "above": "▲", "undecided": "◆"}


def short(limit: LimitRecord, goal: GoalRecord, median: str = "measured") -> str:
    """The head of a column: the target where the goal has several, and the quantity unless it is the median there."""
    several = len({each.target for each in goal.limits if each.target}) > 1
    if limit.target is None or not several:
        seen = "modelled" if limit.modelled else median
        return seen if limit.quantity == "latency" else QUANTITIES[limit.quantity]
    return limit.target if limit.quantity == "latency" else f"{limit.target} {QUANTITIES[limit.quantity]}"


def about(limit: LimitRecord | OutcomeRecord, several: bool) -> str:
    """What is limited, `pixel-4-cpu median`; the target is named where there are several."""
    return f"{limit.target} {QUANTITIES[limit.quantity]}" if several and limit.target else QUANTITIES[limit.quantity]


def sentence(limit: LimitRecord, several: bool) -> str:
    """`median ≤ 8.50 ms`, `pixel-4-cpu median ≤ 8.50 ms (60% of the original)`."""
    share = f" ({limit.asked} of the original)" if limit.asked.endswith("%") else ""
    how = "modelled " if limit.modelled else ""
    return f"{how}{about(limit, several)} ≤ {quantities.measured(limit.limit, limit.unit)}{share}"


def asked(targets: Sequence[TargetRecord], goal: GoalRecord) -> list[str]:
    """Every limit, then how much of the quality may be lost."""
    parts = [sentence(limit, len(targets) > 1) for limit in goal.limits]
    if goal.max_drop is not None:
        parts.append(f"at most {quantities.drop(goal.max_drop, goal.quality_unit)} of quality lost")
    return parts


def apart(outcome: OutcomeRecord) -> str:
    """`● 2.2 % under`"""
    return f"{SIGNS[outcome.verdict]} {quantities.against_target(outcome.margin_percent)}"


def uncertainty(quality: QualityRecord, max_drop: float | None) -> str:
    """Said where the samples cannot tell whether the floor is kept; empty where they can."""
    if max_drop is None or not quality.straddles(max_drop):
        return ""
    return f"too close to the floor for {quality.samples:,} samples to tell"
