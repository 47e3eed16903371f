"""The methods that a recipe can name: each turns a network into something that answers a budget with a plan.

    auto        closed-form refits and merges of every region, one dynamic programme over all (ours)
    easier      the activations of lowest entropy become linear, and what that leaves is merged (EASIER, 2024)
    layermerge  which layers merge and which go, by a dynamic programme on tables (LayerMerge, ICML 2024)
    depth-dp    which activations go, by its predecessor's two dynamic programmes (Kim et al., 2023)
    svd         truncated singular value decomposition, the largest values of all layers kept

All of them price on the target's cost table at batch 1, and measure damage as the divergence of the outputs on
calibration data, without labels. Training is left to the recovery that follows every method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor

from calibration.batchnorm import reestimate
from calibration.statistics import Statistics
from pipeline.compress import depth_dp, layermerge
from pipeline.compress.algebra import shape_of
from pipeline.compress.analysis import Analysis, analyse, divergence, run
from pipeline.compress.options import Option, most_saving, positions
from pipeline.compress.plan import Plan, plan
from pipeline.compress.ranks import Spectra, pooled, spectrum_of, within
from pipeline.compress.segments import Segment, merge_span
from pipeline.compress.truncate import factors, truncatable, truncate
from pipeline.model.edits import Edit, replay
from pipeline.model.network import Network
from pipeline.model.operators import layer_operator, milliseconds, operators
from targets.cost import CostTable

Rejected = tuple[tuple[str, str, str], ...]  # kind, site, reason


@dataclass(frozen=True)
class Subject:
    """What is compressed, for what, and what is known of it.

    Attributes:
        base: the original network.
        statistics: entropies and affine fits of its rectifiers.
        batches: [B, ...] float32 of calibration data, for every measurement of damage.
        costs: the target's cost table.
        classes: the outputs are rows of class scores.
        linearize: at least this many activations become linear, where the method has that knob.
    """

    base: Network
    statistics: Statistics
    batches: Sequence[Tensor]
    costs: CostTable
    classes: bool
    linearize: int = 0
    progress: Callable[[str], None] = field(default=lambda text: None)

    @cached_property
    def base_ms(self) -> float:
        return sum(milliseconds(self.base, self.costs).values())

    @cached_property
    def _reference(self) -> Tensor:
        return run(self.base, self.batches)

    def damage_of(self, edits: Sequence[Edit]) -> float:
        """Output divergence of the original after the edits, its norms re-estimated."""
        edited = replay(self.base, edits)
        reestimate(edited.graph, self.batches, self.base.graph)
        return divergence(self._reference, run(edited, self.batches), self.classes)


class Planner(Protocol):
    """A method at work on a subject: measured once, asked for many budgets."""

    @property
    def rejected(self) -> Rejected:
        """What was looked at and can never save time."""

    def plan(self, budget_ms: float) -> Plan:
        """For a predicted time of at most `budget_ms`, or for the least there is."""


def planner(method: str, subject: Subject) -> Planner:
    """The planner of a method, a key of `PLANNERS`."""
    return PLANNERS[method](subject)


class _Auto:
    def __init__(self, subject: Subject) -> None:
        self.analysis = self._analysed(subject)
        self.linearize = subject.linearize

    def _analysed(self, subject: Subject) -> Analysis:
        return analyse(
            subject.base,
            subject.statistics,
            subject.batches,
            subject.costs,
            subject.classes,
            subject.progress,
            levels=subject.linearize > 0,
        )

    @property
    def rejected(self) -> Rejected:
        return self.analysis.rejected

    def plan(self, budget_ms: float) -> Plan:
        return plan(self.analysis, budget_ms, self.linearize)


class _Easier(_Auto):
    """The fewest activations in the order of their entropy that meet the budget."""

    def _analysed(self, subject: Subject) -> Analysis:
        rest = (subject.statistics, subject.batches, subject.costs, subject.classes, subject.progress)
        return analyse(subject.base, *rest, kinds=(), levels=True)

    def plan(self, budget_ms: float) -> Plan:
        levels = self.analysis.levels
        deep = [level for level in levels if len(level.sites) >= self.linearize] or levels[-1:]
        fast = [level for level in deep if level.predicted_ms <= budget_ms]
        level = fast[0] if fast else min(deep, key=lambda one: one.predicted_ms)
        return Plan(level.options, budget_ms, level.predicted_ms, level.damage, bool(fast))


def _chosen(subject: Subject, options: Sequence[Option], budget_ms: float) -> Plan:
    predicted = subject.base_ms - sum(option.saving_ms for option in options)
    damage = sum(option.damage for option in options)
    ordered = tuple(sorted(options, key=lambda option: option.span))
    return Plan(ordered, budget_ms, predicted, damage, predicted <= budget_ms + 1e-12)


class _LayerMerge:
    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.tables = layermerge.tables(
            subject.base, subject.costs, subject.statistics, subject.damage_of, progress=subject.progress
        )
        place = positions(subject.base)
        self.options = {
            row: _merge_option(
                subject.base,
                merging.segment,
                place,
                merging.saving_ms,
                self.tables.damages[row],
                merging.edits,
                f"{' + '.join(merging.kept)} become one {merging.becomes}"
                + (f"; {', '.join(merging.pruned)} left out" if merging.pruned else ""),
            )
            for row, merging in enumerate(self.tables.mergings)
            if merging is not None
        }

    @property
    def rejected(self) -> Rejected:
        useful = {option.site for option in self.options.values()}
        return tuple(
            ("merge", segment.layers[0], f"no merge of {' + '.join(segment.layers)} saves time on the target")
            for segment in self.tables.line.segments.values()
            if segment.layers[0] not in useful
        )

    def plan(self, budget_ms: float) -> Plan:
        choice = layermerge.choose(self.tables, budget_ms)
        if choice is None:
            return _chosen(self.subject, most_saving(list(self.options.values())), budget_ms)
        return _chosen(self.subject, [self.options[row] for row in choice.path.rows if row in self.options], budget_ms)


class _DepthDP:
    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.tables = depth_dp.tables(
            subject.base, subject.costs, subject.statistics, subject.damage_of, progress=subject.progress
        )
        place, line = positions(subject.base), self.tables.line
        self.options = {
            span: _merge_option(
                subject.base,
                line.segments[span],
                place,
                line.time_ms(span) - self.tables.times_ms[span].value,
                self.tables.damages[span],
                edits,
                f"{' + '.join(line.segments[span].layers)} without activations between, merged where that saves time",
            )
            for span, edits in self.tables.edits.items()
        }

    @property
    def rejected(self) -> Rejected:
        return tuple(
            ("merge", segment.layers[0], f"{segment.becomes} saves no time, nor does any part of it")
            for span, segment in self.tables.line.segments.items()
            if span not in self.options
        )

    def plan(self, budget_ms: float) -> Plan:
        choice = depth_dp.choose(self.tables, budget_ms)
        if choice is None:
            return _chosen(self.subject, most_saving(list(self.options.values())), budget_ms)
        return _chosen(self.subject, [self.options[span] for span in choice.spans], budget_ms)


def _merge_option(
    base: Network,
    segment: Segment,
    place: dict[str, int],
    saving_ms: float,
    damage: float,
    edits: tuple[Edit, ...],
    summary: str,
) -> Option:
    span = merge_span(base, segment, place)
    return Option("merge", segment.layers[0], span, saving_ms, damage, edits, summary, segment.sites)


class _SVD:
    """LoRITa's global selection; the damage of what it chooses is measured layer by layer."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.place = subject, positions(subject.base)
        editable = subject.base.editable()
        times = milliseconds(subject.base, subject.costs)
        self.times = {
            name: times[name]
            for name, module in subject.base.layers().items()
            if truncatable(module) and name in editable
        }
        self.spectra: Spectra = {
            name: spectrum_of(subject.base.layer(name), partial(self._milliseconds, name, self._operators[name]))
            for name in self.times
        }
        self.damages: dict[tuple[str, int], float] = {}

    @cached_property
    def _operators(self) -> dict[str, object]:
        return {row.name: row.operator for row in operators(self.subject.base)}

    def _milliseconds(self, name: str, operator, rank: int | None) -> float:
        if rank is None:
            return self.times[name]
        with torch.device("meta"):
            reduce, expand = (part.module() for part in factors(shape_of(self.subject.base.layer(name)), rank))
        costs, out = self.subject.costs, operator.out_size
        return costs.milliseconds(layer_operator(reduce, operator.in_size, out)) + costs.milliseconds(
            layer_operator(expand, out, out)
        )

    @property
    def rejected(self) -> Rejected:
        return tuple(
            ("truncate", name, f"no rank makes two thin layers cheaper than the {self.times[name]:.4f} ms of one")
            for name, spectrum in self.spectra.items()
            if spectrum.settled(1) is None
        )

    def plan(self, budget_ms: float) -> Plan:
        others = self.subject.base_ms - sum(self.times.values())
        ranks = within(partial(pooled, self.spectra), self.spectra, budget_ms - others)
        return _chosen(self.subject, [self._option(n, r) for n, r in ranks.items() if r is not None], budget_ms)

    def _option(self, name: str, rank: int) -> Option:
        edit = truncate(name, rank)
        if (name, rank) not in self.damages:
            self.subject.progress(f"measuring the damage of truncating {name} to rank {rank}")
            self.damages[name, rank] = self.subject.damage_of([edit])
        saving = self.times[name] - self.spectra[name].cost(rank)
        span, summary = (self.place[name], self.place[name]), f"two thin layers of rank {rank} replace it"
        return Option("truncate", name, span, saving, self.damages[name, rank], (edit,), summary)


PLANNERS: dict[str, Callable[[Subject], Planner]] = {
    "auto": _Auto,
    "easier": _Easier,
    "layermerge": _LayerMerge,
    "depth-dp": _DepthDP,
    "svd": _SVD,
}
