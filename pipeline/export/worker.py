"""The child's side of an export: load the saved network, convert it, write the result whole or not at all.

A converter runs here, in an interpreter of its own, because it is large, writes to the console as it pleases and can
take the whole process down. `child.py` starts this side, captures its output and reads its exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.metadata
import json
import os
import re
import resource
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.export.artifact import TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram

EXIT_FAILED, EXIT_MISSING_PACKAGE, EXIT_NO_ROOM = 1, 69, 73  # the last two are sysexits' EX_UNAVAILABLE, EX_CANTCREAT
FAILURE_MARK = "planish: failed: "
SPECIFICATION = "specification.json"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REASON_LENGTH = 300


@dataclass(frozen=True)
class Conversion:
    """What a converter returns: the file's content and the contract read back from it."""

    model: bytes
    runtime: str
    runtime_minimum: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


Phase = Callable[[str], None]
Converter = Callable[["ExportedProgram", bool, Phase], Conversion]


def out_of_room(error: BaseException | None) -> bool:
    """Whether a full disk, a quota or a file-size limit stands anywhere behind `error`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


def reason(error: BaseException) -> str:
    """One sentence for a person: the first line of the exception at the root of the chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = next((line for line in str(error).splitlines() if line.strip()), "no message")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", first_line)
    plain = re.sub(r"<OpOverload\(op='([\w.:]+)'[^>]*>", r"\1", plain).strip()
    if len(plain) > _REASON_LENGTH:
        plain = plain[:_REASON_LENGTH].rsplit(" ", 1)[0] + " …"
    return f"{type(error).__name__}: {plain}"


def fixed_at_batch_one(program: ExportedProgram) -> ExportedProgram:
    """Exports `program` again with its symbolic batch dimension set to 1.

    Other symbolic dimensions take the size of the example that the network was saved with: an artifact's shapes are
    fixed, which is what mobile delegates need.

    Raises:
        ValueError: the batch dimension was saved as a constant other than 1.
    """
    import torch

    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    names = set(program.graph_signature.user_inputs)
    symbolic = [node.meta["val"] for node in placeholders if node.name in names]
    arguments, keywords = program.example_inputs
    if keywords:
        raise ValueError(f"the network takes keyword inputs ({', '.join(keywords)}); only positional ones are exported")
    examples = []
    for value, example in zip(symbolic, arguments, strict=True):
        batch = value.shape[0]
        if isinstance(batch, int) and batch != 1:
            raise ValueError(f"the network was saved for a fixed batch of {batch}, and an artifact runs at batch 1")
        examples.append(torch.zeros(1, *example.shape[1:], dtype=example.dtype))
    # The saved guards state what the example batch showed (often "at least 2"); batch 1 is traced anew here.
    return torch.export.export(program.module(check_guards=False), tuple(examples))


def run(converter: Converter, *, packages: Sequence[str]) -> None:
    """The `main` of a converter module; ends the process.

    Args:
        converter: from the program at batch 1 to the artifact's content.
        packages: distributions whose versions are recorded.
    """
    threading.Thread(target=_die_with_parent, daemon=True).start()
    parser = argparse.ArgumentParser(description="Started by pipeline.export.child; not meant to be run by hand.")
    parser.add_argument("network", type=Path)
    parser.add_argument("model", type=Path, help="file to write; the specification goes beside it")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--progress-fd", type=int, required=True)
    options = parser.parse_args()
    try:
        _convert(converter, options, packages)
        status = 0
    except Exception as error:
        # Whatever a converter raises is the message; the exit status must come through even when the log is full.
        status = (
            EXIT_NO_ROOM
            if out_of_room(error)
            else EXIT_MISSING_PACKAGE
            if isinstance(error, ImportError)
            else EXIT_FAILED
        )
        with contextlib.suppress(OSError):
            traceback.print_exc()
            print(FAILURE_MARK + reason(error), file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)  # without the exit handlers of native libraries, some of which hang or abort


def _convert(converter: Converter, options: argparse.Namespace, packages: Sequence[str]) -> None:
    with os.fdopen(options.progress_fd, "w", buffering=1) as progress:

        def phase(name: str) -> None:
            print(f"planish: {name}", flush=True)
            progress.write(name + "\n")

        phase("loading the converter")
        import torch

        phase("loading the network")
        program = fixed_at_batch_one(torch.export.load(options.network))
        conversion = converter(program, options.channels_last, phase)
        phase("writing the artifact")
        write_whole(options.model, conversion.model)
        specification = {
            "runtime": conversion.runtime,
            "runtime_minimum": conversion.runtime_minimum,
            "inputs": [asdict(spec) for spec in conversion.inputs],
            "outputs": [asdict(spec) for spec in conversion.outputs],
            "tool_versions": {name: importlib.metadata.version(name) for name in packages},
        }
        write_whole(options.model.with_name(SPECIFICATION), json.dumps(specification, indent=1).encode())
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"planish: peak memory {peak_mib:.0f} MiB", flush=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes and syncs; a late "no space left" surfaces here and not after the rename."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _die_with_parent() -> None:
    """Standard input is a pipe that nobody writes to; it ends when the parent does, however the parent was killed."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(EXIT_FAILED)
