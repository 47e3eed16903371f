"""Every way an export can fail: one readable error, the right code, nothing half-written."""

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from export_networks import save, saved
from torch import nn

from pipeline.export import child, worker
from pipeline.export.child import export
from pipeline.export.staging import PREFIX as STAGING_PREFIX
from targets.errors import MissingEnvironmentError, UsageError, VerificationError

pytestmark = pytest.mark.export
ROOT = Path(__file__).parents[3]


class SingularValues(nn.Module):
    """No mobile format has a singular value decomposition."""

    def forward(self, x):
        return torch.linalg.svdvals(x.mean(1))


class FixedReshape(nn.Module):
    """The batch of the example is a number in it."""

    def forward(self, x):
        return x.reshape(4, -1)


def left_behind(directory: Path) -> list[Path]:
    return [*directory.glob(f"{STAGING_PREFIX}*"), *directory.rglob("model.*")]


def running(command: str, monkeypatch) -> None:
    """Makes the child run `command` in place of the converter; `progress` is the pipe to the parent."""
    prelude = "import os, sys, time; progress = int(sys.argv[sys.argv.index('--progress-fd') + 1]); "
    monkeypatch.setattr(child, "_command", lambda *_: [sys.executable, "-c", prelude + command])


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie that waits for its parent counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_operator_the_converter_cannot_take(format, tmp_path):
    path = save(SingularValues(), tmp_path / "network.pt2")
    with pytest.raises(VerificationError) as caught:
        export(path, format=format, directory=tmp_path / format, log=tmp_path / "log")
    error = caught.value
    assert (error.code, error.exit_code) == ("EXPORT_FAILED", 4)
    assert "aten._linalg_svd" in error.why and len(str(error).splitlines()) == 4
    assert "Traceback" not in str(error) and "\n" not in error.why and len(error.why) < 350
    assert str(tmp_path / "log") in error.fix and "Traceback" in (tmp_path / "log").read_text()
    assert not left_behind(tmp_path)


def test_files_of_the_users_are_not_taken_for_packages(tmp_path, monkeypatch):
    """The user stands in a directory whose files share their names with packages."""
    for name in ("onnx.py", "torch.py"):
        (tmp_path / name).write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    path = save(FixedReshape(), tmp_path / "network.pt2", batch=4, symbolic=False)
    with pytest.raises(VerificationError) as caught:
        export(path, format="onnx", directory=tmp_path / "onnx", log=tmp_path / "log")
    assert caught.value.code == "EXPORT_FAILED" and "fixed batch of 4" in caught.value.why


def test_truncated_network(tmp_path):
    path = tmp_path / "network.pt2"
    path.write_bytes(saved("residual").read_bytes()[:1000])
    with pytest.raises(VerificationError) as caught:
        export(path, format="onnx", directory=tmp_path / "onnx", log=tmp_path / "log")
    assert caught.value.code == "EXPORT_FAILED" and not left_behind(tmp_path)


def test_unknown_format(tmp_path):
    with pytest.raises(UsageError) as caught:
        export(tmp_path / "network.pt2", format="tflight", directory=tmp_path, log=tmp_path / "log")
    assert "did you mean 'tflite'" in caught.value.why


def test_time_limit_ends_the_whole_process_group(tmp_path, monkeypatch):
    running(
        "import subprocess; p = subprocess.Popen(['sleep', '60']); os.write(progress, b'sleeping\\n'); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); p.wait()",
        monkeypatch,
    )
    with pytest.raises(VerificationError) as caught:
        export(saved("residual"), format="onnx", directory=tmp_path / "out", log=tmp_path / "log", timeout_s=5)
    assert caught.value.code == "EXPORT_TIMEOUT" and "sleeping" in caught.value.why
    assert wait_until(lambda: gone(int((tmp_path / "pid").read_text())), 5)
    assert not left_behind(tmp_path)


def test_time_limit_of_the_real_converter(tmp_path):
    with pytest.raises(VerificationError) as caught:
        export(saved("residual"), format="tflite", directory=tmp_path / "out", log=tmp_path / "log", timeout_s=1)
    assert caught.value.code == "EXPORT_TIMEOUT" and not left_behind(tmp_path)


def test_memory_limit_of_the_real_converter(tmp_path):
    with pytest.raises(VerificationError) as caught:
        export(saved("residual"), format="onnx", directory=tmp_path / "out", log=tmp_path / "log", memory_limit_mib=100)
    assert (caught.value.code, caught.value.exit_code) == ("EXPORT_MEMORY", 4)
    (held,) = re.findall(r"held (\d+) MiB while .* above its limit of 100 MiB", caught.value.why)
    assert int(held) > 100 and f"peak memory {held} MiB" in (tmp_path / "log").read_text()
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_converter_ended_by_a_signal(name, tmp_path, monkeypatch):
    running(
        f"import signal; os.write(progress, b'converting\\n'); time.sleep(0.3); os.kill(os.getpid(), signal.{name})",
        monkeypatch,
    )
    with pytest.raises(VerificationError) as caught:
        export(saved("residual"), format="onnx", directory=tmp_path / "out", log=tmp_path / "log")
    assert (caught.value.code, caught.value.exit_code) == ("EXPORT_KILLED", 4)
    assert f"{name} while converting" in caught.value.why
    assert ("memory" in caught.value.why) == (name == "SIGKILL")
    assert not left_behind(tmp_path)


def test_interrupt_ends_the_child(tmp_path, monkeypatch):
    running("os.write(progress, b'%d\\n' % os.getpid()); time.sleep(60)", monkeypatch)
    pids = []

    def interrupt(phase: str) -> None:
        pids.append(int(phase))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(saved("residual"), format="onnx", directory=tmp_path / "out", log=tmp_path / "log", progress=interrupt)
    assert gone(pids[0]) and not left_behind(tmp_path)


def test_child_dies_with_a_killed_parent_and_the_next_run_cleans_up(tmp_path, monkeypatch):
    code = (
        "import pathlib, sys; from pipeline.export.child import export; p = pathlib.Path(sys.argv[2]); "
        "export(pathlib.Path(sys.argv[1]), format='tflite', directory=p / 'out', log=p / 'log')"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(saved("residual")), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    log = tmp_path / "log"
    assert wait_until(lambda: log.exists() and "loading the network" in log.read_text())
    parent.kill()
    parent.wait()
    (staging,) = tmp_path.glob(f"{STAGING_PREFIX}*")

    def unlocked() -> bool:
        descriptor = os.open(staging, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    assert wait_until(unlocked), "the converter outlived its parent"
    running("sys.exit(3)", monkeypatch)
    with pytest.raises(VerificationError) as caught:
        export(saved("residual"), format="tflite", directory=tmp_path / "out", log=log)
    assert "exit status 3" in caught.value.why
    assert not left_behind(tmp_path)


def test_cleaning_spares_a_run_at_work(tmp_path, monkeypatch):
    dead, alive = tmp_path / f"{STAGING_PREFIX}dead", tmp_path / f"{STAGING_PREFIX}alive"
    for directory in (dead, alive):
        directory.mkdir()
        (directory / "model.onnx").write_bytes(b"half")
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    running("sys.exit(3)", monkeypatch)
    with pytest.raises(VerificationError):
        export(saved("residual"), format="onnx", directory=tmp_path / "out", log=tmp_path / "log")
    os.close(descriptor)
    assert not dead.exists() and (alive / "model.onnx").exists()


@pytest.mark.parametrize("format, package", [("onnx", "onnxsim"), ("pte", "executorch"), ("coreml", "coremltools")])
def test_converter_not_installed(format, package, tmp_path, monkeypatch):
    broken = tmp_path / "packages"
    broken.mkdir()
    (broken / f"{package}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')"
    )
    monkeypatch.setenv("PYTHONPATH", str(broken))
    with pytest.raises(MissingEnvironmentError) as caught:
        export(saved("residual"), format=format, directory=tmp_path / "out", log=tmp_path / "log")
    assert (caught.value.code, caught.value.exit_code) == ("EXPORTER_MISSING", 6)
    assert package in caught.value.why and package in caught.value.fix


def test_log_on_a_full_device(tmp_path):
    """The kernel's own ENOSPC, met by the child when it prints."""
    with pytest.raises(MissingEnvironmentError) as caught:
        export(saved("residual"), format="onnx", directory=tmp_path / "out", log=Path("/dev/full"))
    assert (caught.value.code, caught.value.exit_code) == ("DISK_FULL", 6)
    assert not left_behind(tmp_path)


@pytest.mark.slow
def test_no_room_for_the_artifact(tmp_path):
    """On a file system of 48 KiB where the system lets a test mount one, else under a file-size limit; it needs 80."""
    isolated = ["unshare", "--user", "--map-root-user", "--mount"]
    mounts = (
        shutil.which("unshare") is not None
        and subprocess.run([*isolated, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode
        == 0
    )
    limited, prepare, expected = (
        (isolated, f'mount -t tmpfs -o size=48k none "{tmp_path}"', errno.ENOSPC)
        if mounts
        else (["prlimit", "--fsize=16000"], "true", errno.EFBIG)
    )
    code = (
        "import pathlib, sys; from pipeline.export.child import export; from targets.errors import PlanishError\n"
        "disk = pathlib.Path(sys.argv[1])\n"
        "try: export(pathlib.Path(sys.argv[2]), format='onnx', directory=disk / 'out', log=disk / 'log')\n"
        "except PlanishError as error: print(error.code, error.exit_code, list(disk.iterdir()), error.why)"
    )
    finished = subprocess.run(
        [
            *limited,
            "sh",
            "-c",
            f'{prepare} && exec "$0" -c "$1" "$2" "$3"',
            sys.executable,
            code,
            str(tmp_path),
            str(saved("transformer")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert finished.stdout.startswith(f"DISK_FULL 6 [PosixPath('{tmp_path}/log')]"), finished
    assert os.strerror(expected) in finished.stdout


def test_output_directory_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingEnvironmentError) as caught:
        export(saved("residual"), format="onnx", directory=tmp_path / "file" / "out", log=tmp_path / "log")
    assert caught.value.code == "OUTPUT_UNWRITABLE"


def test_out_of_room_is_found_down_the_chain():
    full = RuntimeError("conversion failed")
    full.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert worker.out_of_room(full)
    assert not worker.out_of_room(OSError(errno.EACCES, "denied")) and not worker.out_of_room(None)
