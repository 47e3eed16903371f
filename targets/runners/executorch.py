"""Compiles `executorch.cpp`, the runner of .pte programs, against the libraries of the executorch wheel.

The emulator's set-up does it for the emulated phone. For this machine it happens at the first .pte, in a second or two:
the same runner and the same release on both, and none of them needs libtorch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from targets.cache import cache_root, staged_directory
from targets.errors import MissingEnvironmentError

SOURCE = Path(__file__).with_name("executorch.cpp")
LIBRARY = "libplanish_executorch.so"
OPTIONS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-DC10_USING_CUSTOM_GENERATED_MACROS")
# Delegates and kernels register themselves when they are loaded, so they are linked whether or not they are called.
LIBRARIES = tuple(
    f"executorch{part}" for part in ("", "_threadpool", "_backend_xnnpack", "_kernels_optimized", "_kernels_quantized")
)


def compile_command(compiler: Sequence[str], package: Path, output: Path, runpath: str) -> list[str]:
    """The command that compiles the runner.

    Args:
        compiler: a C++ compiler with what it needs to find its parts.
        package: the executorch package, of the compiler's architecture.
        runpath: where the package's libraries will be when the runner is loaded.
    """
    headers = package / "include"
    return [
        *compiler,
        *OPTIONS,
        f"-isystem{headers}",
        f"-isystem{headers / 'executorch/runtime/core/portable_type/c10'}",
        str(SOURCE),
        "-o",
        str(output),
        f"-L{package / 'lib'}",
        "-Wl,--no-as-needed",
        *(f"-l{library}" for library in LIBRARIES),
        f"-Wl,-z,defs,-rpath,{runpath}",
    ]


def made_of() -> list[str]:
    """What the runner's content depends on, whichever machine it is for."""
    return [*OPTIONS, *LIBRARIES, SOURCE.read_text(encoding="utf-8")]


def library() -> Path:
    """The runner for this machine, compiled if need be.

    Raises:
        MissingEnvironmentError: `EXECUTORCH_RUNNER_MISSING`: no executorch package, no compiler, or it fails.
    """
    spec = importlib.util.find_spec("executorch")
    if spec is None:
        raise _missing("the executorch package is not installed", "`pip install executorch`")
    package = Path(spec.submodule_search_locations[0])
    key = json.dumps([*made_of(), str(package), importlib.metadata.version("executorch")])
    final = cache_root() / "executorch" / hashlib.sha256(key.encode()).hexdigest()[:12]
    if not (final / LIBRARY).exists():
        if shutil.which("g++") is None:
            raise _missing("not found on the PATH: g++", "on Debian or Ubuntu: `apt-get install g++`")
        try:
            with staged_directory(final) as staging:
                _compile(compile_command(["g++"], package, staging / LIBRARY, str(package / "lib")))
        except OSError as error:
            raise _missing(f"{final}: {error}", "set PLANISH_CACHE to a writable directory") from error
    return final / LIBRARY


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode != 0:
        raise _missing(f"it does not compile: {compiler_complaint(done.stderr)}", "use GCC 9 or newer as g++")


def compiler_complaint(stderr: str) -> str:
    """The first error a compiler or linker reported, with its line; else the end of what it said."""
    errors = [line for line in stderr.splitlines() if "error" in line.lower()]
    return errors[0] if errors else stderr.strip()[-300:] or "no output"


def _missing(why: str, fix: str) -> MissingEnvironmentError:
    return MissingEnvironmentError(
        "ExecuTorch programs (.pte) cannot be run on this machine",
        where="the ExecuTorch runner, which is compiled at the first .pte",
        why=why,
        fix=fix,
        code="EXECUTORCH_RUNNER_MISSING",
    )
