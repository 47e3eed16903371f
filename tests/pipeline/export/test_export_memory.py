"""What /proc says: memory to be had, and memory held by a group of processes."""

import os
import subprocess
import sys

import pytest

from pipeline.export import memory
from pipeline.export.memory import available_mib, resident_mib

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


def test_a_group_holds_what_its_processes_hold():
    """Parent and child of one group; the child's memory counts, and nothing once they are gone."""
    child = "held = b'x' * (64 << 20); print('ready', flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"ready\n"
    assert 64 < resident_mib(process.pid) < 256
    process.communicate(b"\n")
    assert resident_mib(process.pid) == 0


def test_available_is_what_a_container_leaves(tmp_path, monkeypatch):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir(), cgroup.mkdir()
    (proc / "meminfo").write_text("MemTotal:  8388608 kB\nMemAvailable:  4194304 kB\n")
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_CGROUP", cgroup)
    assert available_mib() == 4096
    (cgroup / "memory.current").write_text(f"{1 << 30}\n")
    (cgroup / "memory.max").write_text("max\n")
    assert available_mib() == 4096
    (cgroup / "memory.max").write_text(f"{3 << 30}\n")
    assert available_mib() == 2048
    (proc / "meminfo").unlink()
    assert available_mib() is None


def test_own_group_is_resident():
    assert resident_mib(os.getpgid(0)) > 5


def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it():
    child = "from pipeline.export.memory import own_peak_mib; held = b'x' * (32 << 20); print(own_peak_mib())"
    parent = f"held = b'x' * (512 << 20); import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 32 < float(run.stdout) < 256
