"""`.ci/run` where the GPU's driver cannot be set up: without Debian's archive it goes on, otherwise it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from targets import debian

ROOT = Path(__file__).parents[1]
MAKEFILE = "setup test:\n\t@echo made $@\n"


def ran(folder: Path, complaint: str, exit_code: int) -> subprocess.CompletedProcess[str]:
    """`.ci/run` in a folder whose planish says `complaint` and ends with `exit_code`."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "complaint").write_text(complaint)
    planish = folder / ".venv" / "bin" / "planish"
    planish.parent.mkdir(parents=True)
    planish.write_text(f'#!/bin/sh\necho "$@"\ncat complaint >&2\nexit {exit_code}\n')
    planish.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run([folder / ".ci" / "run"], capture_output=True, text=True, check=False, env=environment)


def test_with_the_driver_all_is_tested(tmp_path):
    done = ran(tmp_path, "", 0)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.split("\n")[:3] == ["made setup", "targets setup pixel-4-gpu", "made test"]


def test_without_the_archive_it_says_so_and_goes_on(tmp_path):
    wrapped = debian.AGAIN.replace(" and ", "\n         and ")
    done = ran(tmp_path, f"  why:   the mirror is down\n  fix:   {wrapped}\n", 6)
    assert done.returncode == 0 and done.stdout.endswith("made test\n")
    assert "the mirror is down" in done.stderr and "tests of the GPU path are skipped" in done.stderr


def test_any_other_failure_fails(tmp_path):
    done = ran(tmp_path, "  why:   checksum mismatch\n  fix:   run the set-up again\n", 6)
    assert done.returncode != 0 and "made test" not in done.stdout and "checksum mismatch" in done.stderr
