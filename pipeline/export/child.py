"""Runs a converter in a child interpreter: log captured, time and memory limited, the result whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.export import worker
from pipeline.export.artifact import Artifact, TensorSpec, bytes_of, sha256_of
from pipeline.export.contract import Contract
from pipeline.export.failure import Failure
from pipeline.export.formats import Format, format_named
from pipeline.export.memory import default_limit_mib, resident_mib
from pipeline.export.staging import move_into, staging_beside
from pipeline.process import give_back_memory
from targets.errors import MissingEnvironmentError, PlanishError, VerificationError

NOTHING_KNOWN = Contract()
_POLL_S = 0.1
_CODE_ROOT = Path(__file__).resolve().parents[2]


def export(
    network_pt2: Path,
    *,
    format: str,
    directory: Path,
    channels_last: bool = True,
    contract: Contract = NOTHING_KNOWN,
    timeout_s: float = 900,
    memory_limit_mib: float | None = None,
    log: Path,
    progress: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> Artifact:
    """Exports a saved network into `directory`, under the format's file name, replacing an earlier one.

    Args:
        network_pt2: a `torch.export` program saved in eval mode.
        format: name in `formats.FORMATS`.
        directory: where the artifact goes; created when missing.
        channels_last: inputs and outputs of rank 4 are NHWC where the format can have them so.
        contract: what an app must know of input and output; recorded with the artifact, and in it where it can be.
        timeout_s: wall-clock limit of the conversion, seconds.
        memory_limit_mib: limit of the memory that the conversion's processes hold together, MiB; by default 80 % of
            what is available at the start (`memory.SHARE`), and none where that is not known.
        log: file for everything the converter prints; overwritten.
        progress: called with the name of each phase as it starts.
        stop: ends the conversion when it is set, with `concurrent.futures.CancelledError`.

    Raises:
        UsageError: `UNKNOWN_FORMAT`.
        VerificationError: `EXPORT_FAILED`, `EXPORT_TIMEOUT`, `EXPORT_MEMORY`, `EXPORT_KILLED` (ended by a signal).
        MissingEnvironmentError: `DISK_FULL`, `OUTPUT_UNWRITABLE`, `EXPORTER_MISSING`.
    """
    row = format_named(format)
    started = time.monotonic()
    with worked(
        row,
        network_pt2,
        beside=directory,
        options=["--channels-last"] if channels_last else [],
        contract=contract,
        timeout_s=timeout_s,
        memory_limit_mib=memory_limit_mib,
        log=log,
        progress=progress,
        stop=stop,
    ) as (staging, peak_mib):
        specification = json.loads((staging / worker.SPECIFICATION).read_bytes())
        staged, beside = staging / row.file, specification["beside"]
        sha256, size = sha256_of(staged), bytes_of(staged)
        path = move_into(directory, staged, *(staging / name for name in beside))
    return Artifact(
        path,
        format,
        sha256,
        size,
        row.runtime,
        specification["runtime_minimum"],
        tuple(map(TensorSpec.from_json, specification["inputs"])),
        tuple(map(TensorSpec.from_json, specification["outputs"])),
        specification["tool_versions"],
        seconds=time.monotonic() - started,
        peak_mib=max(peak_mib, specification["peak_mib"]),  # the child's own count has no gaps
        beside=tuple(beside),
        delegation=specification["delegation"],
    )


@contextlib.contextmanager
def worked(
    format: Format,
    network_pt2: Path,
    *,
    beside: Path,
    options: Sequence[str] = (),
    contract: Contract = NOTHING_KNOWN,
    timeout_s: float,
    memory_limit_mib: float | None,
    log: Path,
    progress: Callable[[str], None] | None,
    stop: threading.Event | None = None,
) -> Iterator[tuple[Path, float]]:
    """Runs `worker` on a saved network; gives the directory with what it wrote, and its peak memory in MiB.

    The directory is on the file system of `beside` and goes when the block ends. Arguments and errors are `export`'s.
    """
    limits = _Limits(timeout_s, default_limit_mib() if memory_limit_mib is None else memory_limit_mib)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        beside.parent.mkdir(parents=True, exist_ok=True)
        with staging_beside(beside) as (staging, lock), log.open("wb") as captured:
            (staging / worker.CONTRACT).write_text(json.dumps(contract.to_json()))
            run = _run(
                _command(format, network_pt2, staging, options),
                captured=captured.fileno(),
                held=lock,
                limits=limits,
                progress=progress or (lambda phase: None),
                stop=stop or threading.Event(),
            )
            captured.write(f"planish: peak memory {run.peak_mib:.0f} MiB\n".encode())
            if run.status != 0:
                raise _failure(run, format, limits, network_pt2=network_pt2, staging=staging, log=log)
            yield staging, run.peak_mib
    except OSError as error:
        raise _environment_error(error, beside) from error


# --- the child ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Limits:
    seconds: float
    memory_mib: float | None


@dataclass(frozen=True)
class _Run:
    status: int | None  # exit status, minus the signal's number, or None when a limit ended it
    phase: str
    peak_mib: float  # as far as the polls saw it


def _command(format: Format, network_pt2: Path, staging: Path, options: Sequence[str]) -> list[str]:
    # -P: a file called onnx.py in the directory the user stands in must not be taken for the package.
    return [
        sys.executable,
        "-P",
        "-m",
        "pipeline.export.worker",
        format.name,
        str(network_pt2),
        str(staging),
        *options,
    ]


def _environment() -> dict[str, str]:
    """The child's: planish importable, and nothing that makes two runs differ.

    One thread is enough, since an export does no heavy arithmetic, and it keeps the order of additions in folded
    constants the same on every machine. The hash seed fixes the iteration order of sets in the converters.
    """
    paths = [str(_CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def _run(
    command: list[str],
    *,
    captured: int,
    held: int,
    limits: _Limits,
    progress: Callable[[str], None],
    stop: threading.Event,
) -> _Run:
    """Runs `command` to its end or a limit; on any way out of here its whole process group is gone."""
    deadline = time.monotonic() + limits.seconds
    phases, phases_in = os.pipe()
    process = None
    run = _Run(None, "starting the converter", 0.0)
    give_back_memory()
    try:
        process = subprocess.Popen(
            [*command, "--progress-fd", str(phases_in)],
            stdin=subprocess.PIPE,
            stdout=captured,
            stderr=captured,
            env=_environment(),
            pass_fds=(phases_in, held),
            start_new_session=True,
        )
        os.close(phases_in)
        phases_in = -1
        open_for_reading = [phases]
        while (status := process.poll()) is None:
            held_mib = resident_mib(process.pid)
            run = replace(run, peak_mib=max(run.peak_mib, held_mib))
            if time.monotonic() >= deadline or (limits.memory_mib is not None and held_mib > limits.memory_mib):
                return run
            if stop.is_set():
                raise CancelledError
            readable, _, _ = select.select(open_for_reading, [], [], _POLL_S)  # sleeps once the pipe is closed
            if readable:
                text = os.read(phases, 4096).decode()
                open_for_reading = open_for_reading if text else []
                for phase in text.splitlines():
                    run = replace(run, phase=phase)
                    progress(phase)
        return replace(run, status=status)
    finally:
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
        for descriptor in {phases, phases_in} - {-1}:
            os.close(descriptor)


# --- failures -----------------------------------------------------------------------------------------------------


def _failure(
    run: _Run, format: Format, limits: _Limits, *, network_pt2: Path, staging: Path, log: Path
) -> PlanishError:
    what, where = f"The network could not be exported to {format.title}.", str(network_pt2)
    read_log = f"read {log} for the converter's own words"
    if run.status is None and limits.memory_mib is not None and run.peak_mib > limits.memory_mib:
        return VerificationError(
            what,
            where=where,
            why=f"the converter held {run.peak_mib:.0f} MiB while {run.phase}, above its limit of "
            f"{limits.memory_mib:.0f} MiB, and was ended.",
            fix="free some memory, raise the limit, or export fewer formats at once.",
            code="EXPORT_MEMORY",
        )
    if run.status is None:
        return VerificationError(
            what,
            where=where,
            why=f"the converter had not finished after {limits.seconds:g} s; it was {run.phase}.",
            fix=f"allow more time, or {read_log}.",
            code="EXPORT_TIMEOUT",
        )
    if run.status < 0:
        name = signal.Signals(-run.status).name
        hint = ", which is how a system that runs out of memory ends a process" if name == "SIGKILL" else ""
        return VerificationError(
            what,
            where=where,
            why=f"the converter was ended by {name} while {run.phase}{hint}; it held up to {run.peak_mib:.0f} MiB.",
            fix=f"free some memory and try again, or {read_log}.",
            code="EXPORT_KILLED",
        )
    why = _last_failure(log) or f"the converter stopped with exit status {run.status} while {run.phase}."
    if run.status == worker.EXIT_NO_ROOM:
        return _disk_full(why, log.parent)
    if run.status == worker.EXIT_MISSING_PACKAGE:
        return MissingEnvironmentError(
            f"The converter to {format.title} cannot be loaded.",
            where=sys.executable,
            why=why,
            fix=f"pip install {' '.join(format.packages)}, or {read_log}.",
            code="EXPORTER_MISSING",
        )
    told = staging / worker.FAILURE
    if told.exists():
        return Failure.from_json(json.loads(told.read_bytes())).error(format.title, network=where, log=str(log))
    return VerificationError(what, where=where, why=why, fix=f"{read_log}.", code="EXPORT_FAILED")


def _last_failure(log: Path) -> str:
    """The sentence that the child distilled from its last exception; empty when it had no chance to."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next(
        (line.removeprefix(worker.FAILURE_MARK) for line in reversed(lines) if line.startswith(worker.FAILURE_MARK)), ""
    )


def _environment_error(error: OSError, directory: Path) -> MissingEnvironmentError:
    why = f"{error.strerror or error}: {error.filename or directory}"
    if worker.out_of_room(error):
        return _disk_full(why, directory)
    return MissingEnvironmentError(
        "The artifact cannot be written.",
        where=str(directory),
        why=why,
        fix="choose another output directory, or make this one writable.",
        code="OUTPUT_UNWRITABLE",
    )


def _disk_full(why: str, where: Path) -> MissingEnvironmentError:
    return MissingEnvironmentError(
        "There is no room left to write the export.",
        where=str(where),
        why=why,
        fix=f"free some space (see: df -h {where}) and run the command again.",
        code="DISK_FULL",
    )
