"""The parts of the GPU path: what they are made of, where in the cache they belong, and whether they are there.

- `driver`: Mesa of Debian sid for this machine, with the Vulkan loader and the C library that they are linked to
- `layer`: `layer/*.c`, the counting layer, compiled for this machine
- `webgpu`: an ONNX Runtime with the WebGPU provider, which cannot be installed beside the usual one
- `mali`: Mesa for arm64, where its driver of Mali GPUs is, and a QEMU that starts LiteRT's GPU accelerator
- `mali-layer`: the counting layer for arm64

Those of Mali run in the Python of the ARM64 emulator's set-up.
"""

from __future__ import annotations

import csv
import importlib.metadata
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from targets.arm import parts as arm
from targets.cache import cache_root
from targets.debian import Pin
from targets.errors import MissingEnvironmentError
from targets.parts import CONTENTS, damage, part, versions

HERE = Path(__file__).parent
LAYER = HERE / "layer"
LAYER_LIBRARY = "libVkLayer_planish_count.so"  # as VkLayer_planish_count.json says
LAYER_OPTIONS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden")
PINS = HERE / "packages.csv"  # written by pin.py
DRIVER_PACKAGES = ("mesa-vulkan-drivers", "mesa-drm-shim", "libvulkan1", "libc6", "libstdc++6", "libgcc-s1")
HEADERS = "libvulkan-dev"  # of this package the headers alone
EMULATOR = "qemu-user"  # of this package the program alone, which is linked statically
WEBGPU = "onnxruntime-webgpu==1.27.0"
QEMU = "qemu/qemu-aarch64"  # in the part "mali"
SITE = "site"  # in the part "mali": what LiteRT's compiled model imports and its interpreter does not
FIX = "run `planish targets setup pixel-4-gpu`"
MALI_FIX = "run `planish targets setup galaxy-s10-exynos-gpu`"


def environment_missing(what: str, why: str, fix: str) -> MissingEnvironmentError:
    """The one error of everything that sets up the GPU path: code `GPU_DRIVER_MISSING`, exit code 6."""
    return MissingEnvironmentError(what, where="the GPU driver's set-up", why=why, fix=fix, code="GPU_DRIVER_MISSING")


@dataclass(frozen=True)
class Places:
    """Where the parts are."""

    driver: Path
    layer: Path
    webgpu: Path
    mali: Path
    mali_layer: Path

    def of(self, *, mali: bool) -> tuple[Path, ...]:
        """The parts for GPUs that this machine drives by itself, or for Mali GPUs."""
        return (self.mali, self.mali_layer) if mali else (self.driver, self.layer, self.webgpu)

    def mesa(self, *, mali: bool) -> str:
        """Mesa's version, and where it came from when it is not the one that was pinned: "26.2.6-1"."""
        found = versions(self.mali if mali else self.driver)
        source = "" if found["source"] == "pinned" else f" ({found['source']})"
        return found["mesa-vulkan-drivers"] + source


def places() -> Places:
    """The places the parts belong to, whether or not they are there."""
    home = cache_root() / "gpu"
    pinned = PINS.read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in sorted(LAYER.iterdir())]
    return Places(
        driver=part(home, "driver", [CONTENTS, *DRIVER_PACKAGES, HEADERS, pinned]),
        layer=part(home, "layer", [CONTENTS, *LAYER_OPTIONS, *sources]),
        webgpu=part(home, "webgpu", [CONTENTS, WEBGPU, sys.implementation.cache_tag]),
        mali=part(home, "mali", [CONTENTS, *DRIVER_PACKAGES, EMULATOR, pinned, *mali_wheels()]),
        mali_layer=part(home, "mali-layer", [CONTENTS, *LAYER_OPTIONS, *sources]),
    )


def mali_wheels() -> list[str]:
    """What the guest's LiteRT needs beside the wheels of the ARM64 emulator, as installed here."""
    return [f"ml_dtypes=={importlib.metadata.version('ml_dtypes')}"]


@cache
def pins(group: str, architecture: str) -> tuple[Pin, ...]:
    """The package files that planish was tested with; none for an architecture that it was not tested on."""
    with open(PINS, encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["group"], row["architecture"]) == (group, architecture)]
    return tuple(Pin(row["package"], row["version"], row["path"], row["sha256"]) for row in rows)


def is_ready(*, mali: bool = False) -> bool:
    """Whether every part is in place and whole, in the versions this planish wants."""
    ready = all(place.exists() and not damage(place) for place in places().of(mali=mali))
    return ready and (not mali or arm.is_ready())


def require(*, mali: bool = False) -> Places:
    """The parts, ready for use.

    Raises:
        MissingEnvironmentError: `GPU_DRIVER_MISSING`, `GPU_DRIVER_DAMAGED`, with the command that sets them up.
    """
    found, fix = places(), MALI_FIX if mali else FIX
    if mali:
        arm.require()
    if not all(place.exists() for place in found.of(mali=mali)):
        what = "the driver of Mali GPUs" if mali else "the software GPU driver"
        raise environment_missing(f"{what} is not set up", f"nothing usable in {cache_root() / 'gpu'}", fix)
    for place in found.of(mali=mali):
        if harm := damage(place):
            raise MissingEnvironmentError(
                "the software GPU driver is damaged",
                where=str(place),
                why=harm,
                fix=f"{fix}, which builds this part again",
                code="GPU_DRIVER_DAMAGED",
            )
    return found
