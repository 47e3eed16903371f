"""Starts the emulated Python as a named core: a tree of links over the sysroot describes the phone to the runtimes.

QEMU looks every absolute path up below its `-L` directory first. The tree there links to the shared sysroot and adds
`/proc/cpuinfo` and `/sys/devices/system/cpu`, from which cpuinfo, and so XNNPACK and MLAS, learn the core's name and
choose the micro-kernels they would choose on the phone. Trees are never changed once made, so that several profiles can
be measured at the same time.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from targets.arm.parts import PLUGIN, QEMU, SITE, Emulator, part, predecessor
from targets.cache import staged_directory
from targets.profile import Profile
from targets.runners.artifact import PREDECESSOR

PROCESSOR = """\
processor\t: {index}
BogoMIPS\t: 38.40
Features\t: {features}
CPU implementer\t: {implementer:#04x}
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part:#05x}
CPU revision\t: 0

"""
RUNNERS = Path(__file__).parent.parent / "runners"  # where artifact.py is, which the guest imports


def tree(emulator: Emulator, profile: Profile) -> Path:
    """The `-L` directory of `profile`, made if need be."""
    core = profile.core
    cpuinfo = "".join(
        PROCESSOR.format(
            index=index, features=" ".join(core.features), implementer=core.implementer, part=core.midr_part
        )
        for index in range(profile.cores)
    )
    cpuinfo += f"Hardware\t: {profile.soc}\n"
    processors = "0\n" if profile.cores == 1 else f"0-{profile.cores - 1}\n"
    final = part(emulator.sysroot.parent, "tree", [emulator.sysroot.name, cpuinfo, processors])
    if not final.exists():
        with staged_directory(final) as staging:
            for entry in ("lib", "usr", "opt", "etc"):
                if (emulator.sysroot / entry).exists():
                    (staging / entry).symlink_to(emulator.sysroot / entry)
            (staging / "proc").mkdir()
            (staging / "proc/cpuinfo").write_text(cpuinfo)
            cpus = staging / "sys/devices/system/cpu"
            cpus.mkdir(parents=True)
            for name in ("possible", "present", "online"):
                (cpus / name).write_text(processors)
            (cpus / "kernel_max").write_text("255\n")
    return final


def command(emulator: Emulator, profile: Profile, arguments: list[str], *, wire: int | None = None) -> list[str]:
    """The command line that runs the emulated Python with `arguments`; run it with `environment(emulator)`.

    Args:
        wire: file descriptor of the socket on which to speak with the timing plugin, which is loaded only then.
    """
    plugin = []
    if wire is not None:
        library = str(emulator.plugin / PLUGIN).replace(",", ",,")
        plugin = ["-plugin", f"{library},wire={wire}"]
    return [
        str(emulator.tools / QEMU),
        "-L",
        str(tree(emulator, profile)),
        "-cpu",
        profile.core.qemu_cpu,
        "-seed",
        "1",
        *plugin,
        "-U",
        "LD_LIBRARY_PATH",
        str(emulator.sysroot / "usr/bin/python3.11"),
        *arguments,
    ]


def environment(emulator: Emulator, runtime: str | None = None, *, write_bytecode: bool = False) -> dict[str, str]:
    """QEMU's whole environment, which it hands on to the guest: nothing of the caller's, so that runs repeat.

    Args:
        runtime: `PREDECESSOR`, which comes with a numpy of its own; None for what the sysroot holds.
        write_bytecode: keep compiled modules in the emulator's byte-code directory; only set-up does.
    """
    path = [f"/{SITE}", str(RUNNERS)]
    if runtime == PREDECESSOR:
        path.insert(0, str(predecessor()))
    variables = {
        "LD_LIBRARY_PATH": emulator.libraries,
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_CORETYPE": "ARMV8",  # numpy's library trusts the identity of QEMU's core, whatever its features
        "PYTHONHOME": "/usr",
        "PYTHONPATH": ":".join(path),
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPYCACHEPREFIX": str(emulator.pycache),
    }
    return variables if write_bytecode else variables | {"PYTHONDONTWRITEBYTECODE": "1"}


def run_python(
    emulator: Emulator,
    profile: Profile,
    arguments: list[str],
    runtime: str | None = None,
    *,
    write_bytecode: bool = False,
) -> subprocess.CompletedProcess[str]:
    """The emulated Python run to its end, output captured; options as for `environment`."""
    return subprocess.run(
        command(emulator, profile, arguments),
        text=True,
        check=False,
        capture_output=True,
        env=environment(emulator, runtime, write_bytecode=write_bytecode),
        errors="replace",
    )
