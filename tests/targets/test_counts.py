"""Reading the blocks plugin's file."""

from __future__ import annotations

import struct

import pytest

from targets.arm.counts import Block, read_phases

MAPS = """\
400000-500000 r-xp 00000000 fe:00 1234      /cache/tree/usr/bin/python3.11
700000-800000 r-xp 00000000 fe:00 1235      /opt/planish/site/runtime/libruntime.so
900000-a00000 r-xp 00000000 fe:00 1236      /usr/lib/python3.11/lib-dynload/_ctypes.cpython-311-aarch64-linux-gnu.so
b00000-b10000 r-xp 00000000 fe:00 1237      /usr/lib/aarch64-linux-gnu/libffi.so.8.1.2
"""


def phase(label, *pairs):
    return struct.pack("=IIQ", ord("P"), label, len(pairs)) + b"".join(struct.pack("=QQ", *pair) for pair in pairs)


def block(address, code):
    return struct.pack("=IIQ", ord("B"), len(code) // 4, address) + code


def test_phases_by_label_without_the_harness(tmp_path):
    path = tmp_path / "counts.bin"
    path.write_bytes(
        b"PLNSBLK1"
        + phase(1, (0, 5), (1, 7), (2, 9))
        + phase(2, (1, 1), (3, 2))
        + block(0x400100, b"abcd")
        + block(0x700010, b"efghijkl")
        + block(0x900000, b"mnop")
        + block(0xB00000, b"qrst")
    )
    runtime = Block(0x700010, b"efghijkl")
    assert runtime.instructions == 2
    assert read_phases(path, MAPS) == {1: [(runtime, 7)], 2: [(runtime, 1)]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a counts file"),
        (b"PLNSBLK1" + phase(1, (0, 5)), "cut short"),
        (b"PLNSBLK1" + struct.pack("=IIQ", 99, 0, 0), "unknown record"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, why):
    path = tmp_path / "counts.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why):
        read_phases(path, MAPS)
