"""Debian packages of any architecture unpacked into a directory, without root and without touching the system.

apt runs on a state of its own: the machine's package sources and keyrings are used, so signatures are checked as
always, but lists, downloads and the (empty) list of installed packages live in a temporary directory. Tested on
Debian 12.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from targets.arm.parts import environment_missing
from targets.errors import MissingEnvironmentError

Progress = Callable[[str], None]

# The hooks of an installed system (cleaning its archives, refreshing its software centre) have no business here.
APT_CONF = """\
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "0";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
Dir::Log "{state}";
"""

NETWORK_SIGNS = (
    "Could not resolve",
    "Temporary failure",
    "Could not connect",
    "Unable to connect",
    "Connection refused",
    "Connection timed out",
    "Network is unreachable",
    "Failed to fetch",
)


def require_programs(programs: Iterable[str], fix: str) -> None:
    """Each program is on the PATH, or an error names those that are not and how to get them."""
    if absent := [program for program in programs if shutil.which(program) is None]:
        raise environment_missing(
            "the ARM64 emulator cannot be set up on this machine", f"not found on the PATH: {', '.join(absent)}", fix
        )


def host_architecture() -> str:
    """Debian's name of this machine's architecture, e.g. `amd64`."""
    return _run(["dpkg", "--print-architecture"]).stdout.strip()


def unpack(
    packages: Iterable[str], architecture: str, into: Path, *, leave_out: tuple[str, ...] = (), progress: Progress
) -> dict[str, str]:
    """Download `packages` with all they depend on and unpack them into `into`.

    Args:
        architecture: Debian's name, e.g. `arm64`.
        leave_out: names of dependencies that are downloaded but not unpacked.

    Returns: package name -> version, of what was unpacked.

    Raises:
        MissingEnvironmentError: `EMULATOR_MISSING`: no apt, no such package in the sources, no network, disk full.
    """
    require_programs(["apt-get", "dpkg", "dpkg-deb"], "use Debian 12 (the tested system) or a container of it")
    packages = list(packages)
    with tempfile.TemporaryDirectory(prefix=".apt.", dir=into.parent) as scratch:
        state = Path(scratch)
        for directory in ("lists/partial", "cache/archives/partial"):
            (state / directory).mkdir(parents=True)
        (state / "status").touch()
        conf = state / "apt.conf"
        conf.write_text(APT_CONF.format(architecture=architecture, state=state))
        progress(f"reading the {architecture} package lists")
        update = _run(["apt-get", "-c", str(conf), "-q", "update"])
        progress(f"downloading {', '.join(packages)} ({architecture})")
        install = _run(["apt-get", "-c", str(conf), "-q", "-y", "--download-only", "install", *packages])
        if install.returncode != 0:
            raise _diagnose(packages, architecture, update.stdout + install.stdout)
        progress(f"unpacking {architecture} packages")
        versions = {}
        for archive in sorted((state / "cache/archives").glob("*.deb")):
            package, version, _ = archive.stem.split("_")
            if package in leave_out:
                continue
            done = _run(["dpkg-deb", "--extract", str(archive), str(into)])
            if done.returncode != 0:
                raise _diagnose([package], architecture, done.stdout)
            versions[package] = version.replace("%3a", ":")
            archive.unlink()
    return versions


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """The command with its output, both streams together, in the language the diagnosis reads."""
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        errors="replace",
        stdin=subprocess.DEVNULL,
        env=os.environ
        | {
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
        },
    )


def _diagnose(packages: list[str], architecture: str, log: str) -> MissingEnvironmentError:
    """Turn apt's or dpkg's log into the error a user can act on."""
    what = f"{', '.join(packages)} ({architecture}) could not be installed into planish's cache"
    last = next(
        (line for line in reversed(log.splitlines()) if line.startswith(("E:", "W:", "Err:", "dpkg-deb"))),
        log.strip()[-200:],
    )
    if "No space left" in log or "enough free space" in log:
        return environment_missing(what, "the disk is full", "free about 1 GB, or set PLANISH_CACHE to a larger disk")
    if "Unable to locate package" in log or "no installation candidate" in log:
        if any(sign in log for sign in NETWORK_SIGNS):
            return environment_missing(
                what,
                f"the package lists could not be fetched: {last}",
                "connect to the network and run `planish targets setup` again",
            )
        return environment_missing(
            what,
            f"this machine's apt sources do not offer it for {architecture}: {last}",
            "use Debian 12 (the tested system); Ubuntu keeps arm64 on its ports mirror, which has to be added to the "
            "apt sources first",
        )
    if any(sign in log for sign in NETWORK_SIGNS):
        return environment_missing(
            what, f"the download failed: {last}", "connect to the network and run `planish targets setup` again"
        )
    return environment_missing(what, last, "run `apt-get update` by hand to see whether apt works on this machine")
