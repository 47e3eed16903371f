"""Says what a plan does to a network, as rows for the report."""

from __future__ import annotations

from typing import Any

from calibration.statistics import Statistics
from pipeline.compress.easing import EasedPlan
from pipeline.compress.methods import Rejected
from pipeline.compress.plan import Plan
from pipeline.model.network import Network
from pipeline.model.operators import operators
from targets.price import Price


def layer_rows(network: Network, costs: Price) -> list[dict[str, Any]]:
    """One row for every operator that the runtime will execute; the fields are those of `LayerRecord`."""
    return [
        {
            "name": row.name,
            "kind": row.operator.kind,
            "description": row.description,
            "parameters": row.parameters,
            "macs": row.macs,
            "predicted_ms": costs.milliseconds(row.operator),
        }
        for row in operators(network)
    ]


def edit_rows(plan: Plan, statistics: Statistics) -> list[dict[str, Any]]:
    """One row for every edit of a plan; the fields are those of `EditRecord`."""
    rows = _removals(plan) if isinstance(plan, EasedPlan) else []
    for option in plan.options:
        for edit in option.edits:
            row: dict[str, Any] = {
                "kind": edit.kind,
                "site": edit.site,
                "predicted_saving_ms": None,
                "damage": None,
                "entropy_bits": None,
                "summary": option.summary,
            }
            if edit.kind == "linearize":
                row["entropy_bits"] = statistics[edit.site].entropy() if option.kind != "collapse" else None
                row["summary"] = (
                    "the activation has melted: it is the identity by now"
                    if option.kind == "collapse"
                    else "the activation becomes its best affine fit, one scale and shift a channel"
                )
            if edit is option.edits[-1]:
                row["predicted_saving_ms"], row["damage"] = option.saving_ms, option.damage or None
            rows.append(row)
    return rows


def _removals(plan: EasedPlan) -> list[dict[str, Any]]:
    """What the rounds of EASIER did before the edits, with the entropy at which each activation went."""
    return [
        {
            "kind": "linearize",
            "site": gone.site,
            "predicted_saving_ms": None,
            "damage": None,
            "entropy_bits": gone.entropy_bits,
            "summary": f"round {number}: the activation became a line, which trained on with the network; "
            f"{gone.accuracy:.2f} % of the held-out samples right then",
        }
        for number, gone in enumerate(plan.removed, 1)
    ]


def rejected_rows(rejected: Rejected) -> list[dict[str, Any]]:
    """What planning looked at and never took, with the reason; the fields are those of `RejectedRecord`."""
    return [{"kind": kind, "site": site, "reason": reason} for kind, site, reason in rejected]
