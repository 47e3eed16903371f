"""Prices of code: what is timed together, how long an instruction's data may be late, and the cache of prices."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.arm import inorder, mca, pricing
from targets.arm.pricing import FOLLOWING, LOOP_BLOCKS, LOOP_INSTRUCTIONS, Block, Price, Region
from targets.profile import load_profile

OUT_OF_ORDER = load_profile("pixel-4-cpu").core
IN_ORDER = load_profile("raspberry-pi-3b-plus").core
NOP = bytes.fromhex("1f2003d5")
FMLA = bytes.fromhex("20cc224e")  # fmla v0.4s, v1.4s, v2.4s
OTHER_FMLA = bytes.fromhex("83cc224e")  # fmla v3.4s, v4.4s, v2.4s
LOAD = bytes.fromhex("2004c03d")  # ldr q0, [x1, #16]
ADD_LOADED = bytes.fromhex("02d4234e")  # fadd v2.4s, v0.4s, v3.4s
ADD_OTHER = bytes.fromhex("a4d4264e")  # fadd v4.4s, v5.4s, v6.4s


def tagged(number: int, instructions: int = 4) -> bytes:
    """Code that says which block it is of."""
    return struct.pack("=I", number) * instructions


def region(blocks: Sequence[Block], index: int) -> Region:
    usual = [max(block.successors, key=lambda s: s[1], default=(None, 0))[0] for block in blocks]
    return pricing._region(blocks, usual, index)


def price(blocks: Sequence[Block], emulator, core=OUT_OF_ORDER) -> list[Price]:
    return pricing.prices(blocks, emulator, core)


def test_a_block_that_usually_repeats_is_a_loop_and_one_that_rarely_does_is_not():
    usually = [Block(tagged(0), ((0, 90), (1, 10))), Block(tagged(1), ())]
    rarely = [Block(tagged(0), ((0, 10), (1, 90))), Block(tagged(1), ())]
    assert region(usually, 0) == Region((tagged(0),), loop=True, first=0)
    assert region(rarely, 0) == Region((tagged(0), tagged(1)), loop=False)


def test_all_blocks_of_a_loop_share_its_code_and_each_knows_its_place():
    blocks = [Block(tagged(i), (((i + 1) % 3, 5),)) for i in range(3)]
    found = [region(blocks, index) for index in range(3)]
    assert {one.blocks for one in found} == {tuple(tagged(i) for i in range(3))}
    assert all(one.loop for one in found) and [one.first for one in found] == [0, 1, 2]
    assert len({one.key for one in found}) == 3


def test_a_way_into_a_loop_is_straight_and_does_not_go_round_it_forever():
    blocks = [Block(tagged(0), ((1, 1),)), Block(tagged(1), ((1, 9),))]
    found = region(blocks, 0)
    assert not found.loop and found.blocks[0] == tagged(0) and set(found.blocks[1:]) == {tagged(1)}
    assert FOLLOWING <= sum(len(code) // 4 for code in found.blocks[1:]) < FOLLOWING + 4


def test_a_loop_too_long_to_be_timed_is_straight():
    many = [Block(tagged(i, 1), (((i + 1) % (LOOP_BLOCKS + 1), 1),)) for i in range(LOOP_BLOCKS + 1)]
    assert not region(many, 0).loop
    long = [Block(tagged(0, LOOP_INSTRUCTIONS + 1), ((0, 1),))]
    assert not region(long, 0).loop
    assert region(many[:1] + [Block(tagged(1, 1), ((0, 1),))], 0).loop


def chains() -> st.SearchStrategy[list[Block]]:
    """Blocks that follow one another in any way."""

    def blocks(n: int) -> st.SearchStrategy[list[Block]]:
        successor = st.tuples(st.integers(0, n - 1), st.integers(1, 100))
        return st.lists(
            st.tuples(st.integers(1, 40), st.lists(successor, max_size=4, unique_by=lambda s: s[0])),
            min_size=n,
            max_size=n,
        ).map(lambda made: [Block(tagged(i, size), tuple(next)) for i, (size, next) in enumerate(made)])

    return st.integers(1, 15).flatmap(blocks)


@given(chains())
def test_a_region_is_the_block_and_what_usually_follows_it(blocks):
    """However blocks follow one another, the walk ends, starts at the block, and takes each one's usual successor."""
    by_code = {block.code: index for index, block in enumerate(blocks)}
    for index, block in enumerate(blocks):
        found = region(blocks, index)
        assert found.blocks[found.first] == block.code
        around = found.blocks + found.blocks[:1] if found.loop else found.blocks
        for before, after in zip(around, around[1:]):
            successors = dict(blocks[by_code[before]].successors)
            assert successors[by_code[after]] == max(successors.values())
        behind = sum(len(code) // 4 for code in found.blocks[1:])
        assert found.loop or behind < FOLLOWING + max(block.instructions for block in blocks)


@given(chains(), chains())
def test_other_regions_have_other_keys(one, other):
    regions = {r for blocks in (one, other) for index in range(len(blocks)) for r in [region(blocks, index)]}
    assert len({r.key for r in regions}) == len(regions)


def test_only_what_waits_for_the_load_fills_the_scheduler():
    core = replace(OUT_OF_ORDER, window=100, scheduler=3)
    load, user, other = "ldr q0, [x1, #16]", "fadd v2.4s, v0.4s, v3.4s", "fadd v4.4s, v5.4s, v6.4s"
    alone = pricing.run_ahead((load,), [other] * 200, core, 1.0)
    assert alone == [100], "the window is the limit"
    assert pricing.run_ahead((load,), [user] * 200, core, 1.0) == [3]
    assert pricing.run_ahead((load,), [user, other, other] * 80, core, 1.0) == [7]
    chained = ["fadd v2.4s, v0.4s, v3.4s", "fadd v5.4s, v2.4s, v3.4s", "fadd v6.4s, v5.4s, v3.4s"] * 50
    assert pricing.run_ahead((load,), chained, core, 1.0) == [3], "what waits for the waiting waits, too"


def test_window_and_scheduler_hold_micro_operations():
    core = replace(OUT_OF_ORDER, window=100, scheduler=8)
    load, user, other = "ldr q0, [x1, #16]", "fadd v2.4s, v0.4s, v3.4s", "fadd v4.4s, v5.4s, v6.4s"
    for texts in ([user] * 200, [other] * 200):
        single, double = (pricing.run_ahead((load,), texts, core, ops)[0] for ops in (1.0, 2.0))
        assert single == 2 * double


def test_a_register_that_is_written_anew_is_no_longer_waited_for():
    core = replace(OUT_OF_ORDER, window=100, scheduler=2)
    again = ["movi v0.4s, #0", *["fadd v2.4s, v0.4s, v3.4s"] * 100]
    assert pricing.run_ahead(("ldr q0, [x1]",), again, core, 1.0) == [100]


def test_what_loads_nothing_may_not_be_late():
    block = ("add x0, x1, x2", "str q0, [x1]", None, "ldr q0, [x1]", "prfm pldl1keep, [x1]")
    assert [distance > 0 for distance in pricing.run_ahead(block, [], OUT_OF_ORDER, 1.0)] == [False] * 3 + [True, False]


@given(
    st.lists(st.sampled_from(["ldr q0, [x1]", "fadd v2.4s, v0.4s, v3.4s", "fadd v0.4s, v2.4s, v0.4s"]), min_size=1),
    st.integers(1, 200),
    st.integers(1, 60),
)
def test_a_core_never_runs_further_ahead_than_its_window(texts, window, scheduler):
    core = replace(OUT_OF_ORDER, window=window, scheduler=scheduler)
    found = pricing.run_ahead(tuple(texts), texts * 3, core, 1.0)
    assert len(found) == len(texts) and all(0 <= distance <= window for distance in found)
    wider = pricing.run_ahead(tuple(texts), texts * 3, replace(core, scheduler=scheduler + 8), 1.0)
    assert all(a <= b for a, b in zip(found, wider))


def test_in_order_data_may_be_late_until_an_instruction_reads_it():
    load, use, other = "ldr q0, [x1]", "fadd v2.4s, v0.4s, v3.4s", "add x5, x6, x7"
    at_once, later = (inorder.lateness([load], [load, *[other] * gap, use], IN_ORDER)[0] for gap in (0, 40))
    assert at_once == 0, "the reader waits for the data of a hit as it is"
    assert later > at_once
    unread = inorder.lateness([load], [load, other, "movi v0.4s, #0", use], IN_ORDER)
    assert unread == (float(inorder.UNREAD),)


@given(st.integers(0, 60), st.integers(0, 60))
def test_more_work_before_the_reader_never_makes_data_more_urgent(few, more):
    few, more = sorted((few, more))
    load, use, other = "ldr q0, [x1]", "fadd v2.4s, v0.4s, v3.4s", "add x5, x6, x7"
    found = [inorder.lateness([load], [load, *[other] * gap, use], IN_ORDER)[0] for gap in (few, more)]
    assert found[0] <= found[1]


def test_in_order_lateness_keeps_its_place_among_words_nobody_knows():
    block = [None, "ldr q0, [x1]", None, "add x5, x6, x7"]
    late = inorder.lateness(block, [text for text in block if text], IN_ORDER)
    assert len(late) == 4 and [value > 0 for value in late] == [False, True, False, False]


@given(st.lists(st.tuples(st.floats(0, 1e6), st.lists(st.floats(0, 1e3, width=32))), max_size=5))
def test_prices_are_packed_as_the_plugin_reads_them(values):
    packed, at = pricing.packed([Price(cycles, tuple(late)) for cycles, late in values]), 0
    for cycles, late in values:
        layout = f"=d{len(late)}f"
        assert struct.unpack_from(layout, packed, at) == (cycles, *late)
        at += struct.calcsize(layout)
    assert at == len(packed)


@pytest.fixture
def own_prices(emulator, tmp_path, monkeypatch):
    """The emulator, with a cache of prices of the test's own."""
    monkeypatch.setattr(pricing, "cache_root", lambda: tmp_path)
    return emulator


@pytest.mark.emulator
def test_the_code_of_these_tests_is_what_it_is_called(emulator):
    known = [NOP, FMLA, OTHER_FMLA, LOAD, ADD_LOADED, ADD_OTHER]
    texts = [" ".join(text.split()) for (text,) in mca.disassemble(known, emulator).values()]
    assert texts == [
        "nop",
        "fmla v0.4s, v1.4s, v2.4s",
        "fmla v3.4s, v4.4s, v2.4s",
        "ldr q0, [x1, #16]",
        "fadd v2.4s, v0.4s, v3.4s",
        "fadd v4.4s, v5.4s, v6.4s",
    ]


@pytest.mark.emulator
def test_the_same_code_is_dearer_in_a_loop_where_each_turn_waits_for_the_last(own_prices):
    """Straight, one multiply-accumulate disappears among independent ones; as a loop it takes its whole latency."""
    alone = Block(FMLA, ((0, 1),))
    between = [Block(FMLA, ((1, 1),)), Block(OTHER_FMLA + NOP * 40, ())]
    looping, straight = price([alone], own_prices)[0], price(between, own_prices)[0]
    assert looping.cycles >= 2 and straight.cycles < looping.cycles / 2


@pytest.mark.emulator
def test_a_loop_of_several_blocks_costs_the_sum_of_its_parts(own_prices):
    whole = price([Block(FMLA * 2 + ADD_OTHER * 6, ((0, 1),))], own_prices)[0]
    parts = [Block(FMLA * 2, ((1, 1),)), Block(ADD_OTHER * 6, ((0, 1),))]
    assert sum(one.cycles for one in price(parts, own_prices)) == pytest.approx(whole.cycles)


@pytest.mark.emulator
@pytest.mark.parametrize("core", [OUT_OF_ORDER, IN_ORDER], ids=lambda core: core.name)
def test_a_straight_block_costs_what_it_adds_to_what_follows(own_prices, core):
    blocks = [Block(NOP * count, ((3, 1),)) for count in (8, 40, 120)] + [Block(NOP * 200, ())]
    found = [one.cycles for one in price(blocks, own_prices, core)]
    assert found[:3] == sorted(found[:3]) and found[2] >= 120 / (2 * core.dispatch_width)
    assert found[2] - found[1] == pytest.approx(80 / core.dispatch_width, rel=0.3)


@pytest.mark.emulator
@pytest.mark.parametrize("core", [OUT_OF_ORDER, IN_ORDER], ids=lambda core: core.name)
def test_code_nobody_knows_costs_its_place_in_the_front_end(own_prices, core):
    found = price([Block(b"\xff" * 16, ((0, 1),)), Block(b"\xff" * 16, ())], own_prices, core)
    assert all(one.cycles >= 4 / (2 * core.dispatch_width) and one.late == (0,) * 4 for one in found)


@pytest.mark.emulator
def test_a_price_has_a_lateness_for_each_instruction_and_only_loads_have_one(own_prices):
    block = Block(LOAD + ADD_LOADED + NOP * 2, ((0, 1),))
    for core in (OUT_OF_ORDER, IN_ORDER):
        late = price([block], own_prices, core)[0].late
        assert len(late) == 4 and late[1:] == (0, 0, 0) and late[0] >= 0
    assert price([block], own_prices)[0].late[0] > 0


@pytest.mark.emulator
def test_a_price_asked_before_comes_from_the_cache_as_it_was(own_prices, tmp_path, monkeypatch):
    blocks = [Block(LOAD + ADD_LOADED, ((0, 3),)), Block(FMLA + NOP, ((0, 1),)), Block(NOP, ())]
    before = price(blocks, own_prices)
    with monkeypatch.context() as patch:
        patch.setattr(mca, "_run", lambda *args: pytest.fail("an LLVM tool was started"))
        patch.setattr(mca, "disassemble", lambda codes, emulator: {} if not codes else pytest.fail("disassembled"))
        again = price(blocks, own_prices)
    assert [one.cycles for one in again] == [one.cycles for one in before]
    assert [len(one.late) for one in again] == [len(block.code) // 4 for block in blocks]
    for old, new in zip(before, again):
        assert new.late == pytest.approx(old.late, rel=1e-6)
    assert len([*(tmp_path / "arm/prices").iterdir()]) == 1, "one file a core"


@pytest.mark.emulator
def test_prices_do_not_depend_on_what_was_asked_before(own_prices, tmp_path, monkeypatch):
    """A figure repeats bit by bit whether its prices are new or remembered."""
    blocks = [Block(LOAD + ADD_LOADED + FMLA, ((0, 3),)), Block(FMLA * 3 + LOAD, ((0, 1),))]
    fresh = price(blocks, own_prices)
    assert pricing.packed(price(blocks, own_prices)) == pricing.packed(fresh)
    monkeypatch.setattr(pricing, "cache_root", lambda: tmp_path / "elsewhere")
    price(blocks[1:] + [Block(NOP * 9, ())], own_prices)
    assert pricing.packed(price(blocks, own_prices)) == pricing.packed(fresh)


@pytest.mark.emulator
def test_no_blocks_cost_nothing(own_prices):
    assert price([], own_prices) == []


@pytest.mark.emulator
@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from([FMLA, OTHER_FMLA, LOAD, ADD_LOADED, ADD_OTHER, NOP]), min_size=1, max_size=30))
def test_every_order_of_known_instructions_has_a_price_within_reason(emulator, words):
    code = b"".join(words)
    for core in (OUT_OF_ORDER, IN_ORDER):
        for block in (Block(code, ((0, 1),)), Block(code, ())):
            found = pricing.prices([block], emulator, core)[0]
            assert len(words) / (2 * core.dispatch_width) <= found.cycles <= 20 * len(words)
