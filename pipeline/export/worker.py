"""The child's side of an export: load the saved network, convert it, write the result whole or not at all.

A converter runs here, in an interpreter of its own, because it is large, writes to the console as it pleases and can
take the whole process down. `child.py` starts this side, captures its output and reads its exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import importlib.metadata
import json
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.export.contract import Contract
from pipeline.export.conversion import Conversion, Request, fixed_at_batch_one
from pipeline.export.failure import explain
from pipeline.export.formats import FORMATS
from pipeline.export.memory import own_peak_mib
from pipeline.export.survey import survey

if TYPE_CHECKING:
    from torch.export import ExportedProgram

EXIT_FAILED, EXIT_MISSING_PACKAGE, EXIT_NO_ROOM = 1, 69, 73  # the last two are sysexits' EX_UNAVAILABLE, EX_CANTCREAT
FAILURE_MARK = "planish: failed: "
CONTRACT = "contract.json"
SPECIFICATION, FAILURE, COVERAGE = "specification.json", "failure.json", "coverage.json"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main() -> None:
    """Convert what the command line says; ends the process."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    parser = argparse.ArgumentParser(description="Started by pipeline.export.child; not meant to be run by hand.")
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("network", type=Path)
    parser.add_argument(
        "staging", type=Path, help="directory with the contract; for the artifact, the coverage or the failure"
    )
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--dry", action="store_true", help="write what becomes of each operator, no artifact")
    parser.add_argument("--progress-fd", type=int, required=True)
    options = parser.parse_args()
    with os.fdopen(options.progress_fd, "w", buffering=1) as progress:
        status = _Export(options, progress).run()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)  # without the exit handlers of native libraries, some of which hang or abort


class _Export:
    """One conversion from beginning to end, and where it stands."""

    def __init__(self, options: argparse.Namespace, progress) -> None:
        self._format, self._network, self._staging = FORMATS[options.format], options.network, options.staging
        contract = Contract.from_json(json.loads((options.staging / CONTRACT).read_bytes()))
        self._request = Request(options.format, options.channels_last, contract)
        self._dry, self._progress = options.dry, progress
        self._program: ExportedProgram | None = None  # None until the network has been read

    def run(self) -> int:
        """The exit status."""
        try:
            self._convert()
            return 0
        except Exception as error:  # whatever a converter raises is the message
            self._tell(error)
            if out_of_room(error):
                return EXIT_NO_ROOM
            return EXIT_MISSING_PACKAGE if isinstance(error, ImportError) else EXIT_FAILED

    def _convert(self) -> None:
        self._phase("loading the converter")
        versions = {name: importlib.metadata.version(name) for name in self._format.packages}
        converter = importlib.import_module(self._format.module).convert
        import torch

        self._phase("loading the network")
        self._program = fixed_at_batch_one(torch.export.load(self._network))
        if self._dry:
            told = survey(self._program, self._format.name, phase=self._phase)
            write_whole(self._staging / COVERAGE, json.dumps(told.to_json()).encode())
            return
        conversion = converter(self._program, self._request, self._phase)
        self._phase("writing the artifact")
        _write(self._staging / self._format.file, conversion.content)
        for name, content in conversion.beside.items():
            write_whole(self._staging / name, content)
        specification = json.dumps(_specification(conversion, self._request.contract, versions), indent=1).encode()
        write_whole(self._staging / SPECIFICATION, specification)

    def _phase(self, name: str) -> None:
        print(f"planish: {name}", flush=True)
        self._progress.write(name + "\n")

    def _tell(self, error: Exception) -> None:
        """To the parent by a file, to a reader by the log; the exit status must come through where both are full."""
        with contextlib.suppress(OSError):
            traceback.print_exc()
            failure = explain(error, self._program, self._format.name, phase=self._phase)
            print(FAILURE_MARK + failure.sentence, file=sys.stderr, flush=True)
            write_whole(self._staging / FAILURE, json.dumps(failure.to_json()).encode())


def out_of_room(error: BaseException | None) -> bool:
    """Whether a full disk, a quota or a file-size limit stands anywhere behind `error`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


def write_whole(path: Path, content: bytes) -> None:
    """Writes and syncs; a late "no space left" surfaces here and not after the rename."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, content: bytes | Mapping[str, bytes]) -> None:
    if isinstance(content, bytes):
        return write_whole(path, content)
    for name, part in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(path / name, part)


def _specification(conversion: Conversion, contract: Contract, versions: dict[str, str]) -> dict[str, object]:
    return {
        "runtime_minimum": conversion.runtime_minimum,
        "inputs": [asdict(spec) for spec in contract.of_inputs(conversion.inputs)],
        "outputs": [asdict(spec) for spec in contract.of_outputs(conversion.outputs)],
        "beside": list(conversion.beside),
        "delegation": conversion.delegation,
        "tool_versions": versions,
        "peak_mib": own_peak_mib(),
    }


def _die_with_parent() -> None:
    """Standard input is a pipe that nobody writes to; it ends when the parent does, however the parent was killed."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
