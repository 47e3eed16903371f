"""Several formats side by side, each in a child interpreter of its own; one that fails leaves the others alone."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from pipeline.export.artifact import Artifact
from pipeline.export.child import NOTHING_KNOWN, export
from pipeline.export.contract import Contract
from pipeline.export.formats import format_named
from pipeline.export.memory import SHARE, available_mib, default_limit_mib
from targets.errors import PlanishError

# What a conversion holds at its peak: the converter itself, litert-torch's being the largest, and copies of weights.
CONVERTER_MIB, COPIES = 700, 6
_POLL_S = 0.1


def export_all(
    network_pt2: Path,
    *,
    formats: Sequence[str],
    directory: Path,
    channels_last: bool = True,
    contract: Contract = NOTHING_KNOWN,
    timeout_s: float = 900,
    memory_limit_mib: float | None = None,
    logs: Path | None = None,
    progress: Callable[[str, str], None] | None = None,
) -> dict[str, Artifact | PlanishError]:
    """Exports a saved network to each of `formats`, at most as many at once as cores and memory bear.

    Args:
        formats: names in `formats.FORMATS`; one named twice is exported once.
        memory_limit_mib: of one conversion; by default all that run at once share `memory.SHARE` of what is available.
        logs: directory for `<format>.log`; by default `directory`.
        progress: called in this thread with a format and the name of the phase that it enters.
        (the others are those of `child.export`)

    Returns:
        For each format, in the order asked for, the artifact or the error that `child.export` raised. On an interrupt
        every conversion ends, and nothing half-written is left.

    Raises:
        UsageError: `UNKNOWN_FORMAT`, before anything is converted.
    """
    names = [format_named(name).name for name in dict.fromkeys(formats)]
    at_once = side_by_side(len(names), network_pt2)
    limit_mib = default_limit_mib(at_once) if memory_limit_mib is None else memory_limit_mib
    stop, said = threading.Event(), queue.SimpleQueue()

    def one(name: str) -> Artifact | PlanishError:
        try:
            return export(
                network_pt2,
                format=name,
                directory=directory,
                channels_last=channels_last,
                contract=contract,
                timeout_s=timeout_s,
                memory_limit_mib=limit_mib,
                log=(logs or directory) / f"{name}.log",
                progress=lambda phase: said.put((name, phase)),
                stop=stop,
            )
        except PlanishError as error:
            return error

    with ThreadPoolExecutor(at_once) as pool:
        running = {name: pool.submit(one, name) for name in names}
        try:
            while wait(running.values(), timeout=_POLL_S).not_done or not said.empty():
                while not said.empty():
                    spoken = said.get()
                    if progress is not None:
                        progress(*spoken)
            return {name: future.result() for name, future in running.items()}
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def side_by_side(formats: int, network_pt2: Path) -> int:
    """How many of `formats` conversions run at once: as many as there are cores, and as the memory to be had bears."""
    available = available_mib()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    peak_mib = CONVERTER_MIB + COPIES * (network_pt2.stat().st_size / 2**20 if network_pt2.exists() else 0)
    room = formats if available is None else int(SHARE * available / peak_mib)
    return max(1, min(formats, cores, room))
