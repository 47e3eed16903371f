"""Pins the current packages of Debian sid: writes packages.csv.

usage: python -m targets.gpu.pin       on Debian; then run tests/targets/gpu, and commit both together
"""

from __future__ import annotations

import csv
import hashlib
import tempfile
import urllib.parse
from pathlib import Path

from targets.debian import downloaded, host_architecture
from targets.gpu.places import DRIVER_PACKAGES, EMULATOR, HEADERS, PINS, environment_missing

COLUMNS = ("group", "architecture", "package", "version", "path", "sha256")


def main() -> None:
    host, rows = host_architecture(), []
    for group, packages, architecture in (
        ("driver", DRIVER_PACKAGES, host),
        ("driver", DRIVER_PACKAGES, "arm64"),
        ("headers", (HEADERS,), host),
        ("emulator", (EMULATOR,), host),
    ):
        with (
            tempfile.TemporaryDirectory(prefix="planish-pin-") as scratch,
            downloaded(packages, architecture, Path(scratch), environment_missing, ("sid",), print) as found,
        ):
            for archive, path in found.items():
                package, version, _ = urllib.parse.unquote(archive.stem).split("_")
                if group == "driver" or package in packages:  # of the others, not what they depend on
                    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
                    rows.append((group, architecture, package, version, path, digest))
    with open(PINS, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
