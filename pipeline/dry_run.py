"""What a run would try first, by the cost tables alone: nothing is written, exported or measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.explain import edit_rows
from pipeline.model.operators import operators
from pipeline.recipe import Limit
from pipeline.stages import Stages
from reports.records import OutcomeRecord
from targets.price import StoredBytes


@dataclass(frozen=True)
class DryRun:
    """The first plan.

    Attributes:
        original: what the tables predict of every limit, the original network held against it; peak memory has none.
        base_price, predicted: of the original and of the plan, on the scale of the first limit's table.
        edits: rows for the report.
    """

    original: tuple[OutcomeRecord, ...]
    base_price: float
    predicted: float
    edits: list[dict[str, Any]]


def dry_run(stages: Stages) -> DryRun:
    """Read everything and plan once, for the budget that the search would begin with if predictions were right."""
    stages.samples  # noqa: B018  (bad data ends the run before any work is done on it)
    original = tuple(_foreseen(stages, limit) for limit in stages.recipe.limits if limit.quantity != "memory")
    stages.weigh(original)
    ratio = max((outcome.value / outcome.limit for outcome in original), default=1.0)
    price = stages.base_price
    budget = (price.operators + price.fixed) / ratio - price.fixed
    chosen = stages.planner.plan(min(max(budget, 0.0), price.operators))
    return DryRun(original, price.operators, chosen.predicted_ms, edit_rows(chosen, stages.statistics))


def _foreseen(stages: Stages, limit: Limit) -> OutcomeRecord:
    if limit.target is None:
        value = sum(StoredBytes().milliseconds(row.operator) for row in operators(stages.base))
    else:
        table = stages.tables[limit.target]
        value = sum(table.milliseconds(row.operator) for row in operators(stages.base)) + table.invoke_ms
    most = limit.most if limit.share is None else limit.share * value
    return OutcomeRecord(
        quantity=limit.quantity,
        target=limit.target,
        limit=most,
        unit=limit.unit,
        value=value,
        low=value,
        high=value,
        verdict="met" if value <= most else "above",
    )
