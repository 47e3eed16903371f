"""Whether an artifact computes what the network computes: a verdict, on the user's own samples and on edge cases.

Random input proves little: an export can be right on noise and wrong on images, whose values, correlations and range
are different. The reference is the network run eagerly by PyTorch on the same samples. Where the artifact runs is its
level: the exported program, this machine, the emulated phone (`pipeline.verify.levels`). A level that could not be
tried is "not run here", which is no pass.

What is fair on an edge case, where the network's outputs may be tiny or huge: errors are relative to the larger of the
outputs' size there and their size on the user's samples. Against outputs that cancel to nearly nothing, as on zeros,
an error too small to matter on any sample would be infinitely large otherwise; where outputs are huge, rounding is as
huge. And where rounding the input once already moves the network's own outputs, an artifact, which rounds in every
layer, may move them by `ROUNDINGS` times as much. Samples on which the network itself is not finite are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.verify.edge_cases import OWN
from pipeline.verify.figures import OutputParity, Scale, compare
from pipeline.verify.reference import Case, Reference
from pipeline.verify.task import TaskParity
from pipeline.verify.tolerance import FP32, ROUNDINGS, Tolerance
from targets.errors import VerificationError

Level = Literal["program", "host", "emulator", "gpu"]
Verdict = Literal["passed", "failed", "not run here"]


@dataclass(frozen=True)
class GroupParity:
    """The figures of one group: the user's samples or one edge case.

    Attributes:
        name: as in `edge_cases.groups`.
        samples: how many were compared; 0 where the network itself is not finite on any.
        outputs: one an output.
        reasons: why the group failed, sentences without the group's name; empty when it passed.
    """

    name: str
    samples: int
    outputs: tuple[OutputParity, ...]
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> Literal["passed", "failed", "not judged"]:
        return "failed" if self.reasons else "passed" if self.samples else "not judged"

    @property
    def worst(self) -> OutputParity | None:
        """The output that is furthest off."""
        return max(self.outputs, key=lambda o: (np.isnan(o.relative_rmse), o.relative_rmse), default=None)


@dataclass(frozen=True)
class Parity:
    """The verdict on one artifact at one level.

    Attributes:
        artifact_sha256, format: of the file that was run; format `pt2` at level "program".
        runner: what ran it, for people.
        reasons: why it failed, or was not run; empty when it passed.
        groups: the user's own samples first; none where it was not run or does not run.
        task: where the samples have labels and the first output is class scores.
        tolerance: the limits, with their precision.
    """

    artifact_sha256: str
    format: str
    level: Level
    runner: str
    verdict: Verdict
    reasons: tuple[str, ...]
    groups: tuple[GroupParity, ...]
    task: TaskParity | None
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        """Whether it ran and passed."""
        return self.verdict == "passed"

    @property
    def failed(self) -> bool:
        return self.verdict == "failed"

    @property
    def samples(self) -> int:
        """How many of the user's own samples were compared."""
        return self.groups[0].samples if self.groups else 0

    @property
    def outputs(self) -> tuple[OutputParity, ...]:
        """The figures on the user's own samples."""
        return self.groups[0].outputs if self.groups else ()

    def to_json(self) -> dict[str, Any]:
        """Plain data in strict JSON; figures that are not finite become the strings `inf`, `-inf` and `nan`."""
        groups = [
            {**asdict(group), "outputs": [_strict(asdict(output)) for output in group.outputs]} for group in self.groups
        ]
        return {
            **asdict(replace(self, task=None)),
            "reasons": list(self.reasons),
            "groups": [{**group, "reasons": list(group["reasons"])} for group in groups],
            "task": self.task and self.task.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parity:
        """The inverse of `to_json`."""
        groups = [
            GroupParity(
                group["name"],
                group["samples"],
                tuple(OutputParity(**_figures(output)) for output in group["outputs"]),
                tuple(group["reasons"]),
            )
            for group in data["groups"]
        ]
        return cls(
            **{
                **data,
                "reasons": tuple(data["reasons"]),
                "groups": tuple(groups),
                "task": data["task"] and TaskParity.from_json(data["task"]),
                "tolerance": Tolerance(**data["tolerance"]),
            }
        )


def judge(
    reference: Reference,
    outputs: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    artifact_sha256: str,
    format: str,
    level: Level,
    runner: str,
    tolerance: Tolerance = FP32,
) -> Parity:
    """The verdict on what an artifact answered.

    Args:
        outputs: of the artifact on `reference.samples`, [N, ...] each, in the network's layout.
        names: of those outputs.
    """
    expected, count = reference.own.outputs, len(reference.samples)
    reasons = []
    if len(outputs) != len(expected):
        reasons.append(f"the artifact has {len(outputs)} outputs, the network {len(expected)}")
    alike = []
    for index, (name, output, wanted) in enumerate(zip(names, outputs, expected)):
        if output.shape == (count, *wanted.shape[1:]):
            alike.append(index)
        else:
            shapes = f"{list(output.shape)}, the network's are {[count, *wanted.shape[1:]]}"
            reasons.append(f"the values of output {name!r} on all samples are {shapes}")
    kept = [names[index] for index in alike]
    scales = [Scale.of(expected[index]) for index in alike]
    answers = reference.split([outputs[index] for index in alike]) if alike else []
    groups = tuple(
        _group(_narrowed(case, alike), found, kept, scales, tolerance) for case, found in zip(reference.cases, answers)
    )
    task = _task(reference, answers[0][0]) if alike and alike[0] == 0 else None
    for group in groups:
        place = "your samples" if group.name == OWN else f"the edge case '{group.name}'"
        reasons += [f"on {place} {reason}" for reason in group.reasons]
    if task is not None and task.high_points < -tolerance.task_points:
        reasons.append(
            f"on your samples it answers {task.artifact.value:.2f}% rightly and the network "
            f"{task.network.value:.2f}%: {task.low_points:+.2f} to {task.high_points:+.2f} points"
        )
    return Parity(
        artifact_sha256,
        format,
        level,
        runner,
        "failed" if reasons else "passed",
        tuple(reasons),
        groups,
        task,
        tolerance,
    )


def failure(parity: Parity, path: Path) -> VerificationError:
    """The error `PARITY_FAILED` of a parity that failed: the first reason, the worst figures, the groups concerned.

    Args:
        path: the file that was run.
    """
    what, fix = {
        "program": (
            "The exported program does not compute what the network computes.",
            "replace the operator that torch.export gets wrong; every artifact is made from this program.",
        ),
        "host": (
            f"The {parity.format} artifact does not compute what the network computes.",
            "export to another format, or replace the operator that the converter gets wrong.",
        ),
        "emulator": (
            f"The {parity.format} artifact does not compute on the emulated ARM64 phone what the network computes.",
            "export to another format, or replace the operator whose ARM kernel differs.",
        ),
        "gpu": (
            f"The {parity.format} artifact does not compute on the GPU path what the network computes.",
            "replace the operator whose shader differs, or aim at the phone's CPU.",
        ),
    }[parity.level]
    return VerificationError(what, where=str(path), why=_why(parity), fix=fix, code="PARITY_FAILED")


def _why(parity: Parity) -> str:
    """The first reason with the figures of its group, and which other groups failed."""
    failed = [group for group in parity.groups if group.reasons]
    parts = [parity.reasons[0]]
    if failed and (worst := failed[0].worst) is not None:
        parts.append(
            f"worst output {worst.name!r}: relative RMSE {worst.relative_rmse:.2g}, largest difference "
            f"{worst.max_abs:.3g}, cosine {worst.cosine:.6f} (n = {failed[0].samples})"
        )
    if len(failed) > 1:
        parts.append("also on " + ", ".join(group.name for group in failed[1:]))
    return "; ".join(parts) + "."


def _narrowed(case: Case, outputs: Sequence[int]) -> Case:
    """The case with those outputs only."""
    chosen = [case.outputs[index] for index in outputs]
    nudged = case.nudged and tuple(case.nudged[index] for index in outputs)
    return Case(case.group, tuple(chosen), nudged)


def _finite(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Which samples [N] have nothing but finite values in every output."""
    return np.logical_and.reduce([np.isfinite(o.reshape(len(o), -1)).all(axis=1) for o in outputs])


def _group(
    case: Case, found: Sequence[np.ndarray], names: Sequence[str], scales: Sequence[Scale], tolerance: Tolerance
) -> GroupParity:
    judged = np.ones(len(case.group.samples), bool)
    if case.group.edge:
        judged = _finite(case.outputs)
        tolerance = tolerance.at_edges()
        if not judged.any():
            return GroupParity(case.group.name, 0, (), ())
    outputs, reasons = [], []
    for index, (name, actual, wanted, scale) in enumerate(zip(names, found, case.outputs, scales)):
        actual, wanted, permitted = actual[judged], wanted[judged], tolerance
        if case.group.edge:
            scale = Scale.of(wanted).at_least(scale)
        if case.nudged is not None:
            permitted = _conditioned(tolerance, case.nudged[index][judged], wanted, scale)
        compared = compare(name, actual, wanted, permitted, scale)
        outputs.append(compared)
        reasons += _violations(compared, np.isfinite(wanted).all(), permitted)
    return GroupParity(case.group.name, int(judged.sum()), tuple(outputs), tuple(reasons))


def _conditioned(tolerance: Tolerance, nudged: np.ndarray, reference: np.ndarray, scale: Scale) -> Tolerance:
    """Limits that leave an artifact the room which rounding takes, where that is more than `tolerance`.

    `nudged` differs by float32's rounding; to first order a coarser one moves the outputs in proportion. An error as
    large as the outputs themselves is never permitted, however badly conditioned the network is.
    """
    moved = compare("", nudged, reference, tolerance, scale)
    growth = ROUNDINGS * tolerance.unit_roundoff / FP32.unit_roundoff
    return replace(
        tolerance,
        relative_rmse=min(1.0, max(tolerance.relative_rmse, growth * moved.relative_rmse)),
        max_abs_of_peak=min(1.0, max(tolerance.max_abs_of_peak, growth * moved.max_abs_of_peak)),
    )


def _violations(output: OutputParity, network_finite: bool, tolerance: Tolerance) -> list[str]:
    """Sentences, the most telling first."""
    if np.isnan(output.relative_rmse):
        side = "the artifact" if network_finite else "the network itself"
        return [f"{side} returned NaN or infinity in output {output.name!r}"]
    violations = []
    if output.relative_rmse > tolerance.relative_rmse:
        violations.append(
            f"output {output.name!r} has a relative RMSE of {output.relative_rmse:.2g}, above the "
            f"permitted {tolerance.relative_rmse:.2g}"
        )
    if output.max_abs_of_peak > tolerance.max_abs_of_peak:
        violations.append(
            f"output {output.name!r} is off by up to {output.max_abs_of_peak:.2g} of its largest value, above the "
            f"permitted {tolerance.max_abs_of_peak:.2g}"
        )
    if output.top1_agreement is not None and output.top1_agreement < tolerance.top1_agreement:
        violations.append(
            f"output {output.name!r} names the same class for {output.top1_agreement:.1%} of the "
            f"samples, below the required {tolerance.top1_agreement:.1%}"
        )
    return violations


def _task(reference: Reference, actual: np.ndarray) -> TaskParity | None:
    scores = reference.own.outputs[0]
    if reference.labels is None or scores.ndim != 2 or scores.shape[1] < 2:
        return None
    return TaskParity.of(actual, scores, reference.labels)


def _strict(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        key: repr(value) if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in figures.items()
    }


def _figures(data: dict[str, Any]) -> dict[str, Any]:
    return {key: float(value) if key != "name" and isinstance(value, str) else value for key, value in data.items()}
