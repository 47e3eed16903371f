"""How much memory there is, and how much a group of processes holds.

Read from Linux's /proc. Elsewhere nothing is known of either: no limit is set by default and none is enforced.
"""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.8  # of the available memory that conversions may take together; the rest is for this process and the system
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_GROUP, _RESIDENT = 2, 21  # of the fields of /proc/<pid>/stat behind the command's name, see proc_pid_stat(5)


def available_mib() -> float | None:
    """Memory that can be had without swapping, MiB: the machine's, or what a container's limit leaves if it is less."""
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
        machine = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return machine if limit == "max" else min(machine, max(0.0, (int(limit) - int(used)) / 2**20))
    except OSError:  # no container, or one of the first version of control groups
        return machine


def default_limit_mib(at_once: int = 1) -> float | None:
    """What one of `at_once` conversions may hold: an equal part of `SHARE` of the available memory."""
    available = available_mib()
    return None if available is None else SHARE * available / at_once


def own_peak_mib() -> float:
    """The most that this process has held since it began its program, MiB; 0 where that is not known.

    Not `getrusage`: its maximum is inherited from the process that started this one.
    """
    try:
        lines = (_PROC / "self" / "status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0.0


def resident_mib(group: int) -> float:
    """Resident memory of all processes of a process group, MiB; pages that they share count for each."""
    pages = 0
    for process in _PROC.glob("[0-9]*/stat"):
        try:
            fields = process.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[_GROUP]) == group:
            pages += int(fields[_RESIDENT])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
