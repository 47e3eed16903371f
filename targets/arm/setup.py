"""Sets up the ARM64 emulator in planish's cache, without root, and says whether it is there.

Four parts, each in a directory named after the hash of what it is made of, each built aside and renamed into place:

- `sysroot`: an arm64 Python 3.11 from Debian packages, with the aarch64 wheels of the runtimes; of ExecuTorch's only
  the libraries, and the runner of `.pte` programs, cross-compiled with a compiler that is thrown away
- `tools`: QEMU's user-mode emulator and LLVM's disassembler and core models, from Debian packages of this machine
- `plugin`: `simulator/*.c`, compiled here
- `pycache`: the byte code of a first start, which also proves that the other three work together

A fifth, `predecessor`, is TensorFlow Lite 2.14, under whose name apps still ship LiteRT, and the numpy it was built on.
Where it cannot be had, set-up goes on without.

Tested on Debian 12; its QEMU 7.2 is a build with plugins. It needs the network once and about 1 GB of disk.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from targets import debian
from targets.arm.parts import (
    COMPILE,
    COMPILER_PACKAGES,
    LLVM,
    PLUGIN,
    PREDECESSOR_WHEELS,
    QEMU,
    SIMULATOR,
    SITE,
    SYSROOT_PACKAGES,
    TOOL_PACKAGES,
    Emulator,
    emulator,
    environment_missing,
    is_ready,
    predecessor,
    require,
    wheels,
)
from targets.arm.qemu import run_python
from targets.debian import host_architecture, require_programs
from targets.errors import MissingEnvironmentError
from targets.parts import Progress, build_missing, damage, libraries, record_versions
from targets.profile import load_profile
from targets.runners import artifact, ending, executorch

__all__ = ["ensure", "is_ready", "require"]

PLATFORMS = tuple(f"manylinux{tag}_aarch64" for tag in ("_2_28", "_2_27", "_2_17", "2014", "_2_34"))  # best first
DISK_BYTES = 1_200_000_000

unpack = functools.partial(debian.unpack, missing=environment_missing)


def ensure(progress: Progress = lambda message: None) -> Emulator:
    """Build what is missing or damaged; with everything in place it returns at once. Safe to call from two processes.

    Raises:
        MissingEnvironmentError: `EMULATOR_MISSING`: programs, packages, network or disk space are missing.
    """
    places = emulator()
    home = places.sysroot.parent
    for tree in home.glob("tree-*"):  # of a cache that was moved: its links lead nowhere
        if not (tree / "usr").exists():
            shutil.rmtree(tree, ignore_errors=True)  # another process may be at it, too
    if is_ready():
        _ensure_predecessor(home, progress)
        return places
    require_programs(
        ["gcc", "apt-get", "dpkg", "dpkg-deb"],
        "on Debian or Ubuntu: `apt-get install gcc libc6-dev`; elsewhere use a container of Debian 12",
        environment_missing,
    )
    try:
        there = places.tools.exists() and places.sysroot.exists()
        steps = (
            (places.tools, _build_tools),
            (places.sysroot, _build_sysroot),
            (places.plugin, _build_plugin),
            (places.pycache, _build_pycache),
        )
        build_missing(home, steps, 0 if there else DISK_BYTES, progress, kept=".tree-")
    except OSError as error:
        raise environment_missing(
            "the ARM64 emulator could not be written to planish's cache",
            f"{home}: {error}",
            "free the space, or set PLANISH_CACHE to a writable directory",
        ) from error
    _ensure_predecessor(home, progress)
    progress("the ARM64 emulator is ready")
    return places


def _ensure_predecessor(home: Path, progress: Progress) -> None:
    """Without it everything works but its own measurements, which say so."""
    if not predecessor().exists() or damage(predecessor()):
        try:
            build_missing(home, ((predecessor(), _build_predecessor),), 0, progress, kept=".tree-")
        except (MissingEnvironmentError, OSError) as error:
            progress(f"going on without {PREDECESSOR_WHEELS[0]}: {getattr(error, 'why', error)}")


def _build_tools(into: Path, progress: Progress) -> None:
    # The C library comes with the machine's own dynamic loader; the two must be of one version.
    versions = unpack(TOOL_PACKAGES, host_architecture(), into, leave_out=("libc6",), progress=progress)
    keep = {into / QEMU, into / LLVM / "llvm-mc", into / LLVM / "llvm-mca"}
    for directory in ("usr/bin", LLVM):
        for program in (into / directory).iterdir():
            if program not in keep:
                program.unlink()
    shutil.rmtree(into / "usr/share")
    record_versions(into, versions)
    _check_runs([str(into / LLVM / "llvm-mca"), "--version"], into, "LLVM")
    if "-plugin" not in _check_runs([str(into / QEMU), "--help"], into, "QEMU"):
        raise environment_missing(
            "this system's QEMU takes no plugins",
            f"qemu-user {versions['qemu-user']} is built without plugins",
            "use Debian 12 (the tested system) or a container of it",
        )


def _check_runs(command: list[str], tools: Path, name: str) -> str:
    environment = {"LD_LIBRARY_PATH": libraries(tools)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise environment_missing(
            f"the {name} unpacked into planish's cache does not start",
            done.stderr.strip()[-300:],
            "use Debian 12 (the tested system) or a container of it",
        )
    return done.stdout


def _build_sysroot(into: Path, progress: Progress) -> None:
    versions = unpack(SYSROOT_PACKAGES, "arm64", into, progress=progress)
    progress(f"downloading aarch64 wheels: {', '.join(wheels())}")
    install_wheels(wheels(), into / SITE, environment_missing)
    _build_executorch_runner(into / SITE / "executorch", into.parent, progress)
    record_versions(into, versions)


def _build_predecessor(into: Path, progress: Progress) -> None:
    progress(f"downloading aarch64 wheels: {', '.join(PREDECESSOR_WHEELS)}")
    install_wheels(PREDECESSOR_WHEELS, into, environment_missing)
    record_versions(into, dict(wheel.split("==") for wheel in PREDECESSOR_WHEELS))


def install_wheels(wheels: Sequence[str], into: Path, missing: debian.Missing) -> None:
    """Install aarch64 wheels for the emulated Python, without what they depend on."""
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            str(into),
            "--only-binary=:all:",
            "--python-version",
            "3.11",
            "--implementation",
            "cp",
            "--no-deps",
            "--no-compile",
            *platforms,
            *wheels,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module named" in line]
        raise missing(
            f"aarch64 wheels could not be installed into planish's cache: {', '.join(wheels)}",
            "; ".join(errors)[-300:] or done.stderr.strip()[-300:],
            "check that `python -m pip download numpy` works here, then run the set-up again",
        )


def _build_executorch_runner(package: Path, scratch: Path, progress: Progress) -> None:
    """Compile the runner beside the libraries of the executorch `package`, and leave nothing else of the package."""
    with tempfile.TemporaryDirectory(prefix=".compiler.", dir=scratch) as unpacked:
        compiler = Path(unpacked)
        # The C library comes with the machine's own dynamic loader; the two must be of one version.
        unpack(COMPILER_PACKAGES, host_architecture(), compiler, leave_out=("libc6",), progress=progress)
        progress("compiling the runner of ExecuTorch programs")
        gxx = [str(compiler / "usr/bin/aarch64-linux-gnu-g++"), f"--sysroot={compiler}"]
        done = subprocess.run(
            executorch.compile_command(gxx, package, package / "lib" / executorch.LIBRARY, "$ORIGIN"),
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
            env={"LD_LIBRARY_PATH": libraries(compiler), "PATH": "/usr/bin:/bin"},
        )
    if done.returncode != 0:
        raise environment_missing(
            "the runner of ExecuTorch programs does not compile",
            executorch.compiler_complaint(done.stderr),
            "install the executorch release that planish asks for: `pip install --upgrade planish`",
        )
    kept = {executorch.LIBRARY, *(f"lib{library}.so" for library in executorch.LIBRARIES)}
    for entry in [*package.iterdir(), *(package / "lib").iterdir()]:
        if entry.is_dir() and entry.name != "lib":
            shutil.rmtree(entry)
        elif entry.is_file() and entry.name not in kept:
            entry.unlink()


def _build_plugin(into: Path, progress: Progress) -> None:
    progress("compiling the timing plugin")
    sources = [str(path) for path in sorted(SIMULATOR.glob("*.c"))]
    command = [*COMPILE, "-o", str(into / PLUGIN), *sources, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise environment_missing(
            "the timing plugin does not compile",
            executorch.compiler_complaint(done.stderr),
            "install the C library's headers: `apt-get install gcc libc6-dev`",
        )


def _build_pycache(into: Path, progress: Progress) -> None:
    progress("starting the emulated Python once")
    done = run_python(
        replace(emulator(), pycache=into),
        load_profile("pixel-4-cpu"),
        ["-c", f"import ctypes, onnxruntime, ai_edge_litert.interpreter; ctypes.CDLL('{artifact.EMULATED_RUNNER}')"],
        write_bytecode=True,
    )
    if done.returncode != 0:
        raise environment_missing(
            f"the emulated runtimes do not start ({ending(done.returncode)})",
            done.stderr.strip()[-300:] or "no output",
            "use Debian 12 (the tested system) or a container of it",
        )
