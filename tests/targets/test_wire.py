"""The conversation with the plugin, held with one that is played here: what it is told, what it tells, how it ends."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from targets.arm import wire
from targets.arm.pricing import Block, Price
from targets.arm.wire import Conversation, Record

CHIP = struct.pack("=3d", 1.5, 2.5, 3.5)
LOOP, STRAIGHT = b"\1\0\0\0\2\0\0\0", b"\3\0\0\0"
JOIN_S = 5.0  # a conversation that takes longer hangs


class Plugin:
    """The emulator's end of the conversation."""

    def __init__(self, conversation: Conversation) -> None:
        self.socket = socket.socket(fileno=os.dup(conversation.theirs.fileno()))
        self.socket.settimeout(JOIN_S)
        conversation.start()

    def get(self, layout: str) -> tuple:
        size, data = struct.calcsize(layout), b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "planish hung up"
            data += more
        return struct.unpack(layout, data)

    def tell(self, layout: str, *values: float) -> None:
        self.socket.sendall(struct.pack(layout, *values))

    def ask_prices(self) -> None:
        """Two blocks: a loop of two instructions that is followed by itself or by the other."""
        self.tell("=2I", ord("B"), 2)
        self.tell("=QI8I", 0x1000, 2, 0, 90, 1, 10, 0, 0, 0, 0)
        self.socket.sendall(LOOP)
        self.tell("=QI8I", 0x1008, 1, *[0] * 8)
        self.socket.sendall(STRAIGHT)

    def record(self, label: int, call: int, cycles: float) -> None:
        self.tell("=IIQ2d4d5Q4Q", ord("P"), label, call, cycles, 60.0, *(1.0, 2.0, 3.0, 4.0), *range(5, 10), *range(4))

    def leave(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)
        while self.socket.recv(4096):  # what was not read would take back what was sent
            pass
        self.socket.close()


def ends(conversation: Conversation) -> None:
    """Joins it; fails if that takes too long."""
    errors: list[BaseException] = []

    def join() -> None:
        try:
            conversation.join()
        except BaseException as error:
            errors.append(error)

    waiting = threading.Thread(target=join, daemon=True)
    waiting.start()
    waiting.join(JOIN_S)
    assert not waiting.is_alive(), "the conversation hangs"
    if errors:
        raise errors[0]


def prices(blocks: list[Block]) -> list[Price]:
    return [Price(float(len(block.code)), (0.5,) * block.instructions) for block in blocks]


def test_the_plugin_is_told_the_chip_and_the_calls_it_watches():
    conversation = Conversation(CHIP, prices, calls=(113, 172))
    plugin = Plugin(conversation)
    assert plugin.get("=3d") == (1.5, 2.5, 3.5)
    assert plugin.get("=3Q") == (2, 113, 172)
    plugin.leave()
    ends(conversation)
    assert conversation.records == []


def test_blocks_arrive_as_sent_and_their_prices_go_back_in_order():
    asked: list[Block] = []

    def price(blocks):
        asked.extend(blocks)
        return prices(blocks)

    conversation = Conversation(CHIP, price)
    plugin = Plugin(conversation)
    plugin.get("=3dQ")
    plugin.ask_prices()
    assert plugin.get("=d2f") == (8.0, 0.5, 0.5)
    assert plugin.get("=df") == (4.0, 0.5)
    assert asked == [Block(LOOP, ((0, 90), (1, 10))), Block(STRAIGHT, ())]
    plugin.leave()
    ends(conversation)


def test_records_are_kept_in_the_order_they_came():
    conversation = Conversation(CHIP, prices)
    plugin = Plugin(conversation)
    plugin.record(0, 113, 70.0)
    plugin.record(7, 0, 80.0)
    plugin.leave()
    ends(conversation)
    assert [(record.label, record.call, record.cycles) for record in conversation.records] == [(0, 113, 70), (7, 0, 80)]
    assert conversation.records[1] == Record(
        label=7,
        call=0,
        cycles=80.0,
        core_cycles=60.0,
        stalls={"branch": 1.0, "l2": 2.0, "l3": 3.0, "dram": 4.0},
        instructions=5,
        unpriced=6,
        accesses=7,
        branches=8,
        mispredicted=9,
        lines={"branch": 0, "l2": 1, "l3": 2, "dram": 3},
    )


@pytest.mark.parametrize(
    "last_words",
    [
        lambda plugin: None,
        lambda plugin: plugin.socket.sendall(b"B"),
        lambda plugin: plugin.tell("=2I", ord("B"), 3),
        lambda plugin: plugin.tell("=2IQI", ord("B"), 1, 0x1000, 2),
        lambda plugin: plugin.tell("=2IQ", ord("P"), 1, 0),
        lambda plugin: plugin.ask_prices(),
    ],
    ids=["at the start", "in a word", "before the blocks", "in a block", "in a record", "waiting for prices"],
)
def test_a_plugin_that_dies_midway_ends_the_conversation_without_a_word(last_words: Callable[[Plugin], None]):
    """The emulator's exit status says more than the broken conversation could."""
    conversation = Conversation(CHIP, prices)
    plugin = Plugin(conversation)
    plugin.record(1, 0, 50.0)
    last_words(plugin)
    plugin.leave()
    ends(conversation)
    assert [record.label for record in conversation.records] == [1]


def test_what_goes_wrong_with_the_prices_is_raised_and_the_plugin_is_left_alone():
    def price(blocks):
        raise RuntimeError("no model")

    conversation = Conversation(CHIP, price)
    plugin = Plugin(conversation)
    plugin.get("=3dQ")
    plugin.ask_prices()
    with pytest.raises(RuntimeError, match="no model"):
        ends(conversation)
    assert plugin.socket.recv(1) == b"", "the plugin does not wait for an answer that never comes"
    plugin.leave()


def test_an_emulator_without_the_plugin_needs_no_conversation():
    conversation = Conversation(CHIP, prices)
    conversation.close()
    assert not any(thread is conversation._thread for thread in threading.enumerate())
    with pytest.raises(OSError):
        conversation.theirs.getsockname()


def test_a_plugin_that_is_slow_is_waited_for():
    conversation = Conversation(CHIP, prices)
    plugin = Plugin(conversation)
    time.sleep(0.05)
    half = struct.pack("=IIQ", ord("P"), 3, 0)
    plugin.socket.sendall(half)
    time.sleep(0.05)
    plugin.socket.sendall(bytes(wire.RECORD.size - len(half)))
    plugin.leave()
    ends(conversation)
    assert [record.label for record in conversation.records] == [3]
