"""Tests run beside other work, and beside what their user has done with planish."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from targets.cache import cache_root

# Threads that spin while they wait would slow tests and other work down. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("beside other work", deadline=None)
settings.load_profile("beside other work")

USERS = cache_root()


def own_cache(folder: Path) -> str:
    """A cache in which the user's emulator and its timings are found, but not the results of the user's runs.

    What it takes a minute to learn of this machine, one test learns for all that come after it.
    """
    entries = {entry.name: entry for entry in (*LEARNED.iterdir(), *(USERS.iterdir() if USERS.is_dir() else ()))}
    for name, entry in entries.items():
        if name != "store":
            (folder / name).symlink_to(entry)
    return str(folder)


SESSION = tempfile.TemporaryDirectory(prefix="planish-tests-")
# Operators' times by the clock and ExecuTorch's runner as built: one place for all of xdist's workers, who inherit it.
LEARNED = Path(os.environ.setdefault("PLANISH_TESTS_LEARNED", f"{SESSION.name}/learned"))
for kind in ("costs", "executorch"):
    (LEARNED / kind).mkdir(parents=True, exist_ok=True)
# Here and not in a fixture: modules copy the environment for their subprocesses when they are imported.
os.environ["PLANISH_CACHE"] = own_cache(Path(tempfile.mkdtemp(dir=SESSION.name)))


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test is served what another made; what fixtures of a module make is shared through the session's store."""
    folder = Path(tempfile.mkdtemp(dir=SESSION.name))
    monkeypatch.setenv("PLANISH_CACHE", own_cache(folder))
    yield
    shutil.rmtree(folder, ignore_errors=True)  # a process that a test killed may have left children
