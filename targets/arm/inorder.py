"""Cycles of code on a dual-issue in-order core whose issue rules have been measured.

llvm-mca makes the results of an in-order core come out in program order, so an addition behind a multiply-accumulate
waits for it. A Cortex-A53 or A55 does no such thing: measured pairs show what may share a cycle, and nothing else
stalls but a missing operand or a busy pipe. This module plays those rules; the rules themselves are the `[[issue]]`
tables of the core's file, each with its source.

Instructions issue in order, at most `dispatch_width` a cycle, each at the first cycle where its operands are there, its
pipe is free and the two 64-bit floating-point lanes have room: a 128-bit operation takes both lanes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from targets.arm.operands import Operands, operands_of
from targets.core import Core, IssueRule

LANES = 2  # 64-bit floating-point lanes
WARM_UP = 2  # repetitions before the steady state is measured
MEASURED = 4  # repetitions measured
UNREAD = 64  # cycles the data of a load may be late that no instruction in sight reads


@dataclass
class Pipeline:
    """The state of the core. All times are cycles since the start."""

    core: Core
    cycle: int = 0  # in which the next instruction may issue
    slots: int = 0  # taken in `cycle`
    lanes: int = 0  # taken in `cycle`
    busy: dict[str, int] = field(default_factory=dict)  # pipe -> first cycle it is free
    ready: dict[str, int] = field(default_factory=dict)  # register -> first cycle it can be read
    accumulate: dict[str, int] = field(default_factory=dict)  # the same for adding to it
    written: dict[str, int] = field(default_factory=dict)  # register -> cycle after the issue of what writes it
    closed: set[int] = field(default_factory=set)  # cycles in which no vector load issues

    def issue(self, text: str) -> int:
        """Issue one instruction, `text` as llvm-mc writes it; returns the cycle it issues in."""
        line = " ".join(text.split())
        rule, operands = _rule(line, self.core), operands_of(line)
        when = max((self.ready.get(name, 0) for name in operands.sources), default=0)
        for index, name in enumerate(operands.data):
            when = max(when, self.ready.get(name, 0) - rule.late - index)
        if operands.accumulator:
            when = max(when, self.accumulate.get(operands.accumulator, 0))
        if operands.merged:  # lanes come together in the register, which costs an order and not a wait
            when = max(when, self.written.get(operands.merged, 0))
        self._advance(max(when, self.busy.get(rule.pipe, 0)))
        while not self._fits(rule):
            self._advance(self.cycle + 1)
        issued = self.cycle
        self._take(rule, operands)
        return issued

    def _advance(self, cycle: int) -> None:
        if cycle > self.cycle:
            self.cycle, self.slots, self.lanes = cycle, 0, 0

    def _fits(self, rule: IssueRule) -> bool:
        if self.slots and (rule.first or rule.alone):
            return False
        if rule.shadowed and self.cycle in self.closed:
            return False
        return self.slots < self.core.dispatch_width and self.lanes + rule.lanes <= LANES

    def _take(self, rule: IssueRule, operands: Operands) -> None:
        for index, name in enumerate(operands.results):
            before = self.ready.get(name, 0) if operands.merged else 0  # the other lanes keep their own time
            self.written[name] = self.cycle + 1
            self.ready[name] = max(before, self.cycle + rule.latency + index * rule.later)
            forwarded = rule.forward and name == operands.accumulator
            self.accumulate[name] = self.cycle + rule.forward if forwarded else self.ready[name]
        if operands.base:
            self.ready[operands.base] = self.cycle + 1  # the address unit hands it to the next access
        if rule.pipe:
            self.busy[rule.pipe] = self.cycle + rule.cycles
        if rule.shadow:
            self.closed.add(self.cycle + rule.shadow)
        self.slots += 1
        self.lanes += rule.lanes
        if rule.alone:
            self._advance(self.cycle + rule.cycles)


def block_cycles(block: Sequence[str], core: Core) -> float:
    """Cycles of one repetition of `block` in the steady state; `core.issue` holds its rules."""
    pipeline = Pipeline(core)
    start = 0
    for repetition in range(WARM_UP + MEASURED):
        if repetition == WARM_UP:
            start = pipeline.cycle
        for text in block:
            pipeline.issue(text)
    return (pipeline.cycle - start) / MEASURED


def straight_cycles(block: Sequence[str], core: Core) -> int:
    """Cycles of `block` run once: from the issue of its first instruction to that of its last, both counted."""
    pipeline = Pipeline(core)
    for text in block:
        pipeline.issue(text)
    return pipeline.cycle + (pipeline.slots > 0)


def lateness(block: Sequence[str | None], code: Sequence[str], core: Core) -> tuple[float, ...]:
    """Cycles that the data of each load of `block` may be late before an instruction waits for it; 0 for other ones.

    Args:
        code: the block's instructions and what follows them.
    """
    pipeline = Pipeline(core)
    lines = [" ".join(text.split()) for text in code]
    issued = [pipeline.issue(line) for line in lines]
    late, position = [], 0
    for text in block:
        late.append(0.0)
        if text is None:
            continue
        line, operands = lines[position], operands_of(lines[position])
        if line.startswith("ld") and operands.results:
            ready = issued[position] + _rule(line, core).latency
            reader = _first_reader(set(operands.results), lines, position + 1)
            late[-1] = float(UNREAD if reader is None else max(0, issued[reader] - ready))
        position += 1
    return tuple(late)


def _first_reader(registers: set[str], lines: Sequence[str], start: int) -> int | None:
    for index in range(start, len(lines)):
        operands = operands_of(lines[index])
        if not registers.isdisjoint((*operands.sources, *operands.data, operands.accumulator, operands.merged)):
            return index
        registers = registers.difference(operands.results)
        if not registers:
            return None
    return None


def _rule(line: str, core: Core) -> IssueRule:
    return _find_rule(line, core.issue)


@lru_cache(maxsize=1 << 16)
def _find_rule(line: str, issue: tuple[IssueRule, ...]) -> IssueRule:
    return next(rule for rule in issue if re.match(rule.match, line))
