"""Which of a network's artifacts, and so which runtime, is the fastest on a target, if the measurements can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from targets.measure import Measurement
from targets.statistics import decide

# The emulator repeats itself, so its intervals do not hold what the timing model is wrong by. Between two artifacts on
# one core much of that is the same for both; a lead smaller than this is left undecided all the same.
EMULATED_LEAD = 1.05
RUNTIMES = {
    "tflite": "TFLite/XNNPACK",
    "onnx": "ONNX Runtime/MLAS",
    "ort": "ONNX Runtime/MLAS, ORT format",
    "pte": "ExecuTorch/XNNPACK",
}


@dataclass(frozen=True)
class Recommendation:
    """The fastest of several artifacts, or that it cannot be told."""

    decision: Literal["fastest", "undecided"]
    artifact: str  # the one with the lowest median
    runtime: str
    ratio: float  # median of the next by its median, at least 1
    text: str  # the same in a sentence

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def recommend(measured: Sequence[tuple[str, Measurement]]) -> Recommendation | None:
    """The fastest of (artifact's name, measurement) on one target with the same number of threads.

    The artifacts are taken to hold one network. The fastest is recommended when its whole interval lies below the
    interval of the next, on an emulated target by `EMULATED_LEAD` at least; else it is undecided. None for a single
    artifact: nothing is compared.

    Raises:
        ValueError: the measurements are of different targets, or of different numbers of threads.
    """
    if len({(m.target, m.profile_version, m.threads) for _, m in measured}) > 1:
        raise ValueError("measurements of different targets or threads cannot be compared")
    if len(measured) < 2:
        return None
    (name, best), (other_name, other) = sorted(measured, key=lambda pair: pair[1].median_ms)[:2]
    by_runtime = len({m.format for _, m in measured}) == len(measured)
    first, second = (RUNTIMES[best.format], RUNTIMES[other.format]) if by_runtime else (name, other_name)
    ratio = other.median_ms / best.median_ms
    lead = EMULATED_LEAD if best.runner == "emulator" else 1.0
    if decide(other.low_ms, other.high_ms, lead * best.high_ms) == "above":
        text = f"{first} is {ratio:.2f} times as fast as {second} here: ship {name}"
        return Recommendation("fastest", name, RUNTIMES[best.format], ratio, text)
    text = f"undecided: {first} and {second} are too close to tell which is faster here ({ratio:.2f} times)"
    return Recommendation("undecided", name, RUNTIMES[best.format], ratio, text)
