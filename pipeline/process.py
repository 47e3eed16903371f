"""Settings of a process that computes with torch on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt
_NEVER = 2**31 - 1


def settle() -> None:
    """Make torch quick on a CPU.

    Threads that spin while they wait make training ten times slower on a busy machine; torch reads how they are to wait
    when it loads. And glibc gives every large
    array back to the system at once, which has to clear the pages of the next one: with batches of photographs that
    takes longer than computing them. Here it keeps them.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if hasattr(_libc(), "mallopt"):
        _libc().mallopt(_MMAP_MAX, 0)
        _libc().mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back_memory() -> None:
    """Give what is kept and unused back to the system: a child is about to need it."""
    if hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL | None:
    """The C library, where it may be glibc; others have none of these functions."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None
