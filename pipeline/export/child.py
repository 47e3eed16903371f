"""Runs a converter in a child interpreter: log captured, time limited, the result whole or absent.

The child writes into a directory beside the destination; the finished file is moved over in one rename. A run that was
killed leaves such a directory behind, and the next export removes it: the directory is locked as long as the run or its
child lives, so a lock that can be taken means that both are gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.export import worker
from pipeline.export.artifact import Artifact, TensorSpec, sha256_of, with_range
from pipeline.process import give_back_memory
from targets.errors import MissingEnvironmentError, PlanishError, UsageError, VerificationError, nearest

MODULES = {"onnx": "pipeline.export.onnx", "tflite": "pipeline.export.litert"}
STAGING_PREFIX = ".export-"
_POLL_S = 0.1
_CODE_ROOT = Path(__file__).resolve().parents[2]


def export(
    network_pt2: Path,
    *,
    format: str,
    directory: Path,
    channels_last: bool = True,
    input_range: tuple[float, float] | None = None,
    timeout_s: float = 900,
    log: Path,
    progress: Callable[[str], None] | None = None,
) -> Artifact:
    """Exports a saved network as `directory/model.<format>`, replacing an earlier one.

    Args:
        network_pt2: a `torch.export` program saved in eval mode, batch dimension symbolic or 1.
        format: `onnx` or `tflite`.
        directory: where the artifact goes; created when missing.
        channels_last: TFLite inputs and outputs of rank 4 are NHWC. ONNX stays NCHW.
        input_range: smallest and largest value of the calibration data, recorded with the first input.
        timeout_s: wall-clock limit of the conversion, seconds.
        log: file for everything the converter prints; overwritten.
        progress: called with the name of each phase as it starts.

    Raises:
        UsageError: `UNKNOWN_FORMAT`.
        VerificationError: `EXPORT_FAILED`, `EXPORT_TIMEOUT`, `EXPORT_KILLED` (ended by a signal).
        MissingEnvironmentError: `DISK_FULL`, `OUTPUT_UNWRITABLE`, `EXPORTER_MISSING`.
    """
    if format not in MODULES:
        raise UsageError(
            f"There is no export to {format!r}.",
            where="format",
            why=nearest(format, MODULES) + "Formats: " + ", ".join(MODULES) + ".",
            fix="name one of these.",
            code="UNKNOWN_FORMAT",
        )
    started = time.monotonic()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _staging_beside(directory) as (staging, lock), log.open("wb") as captured:
            model = staging / f"model.{format}"
            run = _run(
                _command(MODULES[format], network_pt2, model, channels_last),
                captured=captured.fileno(),
                held=lock,
                timeout_s=timeout_s,
                progress=progress or (lambda phase: None),
            )
            if run.status != 0:
                raise _failure(run, network_pt2=network_pt2, format=format, log=log, timeout_s=timeout_s)
            specification = json.loads((staging / worker.SPECIFICATION).read_bytes())
            sha256, size = sha256_of(model), model.stat().st_size
            directory.mkdir(exist_ok=True)
            path = directory / model.name
            os.replace(model, path)
            _sync(directory)
    except OSError as error:
        raise _environment_error(error, directory) from error
    return Artifact(
        path,
        format,
        sha256,
        size,
        specification["runtime"],
        specification["runtime_minimum"],
        with_range(list(map(TensorSpec.from_json, specification["inputs"])), input_range),
        tuple(map(TensorSpec.from_json, specification["outputs"])),
        specification["tool_versions"],
        seconds=time.monotonic() - started,
    )


# --- the child ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    status: int | None  # exit status, minus the signal's number, or None when the time limit ended it
    phase: str


def _command(module: str, network_pt2: Path, model: Path, channels_last: bool) -> list[str]:
    # -P: a file called onnx.py in the directory the user stands in must not be taken for the package.
    return [
        sys.executable,
        "-P",
        "-m",
        module,
        str(network_pt2),
        str(model),
        *(["--channels-last"] if channels_last else []),
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


def _run(command: list[str], *, captured: int, held: int, timeout_s: float, progress: Callable[[str], None]) -> _Run:
    """Runs `command` to its end or the deadline; on any way out of here its whole process group is gone."""
    deadline = time.monotonic() + timeout_s
    phases, phases_in = os.pipe()
    process = None
    phase = "starting the converter"
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
            if time.monotonic() >= deadline:
                return _Run(None, phase)
            readable, _, _ = select.select(open_for_reading, [], [], _POLL_S)  # sleeps once the pipe is closed
            if readable:
                text = os.read(phases, 4096).decode()
                open_for_reading = open_for_reading if text else []
                for phase in text.splitlines():
                    progress(phase)
        return _Run(status, phase)
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


def _failure(run: _Run, *, network_pt2: Path, format: str, log: Path, timeout_s: float) -> PlanishError:
    what, where = f"The network could not be exported to {format}.", str(network_pt2)
    read_log = f"read {log} for the converter's own words"
    if run.status is None:
        return VerificationError(
            what,
            where=where,
            why=f"the converter had not finished after {timeout_s:g} s; it was {run.phase}.",
            fix=f"allow more time, or {read_log}.",
            code="EXPORT_TIMEOUT",
        )
    if run.status < 0:
        name = signal.Signals(-run.status).name
        hint = ", which is how a system that runs out of memory ends a process" if name == "SIGKILL" else ""
        return VerificationError(
            what,
            where=where,
            why=f"the converter was ended by {name} while {run.phase}{hint}.",
            fix=f"free some memory and try again, or {read_log}.",
            code="EXPORT_KILLED",
        )
    why = _last_failure(log) or f"the converter stopped with exit status {run.status} while {run.phase}."
    if run.status == worker.EXIT_NO_ROOM:
        return _disk_full(why, log.parent)
    if run.status == worker.EXIT_MISSING_PACKAGE:
        return MissingEnvironmentError(
            f"The converter to {format} cannot be loaded.",
            where=sys.executable,
            why=why,
            fix=f"pip install planish again in this environment, or {read_log}.",
            code="EXPORTER_MISSING",
        )
    return VerificationError(
        what,
        where=where,
        why=why,
        code="EXPORT_FAILED",
        fix=f"replace the operator or layer named above, or {read_log}.",
    )


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


# --- the staging directory ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _staging_beside(directory: Path) -> Iterator[tuple[Path, int]]:
    """A fresh locked directory on the destination's file system, with the descriptor that holds its lock."""
    with _locked(directory.parent):  # so that nobody takes a new directory for a dead one before it is locked
        for leftover in directory.parent.glob(f"{STAGING_PREFIX}*"):
            _remove_if_dead(leftover)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=directory.parent))
        lock = os.open(staging, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield staging, lock
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_if_dead(leftover: Path) -> None:
    descriptor = os.open(leftover, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(leftover)
    except BlockingIOError:
        pass  # a run beside this one is at work in it
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
