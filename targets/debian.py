"""Debian packages of any architecture unpacked into a directory, without root and without touching the system.

apt runs on a state of its own: the machine's package sources and keyrings are used, so signatures are checked as
always, but lists, downloads and the (empty) list of installed packages live in a temporary directory. Packages of
another suite come from the mirror that these sources name. Tested on Debian 12.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from targets.errors import MissingEnvironmentError
from targets.parts import Progress

Missing = Callable[[str, str, str], MissingEnvironmentError]  # (what, why, fix) -> the error of the set-up that asks

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

# A mirror may be some days behind, and its list of packages with it; it is signed all the same.
SUITE_CONF = """\
Dir::Etc::SourceList "{state}/sources.list";
Dir::Etc::SourceParts "-";
APT::Default-Release "{suite}";
Acquire::Check-Valid-Until "false";
"""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TIMEOUT_S = 60  # without a byte

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
AGAIN = "connect to the network and run `planish targets setup` again"


@dataclass(frozen=True)
class Pin:
    """One package file of Debian's archive: where it lies below a mirror's base address, and its SHA-256."""

    package: str
    version: str
    path: str
    sha256: str


def require_programs(programs: Iterable[str], fix: str, missing: Missing) -> None:
    """Each program is on the PATH, or an error names those that are not and how to get them."""
    if absent := [program for program in programs if shutil.which(program) is None]:
        raise missing("the set-up cannot run on this machine", f"not found on the PATH: {', '.join(absent)}", fix)


def host_architecture() -> str:
    """Debian's name of this machine's architecture, e.g. `amd64`."""
    return _run(["dpkg", "--print-architecture"]).stdout.strip()


def unpack(
    packages: Iterable[str],
    architecture: str,
    into: Path,
    *,
    missing: Missing,
    suites: Sequence[str] = (),
    leave_out: tuple[str, ...] = (),
    progress: Progress,
) -> dict[str, str]:
    """Download `packages` with all they depend on and unpack them into `into`.

    Args:
        architecture: Debian's name, e.g. `arm64`.
        missing: makes the error.
        suites: of the archive's mirror, the preferred one last; those of the machine's own sources when not given.
        leave_out: names of dependencies that are downloaded but not unpacked.

    Returns: package name -> version, of what was unpacked.

    Raises:
        MissingEnvironmentError: no apt, no such package in the sources, no network, disk full.
    """
    packages = list(packages)
    with downloaded(packages, architecture, into.parent, missing, suites, progress) as archives:
        progress(f"unpacking {architecture} packages")
        versions = {}
        for archive in archives:
            package, version, _ = archive.stem.split("_")
            if package in leave_out:
                continue
            _extract(archive, into, package, architecture, missing)
            versions[package] = version.replace("%3a", ":")
            archive.unlink()
    return versions


@contextmanager
def downloaded(
    packages: Sequence[str],
    architecture: str,
    beside: Path,
    missing: Missing,
    suites: Sequence[str],
    progress: Progress,
) -> Iterator[dict[Path, str]]:
    """The package files of `packages` and all they depend on, as long as the block lasts; see `unpack`.

    Each file by name, and where on the mirror it came from, below the mirror's base address.
    """
    require_programs(["apt-get", "dpkg", "dpkg-deb"], "use Debian 12 (the tested system) or a container of it", missing)
    with tempfile.TemporaryDirectory(prefix=".apt.", dir=beside) as scratch:
        state = Path(scratch)
        for directory in ("lists/partial", "cache/archives/partial"):
            (state / directory).mkdir(parents=True)
        (state / "status").touch()
        conf = state / "apt.conf"
        conf.write_text(APT_CONF.format(architecture=architecture, state=state))
        if suites:
            base, signed = mirror(missing), f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
            (state / "sources.list").write_text("".join(f"deb {signed}{base} {suite} main\n" for suite in suites))
            conf.write_text(conf.read_text() + SUITE_CONF.format(state=state, suite=suites[-1]))
        progress(f"reading the {architecture} package lists")
        update = _run(["apt-get", "-c", str(conf), "-q", "update"])
        progress(f"downloading {', '.join(packages)} ({architecture})")
        install = ["apt-get", "-c", str(conf), "-q", "-y", "--download-only", "install", *packages]
        addresses = _run([*install, "--print-uris"]).stdout
        done = _run(install)
        if done.returncode != 0:
            raise _diagnose(packages, architecture, update.stdout + done.stdout, missing)
        found = {line.split()[1]: line.split()[0].strip("'") for line in addresses.splitlines() if line[:1] == "'"}
        yield {
            archive: "pool/" + found.get(archive.name, "").partition("/pool/")[2]
            for archive in sorted((state / "cache/archives").glob("*.deb"))
        }


def unpack_pinned(
    pins: Sequence[Pin], architecture: str, into: Path, *, missing: Missing, progress: Progress
) -> dict[str, str] | None:
    """Download exactly these package files and unpack them into `into`.

    Returns: package name -> version; None, and `into` as it was, when the mirror no longer has one of them.

    Raises:
        MissingEnvironmentError: no mirror, no network, or a file that is not what was pinned.
    """
    base = mirror(missing)
    with tempfile.TemporaryDirectory(prefix=".pool.", dir=into.parent) as scratch:
        archives = []
        for number, pin in enumerate(pins, start=1):
            progress(f"downloading {pin.package} {pin.version} ({architecture}, {number} of {len(pins)})")
            archive = Path(scratch) / f"{pin.package}.deb"
            if not _fetched(f"{base}{pin.path}", archive, pin, missing):
                return None
            archives.append(archive)
        progress(f"unpacking {architecture} packages")
        for pin, archive in zip(pins, archives):
            _extract(archive, into, pin.package, architecture, missing)
    return {pin.package: pin.version for pin in pins}


def mirror(missing: Missing) -> str:
    """The base address of Debian's archive, as the machine's own sources name it, with a slash at its end.

    Raises:
        MissingEnvironmentError: they name none.
    """
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    listed = _run(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]).stdout
    sources = [line.split() for line in listed.splitlines()]
    for source in sources:
        # the release itself, not its updates nor its backports, nor what others offer for it
        if len(source) == 2 and system.get("ID") == "debian" and source[0] == system.get("VERSION_CODENAME"):
            return source[1].rstrip("/") + "/"
    raise missing(
        "the set-up finds no mirror of Debian's archive",
        f"the apt sources of this machine name none ({system.get('PRETTY_NAME', 'no Debian')})",
        "use Debian 12 (the tested system) or a container of it",
    )


def _fetched(address: str, archive: Path, pin: Pin, missing: Missing) -> bool:
    """Whether the mirror has the file, which then lies at `archive` and is what was pinned."""
    what = f"{pin.package} {pin.version} could not be downloaded into planish's cache"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            return False
        raise missing(what, f"the mirror answers {error.code} {error.reason}", AGAIN) from error
    except OSError as error:
        raise missing(what, f"the download failed: {error}", AGAIN) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != pin.sha256:
        raise missing(
            f"{pin.package} {pin.version} is not the file that this planish was tested with",
            f"checksum mismatch: SHA-256 {digest} was downloaded, {pin.sha256} was pinned",
            "run the set-up again; if it happens again, something between this machine and the mirror changes files",
        )
    archive.write_bytes(content)
    return True


def _extract(archive: Path, into: Path, package: str, architecture: str, missing: Missing) -> None:
    done = _run(["dpkg-deb", "--extract", str(archive), str(into)])
    if done.returncode != 0:
        raise _diagnose([package], architecture, done.stdout, missing)


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


def _diagnose(packages: Sequence[str], architecture: str, log: str, missing: Missing) -> MissingEnvironmentError:
    """Turn apt's or dpkg's log into the error a user can act on."""
    what = f"{', '.join(packages)} ({architecture}) could not be installed into planish's cache"
    last = next(
        (line for line in reversed(log.splitlines()) if line.startswith(("E:", "W:", "Err:", "dpkg-deb"))),
        log.strip()[-200:],
    )
    if "No space left" in log or "enough free space" in log:
        return missing(what, "the disk is full", "free about 1 GB, or set PLANISH_CACHE to a larger disk")
    if "Unable to locate package" in log or "no installation candidate" in log:
        if any(sign in log for sign in NETWORK_SIGNS):
            return missing(what, f"the package lists could not be fetched: {last}", AGAIN)
        return missing(
            what,
            f"this machine's apt sources do not offer it for {architecture}: {last}",
            "use Debian 12 (the tested system); Ubuntu keeps arm64 on its ports mirror, which has to be added to the "
            "apt sources first",
        )
    if any(sign in log for sign in NETWORK_SIGNS):
        return missing(what, f"the download failed: {last}", AGAIN)
    return missing(what, last, "run `apt-get update` by hand to see whether apt works on this machine")
