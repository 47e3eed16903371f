"""From counted blocks to milliseconds of a named core: LLVM's scheduling model of the core, block by block.

A block is disassembled by llvm-mc and handed to llvm-mca as a region that repeats; its steady-state cycles per
repetition times its executions, summed, are the core's cycles. The model is the core alone: every load hits the first
cache, every branch is predicted, and a block overlaps only with itself. Nothing is fitted.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

from targets.arm.counts import Phase
from targets.arm.parts import LLVM, Emulator
from targets.cache import cache_root
from targets.errors import PlanishError

ITERATIONS = 100
RULE = 1  # of the numbers in the cache; raise it with any change of what is asked of llvm-mca
BATCH = 2000  # blocks in one llvm-mca process


@dataclass(frozen=True)
class Timed:
    """One phase in the core's terms. `unmodelled_share`: of executed instructions, those the model has no entry for."""

    instructions: int
    cycles: float
    unmodelled_share: float


@dataclass(frozen=True)
class BlockCost:
    cycles: float  # a repetition, in steady state
    skipped: int  # instructions of the block without an entry in the model


def time_phases(phases: Iterable[Phase], emulator: Emulator, mca_cpu: str) -> list[Timed]:
    """Each phase's instructions and cycles on the core that `mca_cpu` models.

    Raises:
        PlanishError: `TIMING_FAILED` when an LLVM tool fails.
    """
    phases = list(phases)
    costs = block_costs({block.code for phase in phases for block, _ in phase}, emulator, mca_cpu)
    timed = []
    for phase in phases:
        instructions = sum(block.instructions * runs for block, runs in phase)
        skipped = sum(costs[block.code].skipped * runs for block, runs in phase)
        cycles = sum(costs[block.code].cycles * runs for block, runs in phase)
        timed.append(Timed(instructions, cycles, skipped / instructions if instructions else 0.0))
    return timed


def block_costs(codes: set[bytes], emulator: Emulator, mca_cpu: str) -> dict[bytes, BlockCost]:
    """Cost of every block, from the cache where it has been asked before. Safe in parallel processes."""
    keys = {code: hashlib.sha256(code).digest()[:16] for code in codes}
    with closing(_open_cache(emulator, mca_cpu)) as cache:
        known = {
            key: BlockCost(cycles, skipped)
            for key, cycles, skipped in cache.execute("SELECT key, cycles, skipped FROM block")
        }
        found = {code: known[key] for code, key in keys.items() if key in known}
        missing = sorted(codes - found.keys())
        text = _disassemble(missing, emulator) if missing else {}
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            fresh = dict(zip(batch, _analyse([text[code] for code in batch], emulator, mca_cpu)))
            found |= fresh
            with cache:
                cache.executemany(
                    "INSERT OR IGNORE INTO block VALUES (?, ?, ?)",
                    [(keys[code], cost.cycles, cost.skipped) for code, cost in fresh.items()],
                )
    return found


def _open_cache(emulator: Emulator, mca_cpu: str) -> sqlite3.Connection:
    directory = cache_root() / "arm" / "cycles"
    directory.mkdir(parents=True, exist_ok=True)
    version = emulator.versions["llvm"].replace(":", "-")
    connection = sqlite3.connect(directory / f"{mca_cpu}-llvm-{version}-rule{RULE}.sqlite", timeout=60)
    connection.execute("CREATE TABLE IF NOT EXISTS block (key BLOB PRIMARY KEY, cycles REAL, skipped INTEGER)")
    return connection


def _disassemble(codes: list[bytes], emulator: Emulator) -> dict[bytes, list[str | None]]:
    """Assembly of each block, one text an instruction, `None` for words LLVM does not know.

    Branch targets and page addresses come out as literal offsets, which the assembler reads back.
    """
    words = sorted({code[i : i + 4] for code in codes for i in range(0, len(code), 4)})
    done = _run(
        [str(emulator.tools / LLVM / "llvm-mc"), "--disassemble", "--triple=aarch64", "--mattr=+all"],
        "\n".join(" ".join(f"{byte:#04x}" for byte in word) for word in words),
        emulator,
    )
    unknown = {int(line.split(":")[1]) - 1 for line in done.stderr.splitlines() if ": warning: invalid" in line}
    known = iter(line.strip() for line in done.stdout.splitlines() if line.startswith("\t"))
    assembly = {word: None if index in unknown else next(known) for index, word in enumerate(words)}
    return {code: [assembly[code[i : i + 4]] for i in range(0, len(code), 4)] for code in codes}


def _analyse(blocks: list[list[str | None]], emulator: Emulator, mca_cpu: str) -> list[BlockCost]:
    """llvm-mca's cycles per repetition of each block."""
    lines = []
    for index, block in enumerate(blocks):
        lines += [f"# LLVM-MCA-BEGIN {index}", *(text for text in block if text), f"# LLVM-MCA-END {index}"]
    done = _run(
        [
            str(emulator.tools / LLVM / "llvm-mca"),
            "--mtriple=aarch64",
            f"--mcpu={mca_cpu}",
            "--mattr=+all",
            f"--iterations={ITERATIONS}",
            "--skip-unsupported-instructions=any",
            "--call-latency=1",
            "--all-views=false",
            "--summary-view",
            "--json",
        ],
        "\n".join(lines),
        emulator,
    )
    regions = {region["Name"]: region["SummaryView"] for region in json.loads(done.stdout)["CodeRegions"]}
    costs = []
    for index, block in enumerate(blocks):
        region = regions.get(str(index))  # absent when the model knows no instruction of the block
        modelled = region["Instructions"] // region["Iterations"] if region else 0
        costs.append(BlockCost(region["TotalCycles"] / region["Iterations"] if region else 0.0, len(block) - modelled))
    return costs


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
