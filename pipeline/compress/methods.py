"""The methods that a recipe can name: each turns a network into something that answers a budget with a plan.

    auto           closed-form refits, narrowings and merges of every stretch, one dynamic programme over all (ours)
    easier         the activations of lowest entropy become linear, and what that leaves is merged (EASIER, 2024); all
                   at once, or in the paper's rounds, one at a time with a training after each (`easing`)
    layermerge     which layers merge and which go, by a dynamic programme on tables (LayerMerge, ICML 2024)
    depth-dp       which activations go, by its predecessor's two dynamic programmes (Kim et al., 2023)
    layercollapse  the MLPs from the last one on melt and become one layer each (LayerCollapse, arXiv 2311.17943)
    lorita         layers trained as products of factors, merged, then truncated as by `svd` (LoRITa, arXiv 2405.03089)
    svd            truncated singular value decomposition, by any of the selectors of `ranks`

All of them price on the target's cost table at batch 1, and measure damage as the divergence of the outputs on
calibration data, without labels. `lorita` trains before it plans, and is given the trained network; `layercollapse` has
each candidate set trained by `Subject.melted`, and `easier` each round by `Subject.easing`. Other training is left to
the recovery that follows every method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch

from pipeline.compress import depth_dp, layermerge
from pipeline.compress.algebra import shape_of
from pipeline.compress.analysis import Analysis, analyse
from pipeline.compress.collapsing import LayerCollapse
from pipeline.compress.easing import EasierRounds
from pipeline.compress.grouped import Choice, alds_grouped, forms_of, grouped_factors, grouped_truncations
from pipeline.compress.options import Option, most_saving
from pipeline.compress.plan import Plan, plan
from pipeline.compress.ranks import (
    Ranks,
    Spectra,
    Spectrum,
    alds,
    greedy,
    local,
    pooled,
    spectrum_of,
    truncations,
    uniform,
    within,
)
from pipeline.compress.segments import Segment, merge_span
from pipeline.compress.subject import Planner, Rejected, Subject
from pipeline.compress.truncate import factors, truncatable
from pipeline.model.edits import Edit
from pipeline.model.network import Network, positions
from pipeline.model.operators import layer_operator, milliseconds, operators
from targets.operator import Operator


def planner(method: str, subject: Subject) -> Planner:
    """The planner of a method, a key of `PLANNERS`."""
    return PLANNERS[method](subject)


class _OfTheBase:
    """Plans whose options are about the subject's base."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def start(self, chosen: Plan) -> Network:
        return self.subject.base


class _Auto(_OfTheBase):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.analysis = subject.kept("options", lambda: self._analysed(subject))
        self.linearize = subject.linearize

    def _analysed(self, subject: Subject) -> Analysis:
        return analyse(
            subject.base,
            subject.statistics,
            subject.batches,
            subject.costs,
            subject.classes,
            subject.progress,
            fitted=subject.fitted,
            levels=subject.linearize > 0,
        )

    @property
    def rejected(self) -> Rejected:
        return self.analysis.rejected

    def plan(self, budget_ms: float) -> Plan:
        return plan(self.analysis, budget_ms, self.linearize)


class _EasierAtOnce(_Auto):
    """The fewest activations in the order of their entropy that meet the budget."""

    def _analysed(self, subject: Subject) -> Analysis:
        rest = (subject.statistics, subject.batches, subject.costs, subject.classes, subject.progress)
        return analyse(subject.base, *rest, fitted=(), kinds=(), levels=True)

    def plan(self, budget_ms: float) -> Plan:
        levels = self.analysis.levels
        deep = [level for level in levels if len(level.sites) >= self.linearize] or levels[-1:]
        fast = [level for level in deep if level.predicted_ms <= budget_ms]
        level = fast[0] if fast else min(deep, key=lambda one: one.predicted_ms)
        return Plan(level.options, budget_ms, level.predicted_ms, level.damage, bool(fast))


def _easier(subject: Subject) -> Planner:
    return _EasierAtOnce(subject) if subject.easing is None else EasierRounds(subject, subject.easing)


def _chosen(subject: Subject, options: Sequence[Option], budget_ms: float) -> Plan:
    predicted = subject.base_ms - sum(option.saving_ms for option in options)
    damage = sum(option.damage for option in options)
    ordered = tuple(sorted(options, key=lambda option: option.span))
    return Plan(ordered, budget_ms, predicted, damage, predicted <= budget_ms + 1e-12)


class _LayerMerge(_OfTheBase):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        rest = (subject.costs, subject.statistics, subject.damage_of)
        self.tables = subject.kept(
            "mergings", lambda: layermerge.tables(subject.base, *rest, progress=subject.progress)
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


class _DepthDP(_OfTheBase):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        rest = (subject.costs, subject.statistics, subject.damage_of)
        self.tables = subject.kept("mergings", lambda: depth_dp.tables(subject.base, *rest, progress=subject.progress))
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


class _SVD(_OfTheBase):
    """Truncation to selected ranks; the damage of what is chosen is measured layer by layer."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.place = positions(subject.base)
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
        self.damages: dict[tuple[str, Choice], float] = {}
        self.losses: dict[tuple[int | None, ...], float] = {}

    @cached_property
    def _operators(self) -> dict[str, Operator]:
        return {row.name: row.operator for row in operators(self.subject.base)}

    @cached_property
    def _forms(self) -> dict[str, dict[int, Spectrum]]:
        """Of each layer the spectrum in every number of groups."""
        self.subject.progress(f"spectra of {len(self.times)} layers in groups")
        return {
            name: forms_of(self.subject.base.layer(name), partial(self._milliseconds, name, self._operators[name]))
            for name in self.times
        }

    def _milliseconds(self, name: str, operator: Operator, rank: int | None, groups: int = 1) -> float:
        if rank is None:
            return self.times[name]
        shape = shape_of(self.subject.base.layer(name))
        with torch.device("meta"):
            thin = factors(shape, rank) if groups == 1 else grouped_factors(shape, rank, groups)
            reduce, expand = (part.module() for part in thin)
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
        chosen = self._select(budget_ms - others)
        return _chosen(self.subject, [self._option(n, c) for n, c in chosen.items() if c is not None], budget_ms)

    def _select(self, budget_ms: float) -> dict[str, Choice | None]:
        """Rank and groups for which the layers that could be truncated take at most `budget_ms` together."""
        match self.subject.ranks:
            case "alds-grouped":
                return alds_grouped(self._forms, budget_ms)
            case "alds":
                ranks = alds(self.spectra, budget_ms)
            case "greedy":
                ranks = greedy(self.spectra, self._loss, budget=budget_ms)
            case "local":
                ranks = within(partial(local, self.spectra), self.spectra, budget_ms)
            case "uniform":
                ranks = within(partial(uniform, self.spectra), self.spectra, budget_ms)
            case "global":
                ranks = within(partial(pooled, self.spectra, linear=True), self.spectra, budget_ms)
        return {name: None if rank is None else (rank, 1) for name, rank in ranks.items()}

    def _loss(self, ranks: Ranks) -> float:
        """Divergence from the original, in the place of the training loss: no labels, and nothing is tuned between."""
        key = tuple(ranks.values())
        if key not in self.losses:
            self.subject.progress(
                f"greedy ranks: {sum(rank is not None for rank in key)} of {len(key)} layers truncated"
            )
            self.losses[key] = self.subject.damage_of(truncations(ranks))
        return self.losses[key]

    def _option(self, name: str, choice: Choice) -> Option:
        rank, groups = choice
        (edit,) = grouped_truncations({name: choice})
        if (name, choice) not in self.damages:
            self.subject.progress(f"measuring the damage of truncating {name} to rank {rank}")
            self.damages[name, choice] = self.subject.damage_of([edit])
        spectrum = self.spectra[name] if groups == 1 else self._forms[name][groups]
        summary = f"two thin layers of rank {rank} replace it" + (f", in {groups} groups" if groups > 1 else "")
        span, saving = (self.place[name], self.place[name]), self.times[name] - spectrum.cost(rank)
        return Option("truncate", name, span, saving, self.damages[name, choice], (edit,), summary)


PLANNERS: dict[str, Callable[[Subject], Planner]] = {
    "auto": _Auto,
    "easier": _easier,
    "layermerge": _LayerMerge,
    "depth-dp": _DepthDP,
    "layercollapse": LayerCollapse,
    "lorita": _SVD,
    "svd": _SVD,
}
