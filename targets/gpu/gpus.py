"""GPUs that LiteRT can be started on without having one, and the command that does it.

`software` is lavapipe, which executes. The others are drivers of phones' GPUs over a kernel interface that does nothing
(Mesa's drm-shim): the delegate sees the vendor, chooses the kernels it would choose on the phone, and Mesa compiles
them to the GPU's own instructions; outputs mean nothing.

Every program runs under the C library that the driver is linked to: the unpacked dynamic loader is started with the
unpacked libraries, then Python, so that neither the system's loader nor its libraries take part.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from targets.arm import parts as arm
from targets.cache import cache_root
from targets.errors import UsageError, nearest
from targets.gpu.places import QEMU, SITE, Places, environment_missing
from targets.parts import libraries

Family = Literal["software", "adreno", "mali"]

RUNNERS = Path(__file__).parents[1] / "runners"  # where artifact.py is, which the worker imports
LAYER_NAME = "VK_LAYER_PLANISH_count"
# Settings of Vulkan's loader and of Mesa that the caller may have; a run depends on none of them.
SETTINGS = ("VK_", "MESA_", "GALLIUM_", "LP_", "TU_", "IR3_", "FD_", "PAN_", "DRI_", "LIBGL_")


@dataclass(frozen=True)
class Gpu:
    """A GPU that Mesa drives.

    Attributes:
        number: by which the shim knows it; nothing for lavapipe.
    """

    name: str
    family: Family
    title: str
    number: str = ""

    @property
    def is_mali(self) -> bool:
        return self.family == "mali"


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("software", "software", "lavapipe on this machine's processors"),
        Gpu("adreno-618", "adreno", "Adreno 618", "618"),
        Gpu("adreno-630", "adreno", "Adreno 630", "630"),
        Gpu("adreno-660", "adreno", "Adreno 660", "660"),
        Gpu("adreno-730", "adreno", "Adreno 730", "730"),
        Gpu("adreno-740", "adreno", "Adreno 740", "740"),
        Gpu("adreno-750", "adreno", "Adreno 750", "750"),
        Gpu("mali-g52", "mali", "Mali-G52 (Bifrost)", "7402"),
        Gpu("mali-g72", "mali", "Mali-G72 (Bifrost)", "6221"),
        Gpu("mali-g76", "mali", "Mali-G76 (Bifrost)", "7211"),
        Gpu("mali-g310", "mali", "Mali-G310 (Valhall)", "ac74"),
        Gpu("mali-g610", "mali", "Mali-G610 (Valhall)", "a867"),
    )
}

# GPUs that the shim does not know, and the one that stands in: of the same generation, with the same instructions.
STAND_INS = {
    "adreno-612": "adreno-618",
    "adreno-615": "adreno-618",
    "adreno-616": "adreno-618",
    "adreno-619": "adreno-618",
    "adreno-620": "adreno-618",
    "adreno-640": "adreno-630",
    "adreno-650": "adreno-660",
    "adreno-680": "adreno-630",
    "adreno-690": "adreno-660",
    "adreno-725": "adreno-730",
    "mali-g71": "mali-g72",
    "mali-g510": "mali-g310",
    "mali-g710": "mali-g610",
}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, or the one that stands in for it.

    Raises:
        UsageError: `GPU_UNKNOWN`.
    """
    known = [*GPUS, *STAND_INS]
    if name not in known:
        raise UsageError(
            f"no compiler for a GPU called '{name}'",
            where="the GPU of the target",
            why=f"known: {', '.join(known)}",
            fix=f"{nearest(name, known)}name one of them",
            code="GPU_UNKNOWN",
        )
    return GPUS[STAND_INS.get(name, name)]


def driven(name: str) -> Gpu | None:
    """The GPU of a profile, "Mali-G76 MP12", or what stands in for it; None when Mesa has no compiler for it here."""
    plain = re.sub(r"-m[pc]\d+$", "", name.lower().replace(" ", "-"))
    return GPUS.get(STAND_INS.get(plain, plain))


def command(gpu: Gpu, places: Places, arguments: Sequence[str]) -> list[str]:
    """The command line that runs Python with `arguments` on `gpu`; run it with `environment(gpu, places)`."""
    if gpu.is_mali:
        emulator = arm.emulator()
        guest = {
            "LD_LIBRARY_PATH": f"{libraries(places.mali)}:{libraries(emulator.sysroot)}",
            "LD_PRELOAD": str(_library(places.mali, "libpanfrost_noop_drm_shim.so", places.mesa(mali=True))),
        }
        settings = [part for name, value in guest.items() for part in ("-E", f"{name}={value}")]
        qemu = [str(places.mali / QEMU), "-cpu", "cortex-a76", "-L", str(places.mali), *settings]
        return [*qemu, str(emulator.sysroot / "usr/bin/python3.11"), *arguments]
    mesa = places.mesa(mali=False)
    loader = _library(places.driver, "ld-linux*.so.*", mesa)
    inherited = os.environ.get("LD_LIBRARY_PATH", "")
    paths = f"{libraries(places.driver)}:{inherited}".rstrip(":")
    shim = []
    if gpu.family == "adreno":
        shim = ["--preload", str(_library(places.driver, "libfreedreno_noop_drm_shim.so", mesa))]
    return [str(loader), *shim, "--library-path", paths, "--argv0", sys.executable, sys.executable, *arguments]


def environment(gpu: Gpu, places: Places, *, counted: bool, webgpu: bool = False) -> dict[str, str]:
    """The whole environment of a run.

    Args:
        counted: with the counting layer between the runtime and the driver.
        webgpu: with the ONNX Runtime that has a WebGPU provider in place of the one that is installed.
    """
    root = places.mali if gpu.is_mali else places.driver
    icd = {"software": "lvp", "adreno": "freedreno", "mali": "panfrost"}[gpu.family]
    variables = {
        "VK_DRIVER_FILES": str(root / f"usr/share/vulkan/icd.d/{icd}_icd.json"),
        "VK_LOADER_LAYERS_DISABLE": "~implicit~",
        "MESA_SHADER_CACHE_DIR": str(cache_root() / "gpu/shaders"),
        "OMP_NUM_THREADS": "1",
    }
    if counted:
        variables |= {
            "VK_LAYER_PATH": str(places.mali_layer if gpu.is_mali else places.layer),
            "VK_INSTANCE_LAYERS": LAYER_NAME,
        }
    if gpu.family == "adreno":
        variables["FD_GPU_ID"] = gpu.number
    if gpu.is_mali:
        emulator = arm.emulator()
        return variables | {
            "PAN_GPU_ID": gpu.number,
            "PAN_I_WANT_A_BROKEN_VULKAN_DRIVER": "1",  # Mesa asks for it before it drives some Malis
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "OPENBLAS_CORETYPE": "ARMV8",
            "PYTHONHOME": str(emulator.sysroot / "usr"),
            "PYTHONPATH": f"{emulator.sysroot / arm.SITE}:{places.mali / SITE}:{RUNNERS}",
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPYCACHEPREFIX": str(emulator.pycache),
        }
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*SETTINGS, "LD_"))}
    packages = [str(RUNNERS), *([str(places.webgpu)] if webgpu else []), os.environ.get("PYTHONPATH", "")]
    return kept | variables | {"PYTHONPATH": ":".join(packages).rstrip(":")}


def _library(root: Path, pattern: str, mesa: str) -> Path:
    """The library of an unpacked tree whose name fits.

    Raises:
        MissingEnvironmentError: `GPU_DRIVER_MISSING`: Mesa came from a suite that has no drivers for phones' GPUs.
    """
    for found in (*root.glob(f"usr/lib/*-linux-gnu/{pattern}"), *root.glob(f"lib/*-linux-gnu/{pattern}")):
        return found
    raise environment_missing(
        "the Mesa in planish's cache has no compilers for phones' GPUs",
        f"Mesa {mesa} comes without {pattern}",
        "delete the folder `gpu` of planish's cache and run the set-up again when the mirror has Debian sid",
    )
