"""Reads what the blocks plugin wrote: how often each block of code ran in each phase, without the Python around it."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"PLNSBLK1"
# Executables of the harness. The runtimes' own Python bindings lie in one library with the runtime and are counted:
# a few thousand instructions an inference, as a Java or C++ caller would spend on its side.
HARNESS = re.compile(r"/(python3[^/]*|_ctypes[^/]*\.so|libffi\.so[^/]*)$")
MAP_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)")


@dataclass(frozen=True)
class Block:
    """A straight run of ARM64 machine code as QEMU translated it."""

    address: int
    code: bytes  # 4 bytes an instruction

    @property
    def instructions(self) -> int:
        return len(self.code) // 4


Phase = list[tuple[Block, int]]  # (block, executions), blocks of the harness left out


def read_phases(path: Path, maps: str) -> dict[int, Phase]:
    """The phases of a run by label.

    Args:
        path: the plugin's output.
        maps: the guest's /proc/self/maps at the end of the run, to tell the harness from the runtime.

    Raises:
        ValueError: the file is cut short or not the plugin's.
    """
    data = path.read_bytes()
    if data[:8] != MAGIC:
        raise ValueError(f"{path} is not a counts file")
    raw: dict[int, list[int]] = {}
    blocks: list[Block] = []
    offset = 8
    while offset < len(data):
        kind, small, large = struct.unpack_from("=IIQ", data, offset)
        offset += 16
        if kind == ord("P"):
            raw[small] = list(struct.unpack_from(f"={2 * large}Q", data, offset))
            offset += 16 * large
        elif kind == ord("B"):
            blocks.append(Block(large, data[offset : offset + 4 * small]))
            offset += 4 * small
        else:
            raise ValueError(f"{path}: unknown record {kind:#x} before byte {offset}")
    if not blocks:
        raise ValueError(f"{path} is cut short: the emulated program did not end")
    harness = _harness_ranges(maps)
    counted = [not any(start <= block.address < end for start, end in harness) for block in blocks]
    return {
        label: [(blocks[index], executions) for index, executions in zip(pairs[::2], pairs[1::2]) if counted[index]]
        for label, pairs in raw.items()
    }


def _harness_ranges(maps: str) -> list[tuple[int, int]]:
    lines = (MAP_LINE.match(line) for line in maps.splitlines())
    return [(int(line[1], 16), int(line[2], 16)) for line in lines if line and HARNESS.search(line[3].rstrip())]
