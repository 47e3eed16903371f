"""A worker module in an interpreter of its own on this machine: it is given a plan and leaves a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from targets.errors import PlanishError
from targets.runners import ending, unusable

ROOT = Path(__file__).parents[2]  # where the packages of this planish are, for the child


def result_of(
    worker: str,
    plan: Mapping[str, Any],
    artifacts: Sequence[Path],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """What `python -m worker PLAN.json RESULT.json` writes as its result.

    Args:
        worker: module with a `main` of two paths; a result with the key "error" says that an artifact is no use, that
            of the key "artifact" or the only one.
        artifacts: that the child runs, for errors.
        environment: variables to set beside those of this process.

    Raises:
        UsageError: `ARTIFACT_UNUSABLE`. PlanishError: `RUNTIME_FAILED`.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    with tempfile.TemporaryDirectory(prefix="planish-worker-") as scratch:
        plan_path, result_path = Path(scratch) / "plan.json", Path(scratch) / "result.json"
        plan_path.write_text(json.dumps(plan), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", worker, str(plan_path), str(result_path)],
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{inherited}", **environment},
        )
        if done.returncode != 0 or not result_path.exists():
            raise PlanishError(
                f"the runtime did not survive on this machine ({ending(done.returncode)})",
                where=", ".join(artifact.name for artifact in artifacts[:3]),
                why=" / ".join(done.stderr.strip().splitlines()[-3:]) or "no output",
                fix="run the same command again; if it fails the same way, report this with the artifact",
                code="RUNTIME_FAILED",
            )
        result = json.loads(result_path.read_text(encoding="utf-8"))
    if "error" in result:
        raise unusable(result.get("artifact", artifacts[0]), result["error"])
    return result
