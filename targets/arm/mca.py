"""llvm-mc and llvm-mca: machine code to text, and text to cycles of the core that a scheduling model describes."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from targets.arm.corrections import corrected, mca_options
from targets.arm.parts import LLVM, Emulator
from targets.core import Core
from targets.errors import PlanishError

ITERATIONS = 100  # of a loop, for its steady state
BATCH = 2000  # regions in one llvm-mca process
NOTHING = {"TotalCycles": 0, "TotaluOps": 0, "BlockRThroughput": 0, "Iterations": 1}  # of code the model does not know


def disassemble(codes: Iterable[bytes], emulator: Emulator) -> dict[bytes, tuple[str | None, ...]]:
    """Assembly of each piece of code, one text an instruction, `None` for words LLVM does not know.

    Branch targets and page addresses come out as literal offsets, which the assembler reads back.
    """
    codes = list(codes)
    words = sorted({code[i : i + 4] for code in codes for i in range(0, len(code), 4)})
    if not words:
        return {}
    done = _run(
        [str(emulator.tools / LLVM / "llvm-mc"), "--disassemble", "--triple=aarch64", "--mattr=+all"],
        "\n".join(" ".join(f"{byte:#04x}" for byte in word) for word in words),
        emulator,
    )
    unknown = {int(line.split(":")[1]) - 1 for line in done.stderr.splitlines() if ": warning: invalid" in line}
    known = iter(line.strip() for line in done.stdout.splitlines() if line.startswith("\t"))
    assembly = {word: None if index in unknown else next(known) for index, word in enumerate(words)}
    return {code: tuple(assembly[code[i : i + 4]] for i in range(0, len(code), 4)) for code in codes}


@dataclass(frozen=True)
class Run:
    """One run of a piece of code: of a loop a turn in the steady state, else from a cold start."""

    cycles: float
    micro_ops: float
    bound: float  # cycles that its instructions need of the busiest pipe, whatever runs beside them


def runs(regions: Iterable[tuple[Sequence[str | None], bool]], emulator: Emulator, core: Core) -> list[Run]:
    """What each region (texts, loop) takes on the core's scheduling model."""
    regions = list(regions)
    found = [Run(0.0, 0.0, 0.0)] * len(regions)
    for loop in (True, False):
        chosen = [index for index, (texts, is_loop) in enumerate(regions) if is_loop == loop and any(texts)]
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            for index, run in zip(batch, _analyse([regions[i][0] for i in batch], loop, emulator, core)):
                found[index] = run
    return found


def _analyse(regions: list[Sequence[str | None]], loop: bool, emulator: Emulator, core: Core) -> list[Run]:
    lines = []
    for index, texts in enumerate(regions):
        lines += [
            f"# LLVM-MCA-BEGIN {index}",
            *(corrected(text, core) for text in texts if text),
            f"# LLVM-MCA-END {index}",
        ]
    done = _run(
        [
            str(emulator.tools / LLVM / "llvm-mca"),
            "--mtriple=aarch64",
            f"--mcpu={core.mca_cpu}",
            "--mattr=+all",
            f"--iterations={ITERATIONS if loop else 1}",
            "--skip-unsupported-instructions=any",
            "--call-latency=1",
            "--all-views=false",
            "--summary-view",
            "--json",
            *mca_options(core),
        ],
        "\n".join(lines),
        emulator,
    )
    # A region is absent when the model knows none of its instructions.
    summaries = {region["Name"]: region["SummaryView"] for region in json.loads(done.stdout)["CodeRegions"]}
    found = []
    for index in range(len(regions)):
        summary = summaries.get(str(index), NOTHING)
        turns = summary["Iterations"]
        bound = float(summary["BlockRThroughput"])
        found.append(Run(summary["TotalCycles"] / turns, summary["TotaluOps"] / turns, bound))
    return found


def _run(command: list[str], text: str, emulator: Emulator) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        input=text + "\n",
        capture_output=True,
        text=True,
        check=False,
        env={"LD_LIBRARY_PATH": emulator.libraries},
    )
    if done.returncode != 0:
        reasons = Counter(line for line in done.stderr.splitlines() if "error:" in line)
        raise PlanishError(
            "the executed code could not be timed",
            where=command[0],
            why="; ".join(list(reasons)[:3]) or f"exit status {done.returncode}",
            fix="report this with the artifact; `--target host` works meanwhile",
            code="TIMING_FAILED",
        )
    return done
