"""Parity, delegation and culprits as the records of a run hold them."""

from __future__ import annotations

from pathlib import Path

from pipeline.verify.correspondence import EQUAL
from pipeline.verify.culprit import Culprit
from pipeline.verify.delegation import Delegation, violations
from pipeline.verify.parity import GroupParity, Parity
from pipeline.verify.task import TaskParity
from reports.verification import CulpritRecord, DelegationRecord, ParityGroupRecord, ParityRecord, TaskRecord

_FIGURES = ("relative_rmse", "max_abs", "sqnr_db", "cosine", "top1_agreement")
_LARGEST = 1e9  # an error that is not finite, as a number that JSON has


def parity_record(parity: Parity) -> ParityRecord:
    return ParityRecord(
        format=parity.format,
        level=parity.level,
        precision=parity.tolerance.precision,
        runner=parity.runner,
        verdict=parity.verdict,
        reasons=parity.reasons,
        groups=tuple(map(_group, parity.groups)),
        task=parity.task and _task(parity.task),
    )


def _group(group: GroupParity) -> ParityGroupRecord:
    worst = group.worst
    figures = {} if worst is None else {name: getattr(worst, name) for name in _FIGURES}
    return ParityGroupRecord(name=group.name, verdict=group.verdict, samples=group.samples, **figures)


def _task(task: TaskParity) -> TaskRecord:
    return TaskRecord(
        artifact_percent=task.artifact.value,
        network_percent=task.network.value,
        low_points=task.low_points,
        high_points=task.high_points,
        samples=task.artifact.samples,
    )


def delegation_record(delegation: Delegation) -> DelegationRecord:
    told = {key: value for key, value in delegation.to_json().items() if key != "artifact_sha256"}
    return DelegationRecord(**told, violations=violations(delegation))


def culprit_record(culprit: Culprit, root: Path) -> CulpritRecord:
    """`reproducer` becomes relative to `root`."""
    told = culprit.to_json(root)
    blocks = [
        {**block, "value": min(float(block["value"]), _LARGEST), "own": min(float(block["own"]), _LARGEST)}
        for block in told["blocks"]
    ]
    return CulpritRecord(**{**told, "blocks": blocks}, rounding=EQUAL)
