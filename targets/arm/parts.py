"""The parts of the ARM64 emulator: what they are made of, where in the cache they belong, whether they are there."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from targets.cache import cache_root
from targets.errors import MissingEnvironmentError
from targets.parts import CONTENTS, damage, libraries, part, versions
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
PREDECESSOR_WHEELS = ("tflite-runtime==2.14.0", "numpy==1.26.4")  # LiteRT under its old name, built on numpy 1
SITE = "opt/planish/site"  # where the wheels lie inside the sysroot
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
        tools, sysroot = versions(self.tools), versions(self.sysroot)
        return {"qemu": tools["qemu-user"], "llvm": tools["llvm-22"], "libc": sysroot["libc6"]}

    @property
    def libraries(self) -> str:
        """`LD_LIBRARY_PATH` under which the tools find the libraries unpacked beside them."""
        return libraries(self.tools)


def emulator() -> Emulator:
    """The places the parts belong to, whether or not they are there."""
    home = (cache_root() / "arm").resolve()  # trees link to the sysroot: not through a link that may go away
    sysroot = part(home, "sysroot", [CONTENTS, *SYSROOT_PACKAGES, *wheels(), *executorch.made_of()])
    tools = part(home, "tools", [CONTENTS, *TOOL_PACKAGES])
    plugin = part(home, "plugin", [CONTENTS, *COMPILE, *plugin_sources()])
    return Emulator(sysroot, tools, plugin, part(home, "pycache", [sysroot.name, tools.name]))


def predecessor() -> Path:
    """The place of LiteRT's predecessor, whether or not it is there: nothing but its own figures needs it."""
    return part((cache_root() / "arm").resolve(), "predecessor", [CONTENTS, *PREDECESSOR_WHEELS])


def plugin_sources() -> list[str]:
    """The timing plugin's source files, as text."""
    return [path.read_text(encoding="utf-8") for path in sorted(SIMULATOR.glob("*.[ch]"))]


def emulator_parts() -> list[str]:
    """Names of the parts; each says by a hash what it is made of."""
    return [place.name for place in vars(emulator()).values()]


def is_ready() -> bool:
    """Whether every part is in place and whole, in the versions this planish wants."""
    return all(place.exists() and not damage(place) for place in vars(emulator()).values())


def require() -> Emulator:
    """The emulator, ready for use.

    Raises:
        MissingEnvironmentError: `EMULATOR_MISSING`, `EMULATOR_DAMAGED`, with the command that sets it up.
    """
    places = emulator()
    if not all(place.exists() for place in vars(places).values()):
        raise environment_missing("the ARM64 emulator is not set up", f"nothing usable in {cache_root() / 'arm'}", FIX)
    for place in vars(places).values():
        if harm := damage(place):
            raise MissingEnvironmentError(
                "the ARM64 emulator is damaged",
                where=str(place),
                why=harm,
                fix=f"{FIX}, which builds this part again",
                code="EMULATOR_DAMAGED",
            )
    return places


def require_predecessor() -> None:
    """Raises MissingEnvironmentError `EMULATOR_MISSING` where LiteRT's predecessor is not there, or not whole."""
    place = predecessor()
    harm = damage(place) if place.exists() else f"nothing in {place}"
    if harm:
        raise environment_missing(f"{PREDECESSOR_WHEELS[0]} is not set up", harm, FIX)


def wheels() -> list[str]:
    """The runtimes as installed here, so that host and emulator run the same release, and what they import."""
    return [NUMPY] + [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("ai-edge-litert", "onnxruntime", "executorch", "flatbuffers")
    ]
