"""What a block of code costs on a named core: LLVM's scheduling model, or the measured issue rules of an in-order core.

A block is never timed alone. If the code that usually follows it leads back to it, the blocks of that loop are timed
together in their steady state. If not, its cost is what it adds to the code that usually follows: the time of both less
the time of what follows, but no less than its instructions need of the pipes.

Every load also gets the cycles its data may be late without holding the core up: on an out-of-order core what it takes
to fill the window or the scheduler behind the load, on an in-order core what passes until an instruction reads the
register.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

from targets.arm import inorder, mca
from targets.arm.operands import operands_of
from targets.arm.parts import Emulator
from targets.cache import cache_root
from targets.core import Core

RULE = 9  # of the numbers in the cache; raise it with any change of how they come about
FOLLOWING = 160  # instructions that are timed behind straight code: more than most windows hold
LOOP_BLOCKS, LOOP_INSTRUCTIONS = 12, 480  # of the longest loop over several blocks

Text = tuple[str | None, ...]  # of a block: each instruction as llvm-mc writes it, None for one it does not know


@dataclass(frozen=True)
class Block:
    """A straight run of ARM64 machine code as QEMU translated it."""

    code: bytes  # 4 bytes an instruction
    successors: tuple[tuple[int, int], ...]  # (index of a block, how often it followed)

    @property
    def instructions(self) -> int:
        return len(self.code) // 4


@dataclass(frozen=True)
class Price:
    cycles: float
    late: tuple[float, ...]  # cycles for each instruction; 0 where it loads nothing


@dataclass(frozen=True)
class Region:
    """Code that is timed together: a loop, or a block and what follows it."""

    blocks: tuple[bytes, ...]
    loop: bool
    first: int = 0  # of a loop: the block asked for

    @property
    def key(self) -> bytes:
        sizes = struct.pack(f"={len(self.blocks) + 2}I", self.loop, self.first, *map(len, self.blocks))
        return hashlib.sha256(sizes + b"".join(self.blocks)).digest()[:16]


def prices(blocks: Sequence[Block], emulator: Emulator, core: Core) -> list[Price]:
    """The price of every block on `core`, from the cache where it has been asked before. Safe in parallel processes.

    Raises:
        PlanishError: `TIMING_FAILED` when an LLVM tool fails.
    """
    usual = [max(block.successors, key=lambda s: s[1], default=(None, 0))[0] for block in blocks]
    regions = [_region(blocks, usual, index) for index in range(len(blocks))]
    with closing(_open_cache(emulator, core)) as cache:
        known = {key: _unpack(cycles, late) for key, cycles, late in cache.execute("SELECT * FROM price")}
        missing = {region.key: region for region in regions if region.key not in known}
        fresh = dict(zip(missing, _price(list(missing.values()), emulator, core)))
        with cache:
            cache.executemany(
                "INSERT OR IGNORE INTO price VALUES (?, ?, ?)",
                [(key, price.cycles, struct.pack(f"={len(price.late)}f", *price.late)) for key, price in fresh.items()],
            )
    known |= fresh
    return [known[region.key] for region in regions]


def _region(blocks: Sequence[Block], usual: Sequence[int | None], index: int) -> Region:
    path, instructions, at = [index], blocks[index].instructions, usual[index]
    while at is not None and at != index and instructions < blocks[index].instructions + FOLLOWING:
        path.append(at)
        instructions += blocks[at].instructions
        at = usual[at]
    if at == index and len(path) <= LOOP_BLOCKS and instructions <= LOOP_INSTRUCTIONS:
        start = min(range(len(path)), key=lambda i: path[i])  # the same region for every block of the loop
        around = path[start:] + path[:start]
        return Region(tuple(blocks[i].code for i in around), loop=True, first=around.index(index))
    return Region(tuple(blocks[i].code for i in path), loop=False)


def _price(regions: list[Region], emulator: Emulator, core: Core) -> list[Price]:
    texts = mca.disassemble({code for region in regions for code in region.blocks}, emulator)
    if core.issue:
        return [_price_in_order(region, texts, core) for region in regions]
    asked: dict[tuple[Text, bool], None] = {}
    for region in regions:
        for text in _timed_together(region, texts):
            asked[text, region.loop] = None
        asked[texts[region.blocks[region.first]], False] = None
    timed = dict(zip(asked, mca.runs(asked, emulator, core)))
    found = []
    for region in regions:
        whole, *rest = (timed[text, region.loop] for text in _timed_together(region, texts))
        block, following = texts[region.blocks[region.first]], _following(region, texts)
        instructions = sum(len(code) // 4 for code in region.blocks)
        share = len(block) / instructions if region.loop else 1.0
        # What follows may leave room for the block, but no more than the pipes have.
        least = max(timed[block, False].bound, len(block) / core.dispatch_micro_ops)
        mine = max(share * whole.cycles - sum(run.cycles for run in rest), least)
        distances = run_ahead(block, following, core, max(1.0, whole.micro_ops / instructions))
        found.append(Price(mine, tuple(mine / len(block) * distance for distance in distances)))
    return found


def run_ahead(block: Text, following: Sequence[str | None], core: Core, micro_ops: float) -> list[int]:
    """How many instructions an out-of-order core goes on behind each load of `block` without its data; 0 for others.

    It stops when its window is full, or when the scheduler is full of vector instructions that wait for the data or for
    one another. Both hold micro-operations, of which an instruction makes `micro_ops` on average.
    """
    window, scheduler = int(core.window / micro_ops), core.scheduler / micro_ops
    code = [(" ".join(text.split()) if text else "") for text in (*block, *following)]
    distances = []
    for position in range(len(block)):
        operands = operands_of(code[position])
        if not code[position].startswith("ld") or not operands.results:
            distances.append(0)
            continue
        waiting, registers, end = 0, set(operands.results), min(len(code), position + 1 + window)
        distance = window
        for index in range(position + 1, end):
            operands = operands_of(code[index])
            reads = (*operands.sources, *operands.data, operands.accumulator, operands.merged)
            if registers.isdisjoint(reads):
                registers.difference_update(operands.results)
                continue
            registers.update(operands.results)
            waiting += 1
            if waiting >= scheduler:
                distance = index - position
                break
        distances.append(distance)
    return distances


def _following(region: Region, texts: dict[bytes, Text]) -> list[str | None]:
    """What runs behind the block asked for: of a loop, a few turns."""
    whole = [texts[code] for code in region.blocks]
    if not region.loop:
        return [text for part in whole[1:] for text in part]
    turn = [text for part in whole[region.first + 1 :] + whole[: region.first + 1] for text in part]
    return turn * (1 + FOLLOWING // len(turn))


def _timed_together(region: Region, texts: dict[bytes, Text]) -> list[Text]:
    """Of a loop its whole code; else the code with and without the block asked for."""
    whole = [texts[code] for code in region.blocks]
    return [sum(whole, ())] if region.loop or len(whole) == 1 else [sum(whole, ()), sum(whole[1:], ())]


def _price_in_order(region: Region, texts: dict[bytes, Text], core: Core) -> Price:
    whole = [texts[code] for code in region.blocks]
    block = whole[region.first]
    if region.loop:
        code = [text for part in whole[region.first :] + whole[: region.first] for text in part if text]
        cycles = inorder.block_cycles(code, core) * len(block) / sum(map(len, whole))
        late = inorder.lateness(block, 2 * code, core)
    else:
        following = [text for part in whole[1:] for text in part if text]
        code = [text for text in block if text]
        cycles = float(inorder.straight_cycles(code + following, core))
        cycles -= inorder.straight_cycles(following, core) if following else 0
        late = inorder.lateness(block, code + following, core)
    return Price(max(cycles, len(block) / core.dispatch_width / 2), late)


def _open_cache(emulator: Emulator, core: Core) -> sqlite3.Connection:
    directory = cache_root() / "arm" / "prices"
    directory.mkdir(parents=True, exist_ok=True)
    made_of = f"{emulator.versions['llvm']} {RULE} {core.version_text}"
    name = f"{core.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.sqlite"
    connection = sqlite3.connect(directory / name, timeout=60)
    connection.execute("CREATE TABLE IF NOT EXISTS price (key BLOB PRIMARY KEY, cycles REAL, late BLOB)")
    return connection


def _unpack(cycles: float, late: bytes) -> Price:
    return Price(cycles, struct.unpack(f"={len(late) // 4}f", late))


def packed(found: Iterable[Price]) -> bytes:
    """As the plugin wants them."""
    return b"".join(struct.pack(f"=d{len(price.late)}f", price.cycles, *price.late) for price in found)
