"""The real command, in this process and in one of its own, and samples with a pattern to learn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from tiny import CLASSES, SHAPE

from pipeline.cli.main import cli
from pipeline.export.staging import PREFIX

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-P", "-c", "from pipeline.cli.main import main; main()")
# One thread: these networks are so small that handing work to a second costs more than the work.
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}

PATIENCE_S = 840  # on a machine with other work; what takes longer than that hangs
MODEL = ("model.py:tiny", "--weights", "weights.safetensors", "--data", "labelled.npz", "--test", "test.npz")


def planish(*words: object) -> Result:
    """A command in this process: `exit_code`, `stdout`, `stderr`."""
    return CliRunner().invoke(cli, [str(word) for word in words])


def started(*words: object, customized: Path | None = None, **settings: Any) -> subprocess.Popen[str]:
    """A command in a process of its own, which hears SIGINT even where the tests run in the background and do not.

    Args:
        customized: folder of a sitecustomize.py, which Python runs before the command and before its children.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    environment = {**ENVIRONMENT, "PLANISH_CACHE": os.environ["PLANISH_CACHE"]}  # the test's own
    if customized:
        environment["PYTHONPATH"] = f"{customized}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"
    return subprocess.Popen([*COMMAND, *map(str, words)], env=environment, **{**pipes, **listening, **settings})


def finished(*words: object, customized: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, waited for."""
    process = started(*words, customized=customized)
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def wait_for(process: subprocess.Popen[str], when: Callable[[], bool]) -> None:
    """Returns as soon as `when` holds; it must hold before the process ends."""
    deadline = time.monotonic() + 300
    while not when():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.005)


def exporting(run: Path) -> bool:
    """Whether a network is being converted: only the run's own folder is read, what lies deeper comes and goes."""
    return any(run.glob(f"{PREFIX}*"))


def structured(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(x: [count, 3, 12, 12] float32, y: [count] int64): a pattern a class, under noise."""
    patterns = np.random.default_rng(0).normal(size=(CLASSES, *SHAPE))
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, count)
    return (patterns[y] + 3.0 * random.normal(size=(count, *SHAPE))).astype("float32"), y


def stages_of(run: Path, since: int = 0) -> dict[str, str | bool]:
    """Where each stage of a run first came from: False where it was made. Only events from `since` on are looked at."""
    return {event["stage"]: event["cached"] for event in reversed(events_of(run)[since:]) if event["event"] == "stage"}


def events_of(run: Path) -> list[dict[str, Any]]:
    """Every line of a run's event log, each of which is whole."""
    return [json.loads(line) for line in (run / "events.ndjson").read_text().splitlines()]
