"""The conversation with the timing plugin: the chip it is to time, prices of the code it finds, records of what ran.

Messages are those of `simulator/plugin.c`, in native byte order.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from targets.arm import pricing
from targets.arm.pricing import Block, Price

CAUSES = ("branch", "l2", "l3", "dram")
RECORD = struct.Struct("=IIQ2d4d5Q4Q")
BLOCK = struct.Struct("=QI8I")


@dataclass(frozen=True)
class Record:
    """What one thread did in a stretch of its run; times in cycles."""

    label: int  # of the phase it ends; 0 within one
    call: int  # number of the system call at which it ended; 0: the end of the phase
    cycles: float  # that passed: of the core, by each cause, and waiting for other threads
    core_cycles: float
    stalls: dict[str, float]  # by cause
    instructions: int
    unpriced: int  # of them, in code that was not met before the prices were asked
    accesses: int
    branches: int
    mispredicted: int
    lines: dict[str, int]  # brought into the first cache, by where they came from


@dataclass
class Conversation:
    """Speaks with one plugin until it goes away. Errors of pricing end the emulator and are raised by `join`."""

    chip: bytes
    price: Callable[[Sequence[Block]], Sequence[Price]]
    calls: Sequence[int] = ()  # system calls of the main thread that end a record
    records: list[Record] = field(default_factory=list)
    _error: BaseException | None = None

    def __post_init__(self) -> None:
        self._mine, self.theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        """Once the emulator has its end."""
        self.theirs.close()
        self._thread.start()

    def join(self) -> None:
        """Wait for the plugin to go away; raises what went wrong with the prices."""
        self._thread.join()
        if self._error:
            raise self._error

    def close(self) -> None:
        """Without the plugin: its end is closed, too."""
        self.theirs.close()
        self._mine.close()

    def _serve(self) -> None:
        try:
            with self._mine, self._mine.makefile("rwb") as stream:
                stream.write(self.chip + struct.pack(f"={len(self.calls) + 1}Q", len(self.calls), *self.calls))
                stream.flush()
                while head := stream.peek(1)[:1]:
                    if head == b"B":
                        blocks = _read_blocks(stream)
                        stream.write(pricing.packed(self.price(blocks)))
                        stream.flush()
                    else:
                        self.records.append(_read_record(stream))
        except (OSError, EOFError):
            pass  # the emulator died; its exit status and its last words say why
        except BaseException as error:  # carried to the thread that waits
            self._error = error


def _read_record(stream: BinaryIO) -> Record:
    _, label, call, cycles, core, *rest = RECORD.unpack(_exactly(stream, RECORD.size))
    stalls, counts, lines = rest[:4], rest[4:9], rest[9:]
    return Record(label, call, cycles, core, dict(zip(CAUSES, stalls)), *counts, dict(zip(CAUSES, lines)))


def _read_blocks(stream: BinaryIO) -> list[Block]:
    _, count = struct.unpack("=2I", _exactly(stream, 8))
    blocks = []
    for _ in range(count):
        _address, instructions, *pairs = BLOCK.unpack(_exactly(stream, BLOCK.size))
        successors = tuple((index, times) for index, times in zip(pairs[::2], pairs[1::2]) if times)
        blocks.append(Block(_exactly(stream, 4 * instructions), successors))
    return blocks


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data
