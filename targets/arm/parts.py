"""The parts of the ARM64 emulator: what they are made of, where in the cache they belong, and whether they are there.

A part's directory is named after the hash of what it is made of, so a new version of anything is a new directory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

from targets.cache import cache_root
from targets.errors import MissingEnvironmentError
from targets.runners import executorch

SYSROOT_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "zlib1g", "libgomp1", "libgcc-s1")
TOOL_PACKAGES = ("qemu-user", "llvm-22")
COMPILER_PACKAGES = ("g++-aarch64-linux-gnu",)  # for the ExecuTorch runner; thrown away after set-up
LLVM = "usr/lib/llvm-22/bin"
QEMU = "usr/bin/qemu-aarch64"
SIMULATOR = Path(__file__).with_name("simulator")
PLUGIN = "timing.so"
COMPILE = ("gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC")
NUMPY = "numpy==2.4.6"  # the guest is Python 3.11 whatever this Python is, so the host's numpy may not fit it
SITE = "opt/planish/site"  # where the wheels lie inside the sysroot
CONTENTS = "contents.json"  # of a part: every file with its size
FIX = "run `planish targets setup pixel-4-cpu`"


def environment_missing(what: str, why: str, fix: str) -> MissingEnvironmentError:
    """The one error of everything under `targets/arm`: code `EMULATOR_MISSING`, exit code 6."""
    return MissingEnvironmentError(what, where="the ARM64 emulator's set-up", why=why, fix=fix, code="EMULATOR_MISSING")


@dataclass(frozen=True)
class Emulator:
    """Where the parts are, and the versions of what decides a measurement."""

    sysroot: Path
    tools: Path
    plugin: Path
    pycache: Path

    @property
    def versions(self) -> dict[str, str]:
        """Versions of QEMU, LLVM and the C library, for a measurement's record."""
        tools, sysroot = _versions(self.tools), _versions(self.sysroot)
        return {"qemu": tools["qemu-user"], "llvm": tools["llvm-22"], "libc": sysroot["libc6"]}

    @property
    def libraries(self) -> str:
        """`LD_LIBRARY_PATH` under which the tools find the libraries unpacked beside them."""
        return libraries(self.tools)


def emulator() -> Emulator:
    """The places the parts belong to, whether or not they are there."""
    home = cache_root() / "arm"
    sysroot = part(home, "sysroot", [CONTENTS, *SYSROOT_PACKAGES, *wheels(), *executorch.made_of()])
    tools = part(home, "tools", [CONTENTS, *TOOL_PACKAGES])
    plugin = part(home, "plugin", [CONTENTS, *COMPILE, *plugin_sources()])
    return Emulator(sysroot, tools, plugin, part(home, "pycache", [sysroot.name, tools.name]))


def plugin_sources() -> list[str]:
    """The timing plugin's source files, as text."""
    return [path.read_text(encoding="utf-8") for path in sorted(SIMULATOR.glob("*.[ch]"))]


def emulator_parts() -> list[str]:
    """Names of the parts; each says by a hash what it is made of."""
    return [part.name for part in vars(emulator()).values()]


def is_ready() -> bool:
    """Whether every part is in place and whole, in the versions this planish wants."""
    return all(part.exists() and not damage(part) for part in vars(emulator()).values())


def require() -> Emulator:
    """The emulator, ready for use.

    Raises:
        MissingEnvironmentError: `EMULATOR_MISSING`, `EMULATOR_DAMAGED`, with the command that sets it up.
    """
    places = emulator()
    if not all(part.exists() for part in vars(places).values()):
        raise environment_missing("the ARM64 emulator is not set up", f"nothing usable in {cache_root() / 'arm'}", FIX)
    for part in vars(places).values():
        if harm := damage(part):
            raise MissingEnvironmentError(
                "the ARM64 emulator is damaged",
                where=str(part),
                why=harm,
                fix=f"{FIX}, which builds this part again",
                code="EMULATOR_DAMAGED",
            )
    return places


def record_contents(part: Path) -> None:
    """Note every file of a finished part with its size, for `damage`."""
    sizes = {str(file.relative_to(part)): file.lstat().st_size for file in part.rglob("*") if not file.is_dir()}
    (part / CONTENTS).write_text(json.dumps(sizes), encoding="utf-8")


def damage(part: Path) -> str | None:
    """What is wrong with the files of a part: some are gone or have another size. None where nothing is.

    Some thousand files are looked at in some hundredths of a second; their bytes are not read.
    """
    try:
        sizes = json.loads((part / CONTENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"its list of files cannot be read: {error}"
    wrong = [name for name, size in sizes.items() if _size(part / name) != size]
    if not wrong:
        return None
    return f"{len(wrong)} of its {len(sizes)} files are missing or have another size, {wrong[0]} first"


def _size(file: Path) -> int | None:
    try:
        return file.lstat().st_size
    except OSError:
        return None


def libraries(root: Path) -> str:
    """`LD_LIBRARY_PATH` under which programs unpacked into `root` find their libraries."""
    return ":".join(str(path) for base in ("usr/lib", "lib") for path in root.glob(f"{base}/*-linux-gnu"))


def wheels() -> list[str]:
    """The runtimes as installed here, so that host and emulator run the same release, and what they import."""
    return [NUMPY] + [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("ai-edge-litert", "onnxruntime", "executorch", "flatbuffers")
    ]


def part(home: Path, name: str, made_of: list[str]) -> Path:
    """Where the part `name` belongs that is made of `made_of`."""
    return home / f"{name}-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]}"


def _versions(part: Path) -> dict[str, str]:
    return json.loads((part / "versions.json").read_text(encoding="utf-8"))
