"""LayerCollapse as a planner: the fewest MLPs, from the last one on, whose collapse meets a budget.

For every number of pairs the activations melt together (see `melt`; the paper's way for vision), each time from the
original on, and those that reached the tolerance collapse. The paper drops what a slope lacks, W2 D (phi_s(z) - z).
Here one affine layer is fitted to what the melted pair computes on calibration data, and where that leaves a smaller
mean squared error than the merge, it is what the pair becomes. At a slope of exactly 1 the merge is exact, and stays.

needs: training. knob: how many pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from calibration.regression import Regression, RegressionMoments
from pipeline.compress.algebra import operator_of
from pipeline.compress.analysis import divergence, run
from pipeline.compress.collapse import Pair, collapse_edits, pairs, slope_gap
from pipeline.compress.options import Option
from pipeline.compress.plan import Plan
from pipeline.compress.realising import realise
from pipeline.compress.refit import Fitter, Form, refit, shape_of
from pipeline.compress.regions import Region
from pipeline.compress.subject import Rejected, Subject
from pipeline.compress.taps import Taps
from pipeline.model.edits import Edit, replay
from pipeline.model.network import Network, positions
from pipeline.model.operators import milliseconds, node_shapes

TOLERANCE = 0.05  # of a slope, for its pair to collapse


@dataclass(frozen=True)
class CollapsePlan(Plan):
    """A plan for a network that has melted.

    Attributes:
        melted: what the options are about.
    """

    melted: Network


class LayerCollapse:
    """The planner."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._hopeless: list[tuple[str, str, str]] = []
        self._unmelted: dict[int, Rejected] = {}
        self._plans = {0: CollapsePlan((), 0.0, subject.base_ms, 0.0, False, subject.base)}
        self.turns = self._turns()

    def _turns(self) -> list[tuple[str, float]]:
        """(activation, milliseconds when it and all before it in this list have collapsed), from the last pair on."""
        base, costs = self.subject.base, self.subject.costs
        found: list[tuple[str, float]] = []
        current, least = base, self.subject.base_ms
        for site in [pair.site for pair in reversed(pairs(base))]:
            pair = _pair_at(current, site)
            if not pair.shrinks:
                why = (
                    f"one layer would have {pair.collapsed_parameters} parameters and {pair.collapsed_macs} "
                    f"multiply-accumulates, the two have {pair.parameters} and {pair.macs}"
                )
                self._hopeless.append(("collapse", pair.layers[0], why))
                continue
            trial = replay(current, collapse_edits(pair))
            total = sum(milliseconds(trial, costs).values())
            if total >= least:
                why = f"one layer would not save time: {total:.4f} ms for the network instead of {least:.4f} ms"
                self._hopeless.append(("collapse", pair.layers[0], why))
                continue
            current, least = trial, total
            found.append((site, total))
        if not found and not self._hopeless:
            why = "it has no two linear layers or 1x1 convolutions with one activation between them"
            self._hopeless.append(("collapse", "the network", why))
        return found

    @property
    def rejected(self) -> Rejected:
        return (*self._hopeless, *dict.fromkeys(row for rows in self._unmelted.values() for row in rows))

    def start(self, chosen: Plan) -> Network:
        return chosen.melted

    def plan(self, budget_ms: float) -> CollapsePlan:
        expected = [self.subject.base_ms, *(total for _, total in self.turns)]
        least = next((count for count, total in enumerate(expected) if total <= budget_ms + 1e-12), len(self.turns))
        for count in range(least, len(expected)):  # past the least where a slope stayed away from 1
            plan = self._plan(count, budget_ms)
            if plan.reachable:
                return plan
        tried = [self._plan(count, budget_ms) for count in self._plans]
        return min(tried, key=lambda plan: plan.predicted_ms)

    def _plan(self, count: int, budget_ms: float) -> CollapsePlan:
        """Of the last `count` pairs that are worth it."""
        if count not in self._plans:
            self._plans[count] = self._collapsed(count)
        plan = self._plans[count]
        return replace(plan, budget_ms=budget_ms, reachable=plan.predicted_ms <= budget_ms + 1e-12)

    def _collapsed(self, count: int) -> CollapsePlan:
        """What the pairs bring, whatever the budget."""
        subject, chosen = self.subject, {site for site, _ in self.turns[:count]}
        melted = subject.melted(subject.base, [site for site, _ in reversed(self.turns[:count])])
        gaps = {pair.site: slope_gap(melted, pair) for pair in pairs(melted) if pair.site in chosen}
        self._unmelted[count] = tuple(
            ("collapse", site, f"its slope came to within {gap:.3f} of 1, not within {TOLERANCE}")
            for site, gap in gaps.items()
            if gap >= TOLERANCE
        )
        subject.progress(f"collapsing {len(chosen) - len(self._unmelted[count])} of {len(chosen)} melted pairs")
        ready = [pair for pair in pairs(melted) if gaps.get(pair.site, 1.0) < TOLERANCE]
        reference = run(melted, subject.batches)
        options = tuple(self._option(melted, group, reference) for group in _groups(ready))
        network = realise(melted, options, subject.batches)
        predicted = sum(milliseconds(network, subject.costs).values())
        return CollapsePlan(options, 0.0, predicted, subject.divergence_of(network), False, melted)

    def _option(self, melted: Network, group: Sequence[Pair], reference: Tensor) -> Option:
        """One layer for the pairs of a group; its damage is to the melted network."""
        subject = self.subject
        edits, merged = _merges(melted, group)
        region = _region(melted, group)
        form, how = None, "merged exactly"
        if any(slope_gap(melted, pair) > 0 for pair in group):
            how = "merged, which drops what the slopes lack"
            if (fitted := self._better_fit(melted, region, merged)) is not None:
                edits, form, how = (fitted,), Form("dense"), "fitted to the data"
        single = replay(melted, edits)
        sites = tuple(pair.site for pair in group)
        saving = sum(milliseconds(melted, subject.costs).values()) - sum(milliseconds(single, subject.costs).values())
        return Option(
            "collapse" if form is None else "refit",
            region.site,
            region.span,
            saving,
            divergence(reference, run(single, subject.batches), subject.classes),
            edits,
            f"{' + '.join(region.layers)} become one layer, {how}; {', '.join(sites)} melted in training",
            sites,
            region=region if form else None,
            form=form,
        )

    def _better_fit(self, melted: Network, region: Region, merged: Network) -> Edit | None:
        """The refit of the region, where it leaves less than the merge does, both of what the melted pair computes."""
        regression = self._regression(melted, region)
        layer = operator_of(merged.layer(region.site))
        weight = layer.weight.flatten(1)
        dropped = regression.residual(weight) + (layer.bias - regression.bias(weight)).square().sum().item()
        fit = Fitter(regression, shape_of(region, node_shapes(melted))).fit(Form("dense"))
        return refit(region, fit.layers) if fit.residual < dropped else None

    def _regression(self, melted: Network, region: Region) -> Regression:
        moments, held = RegressionMoments(1, 1, tokens=region.tokens), {}

        def see(name: str, value: Tensor) -> None:
            held[name] = value.clone()

        taps = Taps(melted, {region.source, region.end}, see)
        for batch in self.subject.batches:
            taps.show(batch)
            moments.add(held[region.source], held[region.end])
        return moments.regression


def _pair_at(network: Network, site: str) -> Pair:
    return next(pair for pair in pairs(network) if pair.site == site)


def _groups(ready: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs in execution order; one that begins with the layer that another ends with is in its group."""
    groups: list[list[Pair]] = []
    for pair in ready:
        if groups and groups[-1][-1].layers[-1] == pair.layers[0]:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def _merges(network: Network, group: Sequence[Pair]) -> tuple[tuple[Edit, ...], Network]:
    """The edits that make a group one layer, from its last pair to its first, and the network behind them."""
    edits: tuple[Edit, ...] = ()
    for site in [pair.site for pair in reversed(group)]:
        step = collapse_edits(_pair_at(network, site))
        edits, network = (*edits, *step), replay(network, step)
    return edits, network


def _region(network: Network, group: Sequence[Pair]) -> Region:
    names = list(dict.fromkeys(name for pair in group for name in pair.layers))
    nodes = [network.node(name) for name in names]
    place = positions(network)
    layers = (*(pair.layers[0] for pair in group), group[-1].layers[-1])
    span = place[nodes[0].name], place[nodes[-1].name]
    return Region(
        source=nodes[0].args[0].name,
        end=nodes[-1].name,
        nodes=tuple(node.name for node in nodes),
        between=(),  # how narrow it is inside is no matter: what has melted is all but linear
        layers=layers,
        span=span,
        reach=1,
        tokens=group[0].channel_dim == -1,
    )
