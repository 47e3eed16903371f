"""Sets up the GPU path in planish's cache, without root: Mesa's drivers, which need no GPU, and the counting layer.

Debian sid has a Mesa on which LiteRT's accelerator starts, and which compiles for phones' GPUs; stable Debian has not.
sid's Mesa is linked to sid's C library, so the whole closure is unpacked, and Python is started by its dynamic loader
(`gpus.command`). sid moves on. These sources are tried in turn, and the part's `versions.json` says which it was:

1. `pinned`: the package files of `packages.csv`, by their SHA-256, while the mirror still has all of them
2. `sid`: the archive's current version, by its signature
3. `bookworm-backports`: an older Mesa that runs artifacts, more slowly, but knows no phones' GPUs

A driver counts as set up once LiteRT has run a network on it. ONNX Runtime's WebGPU provider is a package of its own
and comes along. Tested on Debian 12, amd64; about 0.4 GB, 0.4 GB more for Mali GPUs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from targets.arm import setup as arm_setup
from targets.debian import host_architecture, require_programs, unpack, unpack_pinned
from targets.errors import MissingEnvironmentError, PlanishError
from targets.gpu import process
from targets.gpu.gpus import GPUS
from targets.gpu.places import (
    DRIVER_PACKAGES,
    EMULATOR,
    HEADERS,
    LAYER,
    LAYER_LIBRARY,
    LAYER_OPTIONS,
    QEMU,
    SITE,
    WEBGPU,
    Places,
    environment_missing,
    is_ready,
    mali_wheels,
    pins,
    places,
)
from targets.parts import Progress, build_missing, libraries, record_versions
from targets.runners.executorch import compiler_complaint

SID = ("sid",)
FALLBACK = ("bookworm", "bookworm-backports")
WITHOUT_PHONES = tuple(package for package in DRIVER_PACKAGES if package != "mesa-drm-shim")
COMPILER_PACKAGES = ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross")  # for the layer; thrown away after set-up
KEPT = ("libvulkan_lvp.so", "libvulkan_freedreno.so", "libvulkan_panfrost.so")  # of Mesa's Vulkan drivers
DISK_BYTES = 1_000_000_000


def ensure(progress: Progress = lambda message: None, *, mali: bool = False) -> Places:
    """Build what is missing or damaged; with everything in place it returns at once. Safe to call from two processes.

    Args:
        mali: also what Mali GPUs need: an arm64 driver, and the ARM64 emulator.

    Raises:
        MissingEnvironmentError: `GPU_DRIVER_MISSING`, `EMULATOR_MISSING`: programs, packages, network or disk space
            are missing, or the driver does not work here.
    """
    if is_ready() and (not mali or is_ready(mali=True)):
        return places()
    require_programs(
        ["gcc", "apt-get", "dpkg", "dpkg-deb"],
        "on Debian or Ubuntu: `apt-get install gcc libc6-dev`; elsewhere use a container of Debian 12",
        environment_missing,
    )
    if mali:
        arm_setup.ensure(progress)
    found = places()
    home = found.driver.parent
    steps = [(found.driver, _build_driver), (found.layer, _build_layer), (found.webgpu, _build_webgpu)]
    if mali:
        steps += [(found.mali, _build_mali), (found.mali_layer, _build_mali_layer)]
    try:
        build_missing(home, steps, DISK_BYTES, progress)
    except OSError as error:
        raise environment_missing(
            "the GPU driver could not be written to planish's cache",
            f"{home}: {error}",
            "free the space, or set PLANISH_CACHE to a writable directory",
        ) from error
    progress("the GPU driver is ready")
    return found


def _build_driver(into: Path, progress: Progress) -> None:
    host = host_architecture()
    suites = _unpack_mesa(host, into, progress)
    with tempfile.TemporaryDirectory(prefix=".headers.", dir=into.parent) as scratch:
        _unpack(HEADERS, "headers", host, Path(scratch), suites, progress)
        shutil.move(Path(scratch) / "usr/include", into / "usr/include")
    progress("running a small network on the GPU driver")
    try:
        process.try_out(GPUS["software"], replace(places(), driver=into))
    except PlanishError as error:
        raise environment_missing(
            "the GPU driver unpacked into planish's cache does not work with this Python",
            error.why,
            "use Debian 12 (the tested system) or a container of it, with its python3 or one from python.org",
        ) from error


def _build_layer(into: Path, progress: Progress) -> None:
    _compile_layer(["gcc"], into, places().driver, {}, progress)


def _build_webgpu(into: Path, progress: Progress) -> None:
    progress(f"downloading {WEBGPU}")
    install = ["pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--no-deps"]
    done = subprocess.run(
        [sys.executable, "-m", *install, "--no-compile", "--target", str(into), WEBGPU],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise environment_missing(
            f"{WEBGPU} could not be installed into planish's cache",
            done.stderr.strip()[-300:],
            "check that `python -m pip download numpy` works here, then run the set-up again",
        )


def _build_mali(into: Path, progress: Progress) -> None:
    suites = _unpack_mesa("arm64", into, progress)
    (into / "lib").symlink_to("usr/lib")  # where the guest looks for its dynamic loader
    with tempfile.TemporaryDirectory(prefix=".qemu.", dir=into.parent) as scratch:
        _unpack(EMULATOR, "emulator", host_architecture(), Path(scratch), suites, progress)
        (into / QEMU).parent.mkdir()
        shutil.move(Path(scratch) / "usr/bin/qemu-aarch64", into / QEMU)
    arm_setup.install_wheels(mali_wheels(), into / SITE, environment_missing)


def _build_mali_layer(into: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix=".compiler.", dir=into.parent) as scratch:
        compiler = Path(scratch)
        # The C library comes with the machine's own dynamic loader; the two must be of one version.
        unpack(
            COMPILER_PACKAGES,
            host_architecture(),
            compiler,
            leave_out=("libc6",),
            missing=environment_missing,
            progress=progress,
        )
        gcc = [str(compiler / "usr/bin/aarch64-linux-gnu-gcc"), f"--sysroot={compiler}"]
        environment = {"LD_LIBRARY_PATH": libraries(compiler), "PATH": "/usr/bin:/bin"}
        _compile_layer(gcc, into, places().driver, environment, progress)


def _unpack_mesa(architecture: str, into: Path, progress: Progress) -> Sequence[str]:
    """Mesa with all it is linked to, from the first source that has it, and of its Vulkan drivers those in use.

    Returns: the suites that it came from.
    """
    versions = unpack_pinned(
        pins("driver", architecture), architecture, into, missing=environment_missing, progress=progress
    )
    suites, source = SID, "pinned"
    if not versions:
        versions, suites = _unpack_current(architecture, into, progress)
        source = suites[-1]
    for library in into.glob("usr/lib/*/libvulkan_*.so"):
        if library.name not in KEPT:
            library.unlink()
    for folder in (into / "usr/share").iterdir():
        if folder.name != "vulkan":
            shutil.rmtree(folder)
    record_versions(into, versions | {"source": source})
    return suites


def _unpack_current(architecture: str, into: Path, progress: Progress) -> tuple[dict[str, str], Sequence[str]]:
    progress("the pinned packages are no longer on the mirror: taking sid's current ones")
    settings = {"missing": environment_missing, "progress": progress}
    try:
        return unpack(DRIVER_PACKAGES, architecture, into, suites=SID, **settings), SID
    except MissingEnvironmentError:
        if architecture == host_architecture():  # another's is for phones' GPUs alone
            try:
                return unpack(WITHOUT_PHONES, architecture, into, suites=FALLBACK, **settings), FALLBACK
            except MissingEnvironmentError:
                pass
        raise  # what sid's packages said


def _unpack(package: str, group: str, architecture: str, into: Path, suites: Sequence[str], progress: Progress) -> None:
    """One package without what it depends on, or with it where it is no longer on the mirror as it was pinned."""
    settings = {"missing": environment_missing, "progress": progress}
    if suites != SID or not unpack_pinned(pins(group, architecture), architecture, into, **settings):
        unpack([package], architecture, into, suites=suites, **settings)


def _compile_layer(
    compiler: Sequence[str], into: Path, driver: Path, environment: dict[str, str], progress: Progress
) -> None:
    progress("compiling the counting layer")
    sources = [str(path) for path in sorted(LAYER.glob("*.c"))]
    output = into / LAYER_LIBRARY
    done = subprocess.run(
        [*compiler, *LAYER_OPTIONS, f"-I{driver / 'usr/include'}", "-o", str(output), *sources, "-lpthread"],
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
        env=environment or None,
    )
    if done.returncode != 0:
        raise environment_missing(
            "the counting layer does not compile",
            compiler_complaint(done.stderr),
            "install the C library's headers: `apt-get install gcc libc6-dev`",
        )
    for manifest in LAYER.glob("*.json"):
        shutil.copy(manifest, into)
