"""How an artifact is run: on this machine by the clock, or on an emulated ARM64 core by simulation.

Both runners offer `time_artifacts` (several artifacts of one format, for `targets.measure`) and `run` (the artifact's
outputs on several samples, for checking parity). Artifacts are opened by `artifact.py` in a process of their own.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.errors import UsageError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """An artifact with the .npz of samples it is timed on."""

    artifact: Path
    inputs: Path


@dataclass(frozen=True)
class Timing:
    """What a runner saw of one artifact: a latency in milliseconds for each timed inference."""

    samples_ms: tuple[float, ...]
    runtime: str  # "ai-edge-litert 2.3.0"
    instructions: int | None  # executed by one inference; emulator only
    cycles: float | None
    state: dict[str, Any]  # versions of the tools, state of the machine
    rounds: tuple[int, ...] | None = None  # samples of each turn of this artifact; None: the runner repeats itself


def ending(returncode: int) -> str:
    """How a process ended, for an error: "exit status 1", "killed by SIGSEGV: Segmentation fault"."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}: {signal.strsignal(-returncode)}"
    except ValueError:
        return f"killed by signal {-returncode}"


def unusable(artifact: Path | str, why: str) -> UsageError:
    """The error for an artifact that its runtime does not load, or samples that do not fit it."""
    return UsageError(
        "the artifact cannot be run",
        where=str(artifact),
        why=why,
        fix="check the file's format, and that the samples have the artifact's input shapes, types and layout",
        code="ARTIFACT_UNUSABLE",
    )
