"""SIGKILL at random moments of a run: resumed, it ends in the same bytes, and nothing finished is made twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from pipeline.store.mark import read_mark, require_intact
from pipeline.store.run_directory import RunDirectory

ROOT = Path(__file__).parents[3]
STAGES, KILLS = 10, 20
# Ten stages, each made from the one before and of several files that are written slowly.
PROGRAM = f"""
import hashlib, sys, time
from pathlib import Path
from pipeline.store.run_directory import RunDirectory

root = Path(sys.argv[1])
run = RunDirectory.resume(root) if (root / "recipe.toml").exists() else RunDirectory.create(root, "")
print("begun", flush=True)
digest = ""
for i in range({STAGES}):
    name, before = f"candidates/{{i:02d}}/network", digest

    def make(folder):
        if (root / name / ".stage.json").exists():
            (root.parent / "made-twice").write_text(name)
        for j in range(5):
            (folder / f"{{j}}.bin").write_bytes(hashlib.sha256(f"{{before}} {{j}}".encode()).digest() * 4096)
            time.sleep(0.004)
        return hashlib.sha256(before.encode() + name.encode()).hexdigest()

    digest = run.stage(name, {{"before": before}}, make)
run.status(state="done", digest=digest)
"""


def start(root: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", PROGRAM, str(root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of every file that the stages made."""
    files = [path for path in root.rglob("*.bin")]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_killed_at_twenty_moments_a_run_ends_in_the_same_bytes(tmp_path: Path, monkeypatch) -> None:
    whole = tmp_path / "whole"
    began = time.monotonic()
    process = start(whole)
    assert process.stdout.readline() == "begun\n"
    begins_s, began = time.monotonic() - began, time.monotonic()
    process.communicate()
    lasts_s = time.monotonic() - began
    assert process.returncode == 0 and len(contents(whole)) == 5 * STAGES

    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))  # what the whole run made is not there
    moments, killed = random.Random(0), tmp_path / "killed"
    for _ in range(KILLS):
        process = start(killed)
        time.sleep(moments.uniform(begins_s / 2, begins_s + lasts_s / 5))
        process.kill()
        process.communicate()
        for mark in killed.rglob(".stage.json"):  # what is there is whole, at every moment
            require_intact(mark.parent, read_mark(mark.parent))
    process = start(killed)
    process.communicate()
    assert process.returncode == 0 and not (tmp_path / "made-twice").exists()
    assert contents(killed) == contents(whole) and not list(killed.rglob(".partial-*"))
    status = [json.loads((root / "status.json").read_text()) for root in (killed, whole)]
    assert status[0] == status[1]
    rows = [json.loads(line) for line in (killed / "events.ndjson").read_text().splitlines()]
    made = [row["stage"] for row in rows if row["event"] == "stage" and row["cached"] is False]
    assert len(made) == len(set(made)) and not [row for row in rows if row["event"] == "dropped"]

    fresh = RunDirectory.create(tmp_path / "fresh", "")
    shared = list(fresh.store.objects.glob("[!.]*"))
    for each in shared:  # killed while it was published, a result is whole in the store or not there
        require_intact(each, read_mark(each))
    assert len(shared) >= STAGES / 2
