"""Machine code to text and to cycles by LLVM: unknown words, batches, and what is said when LLVM fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from targets.arm import mca
from targets.arm.parts import LLVM
from targets.errors import PlanishError
from targets.profile import load_profile

pytestmark = pytest.mark.emulator
CORE = load_profile("pixel-4-cpu").core
KNOWN = {
    bytes.fromhex("1f2003d5"): "nop",
    bytes.fromhex("20cc224e"): "fmla v0.4s, v1.4s, v2.4s",
    bytes.fromhex("2004c03d"): "ldr q0, [x1, #16]",
    bytes.fromhex("c0035fd6"): "ret",
    bytes.fromhex("41ffff54"): "b.ne #-24",
}
UNKNOWN = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x01\x02\x03\x00")


def plain(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split())


def test_words_are_told_apart_from_those_that_are_no_instructions(emulator):
    """An unknown word must not shift the texts of those behind it."""
    words = [*KNOWN, *UNKNOWN]
    mixed = b"".join(word + other for word in words for other in reversed(words))
    found = mca.disassemble([mixed, *words], emulator)
    for word, text in KNOWN.items():
        assert [plain(one) for one in found[word]] == [text]
    assert found[UNKNOWN[0]] == (None,)
    singles = {word: found[word][0] for word in words}
    assert found[mixed] == tuple(singles[mixed[i : i + 4]] for i in range(0, len(mixed), 4))


def test_texts_of_a_disassembly_can_be_timed(emulator):
    """A branch's target comes out as a number that the assembler reads back."""
    texts = tuple(found[0] for found in mca.disassemble(list(KNOWN), emulator).values())
    assert mca.runs([(texts, True)], emulator, CORE)[0].cycles > 0


def test_no_code_needs_no_tool(emulator, monkeypatch):
    monkeypatch.setattr(mca, "_run", lambda *args: pytest.fail("a tool was started"))
    assert mca.disassemble([], emulator) == {} and mca.runs([], emulator, CORE) == []


def test_regions_keep_their_order_through_loops_straight_code_and_batches(emulator, monkeypatch):
    chain, free = "fmla v0.4s, v1.4s, v2.4s", "fmla v{}.4s, v30.4s, v31.4s"
    regions = []
    for length in (1, 2, 3):
        regions += [((chain,) * length, True), (tuple(free.format(i) for i in range(length)), False)]
    whole = mca.runs(regions, emulator, CORE)
    monkeypatch.setattr(mca, "BATCH", 2)
    assert mca.runs(regions, emulator, CORE) == whole
    assert mca.runs(regions[::-1], emulator, CORE) == whole[::-1]
    assert [run.micro_ops for run in whole] == [1, 1, 2, 2, 3, 3]
    looped = [run.cycles for run in whole[::2]]
    assert looped[1] == pytest.approx(2 * looped[0], rel=0.1) and looped[2] == pytest.approx(3 * looped[0], rel=0.1)


def test_a_region_of_unknown_words_costs_nothing_here(emulator):
    nothing = [((None, None), True), ((), False)]
    assert mca.runs(nothing, emulator, CORE) == [mca.Run(0.0, 0.0, 0.0)] * 2
    between = mca.runs([nothing[0], (("nop",), True), nothing[0]], emulator, CORE)
    assert [run.cycles > 0 for run in between] == [False, True, False]


def test_a_core_llvm_has_no_model_of_is_said_in_four_lines(emulator):
    with pytest.raises(PlanishError) as caught:
        mca.runs([(("fmla v0.4s, v1.4s, v9.5s",), True)], emulator, CORE)
    error = caught.value
    assert error.code == "TIMING_FAILED" and "llvm-mca" in error.where and "error:" in error.why
    assert str(error).count("\n") == 3


def test_tools_that_are_damaged_are_said(emulator, tmp_path):
    tool = tmp_path / LLVM / "llvm-mc"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\nexit 3\n")
    tool.chmod(0o755)
    with pytest.raises(PlanishError) as caught:
        mca.disassemble([next(iter(KNOWN))], replace(emulator, tools=tmp_path))
    assert caught.value.code == "TIMING_FAILED" and caught.value.why == "exit status 3"
