"""What planning knows about a network: which edits exist, what each saves on the target and what it breaks.

Damage is measured, not guessed: the divergence of the edited network's outputs from the original's on calibration
samples, before any recovery. Of a refit some forms are measured, the others follow from what their fit leaves. Levels
offer the sites in the order of their entropy (EASIER).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calibration.batchnorm import reestimate
from calibration.statistics import Statistics
from pipeline.compress.behind import Behind
from pipeline.compress.distance import distance
from pipeline.compress.linearize import channel_dims, linearize
from pipeline.compress.merge import merge
from pipeline.compress.narrowing import narrow_options
from pipeline.compress.options import Option, most_saving
from pipeline.compress.refitting import refit_options
from pipeline.compress.segments import Segment, merge_span, segments
from pipeline.model.edits import Edit, replay
from pipeline.model.network import Network, positions
from pipeline.model.operators import milliseconds
from targets.price import Price

KINDS = ("merge", "refit", "narrow")


@dataclass(frozen=True)
class Level:
    """The k lowest-entropy useful sites linearised and their segments merged.

    Attributes:
        options: the merges, disjoint.
        predicted_ms: cost table's time of the whole network at this level.
        damage: measured output divergence, all edits together, norms re-estimated, no recovery.
    """

    options: tuple[Option, ...]
    predicted_ms: float
    damage: float

    @property
    def edits(self) -> tuple[Edit, ...]:
        return tuple(edit for option in self.options for edit in option.edits)

    @property
    def sites(self) -> tuple[str, ...]:
        """The linearised rectifiers."""
        return tuple(site for option in self.options for site in option.sites)


@dataclass(frozen=True)
class Analysis:
    """Everything a plan is made from.

    Attributes:
        levels: for a wanted number of linear activations; the first is the original.
        options: what a plan chooses from, each measured by itself.
        rejected: (kind, site, reason) of what was looked at and can never save time.
    """

    base_ms: float
    levels: tuple[Level, ...]
    options: tuple[Option, ...]
    rejected: tuple[tuple[str, str, str], ...]


def divergence(reference: Tensor, output: Tensor, classes: bool) -> float:
    """`distance` as a number, summed in float64; rounding below zero is zero."""
    return max(distance(reference.double(), output.double(), classes).item(), 0.0)


def analyse(
    base: Network,
    statistics: Statistics,
    samples: Iterable[Tensor],
    costs: Price,
    classes: bool,
    progress: Callable[[str], None] = lambda text: None,
    *,
    fitted: Sequence[Tensor] | None = None,
    kinds: Sequence[str] = KINDS,
    levels: bool = False,
) -> Analysis:
    """Measure every option once.

    Args:
        base: the original network.
        statistics: entropies and affine fits of its rectifiers.
        samples: batches [B, ...] float32 of calibration data, a few hundred samples; used for every measurement.
        fitted: others, which refits are fitted to; without them three quarters of `samples` are, and only the last
            quarter measures.
        costs: the target's cost table.
        classes: the outputs are rows of class scores.
        kinds: of the options.
        levels: also measure every number of linear activations.
    """
    batches = list(samples)
    if fitted is None:
        fitted, batches = _divided(batches)
    reference = run(base, batches)

    def damage_of(network: Network) -> float:
        return divergence(reference, run(network, batches), classes)

    times = milliseconds(base, costs)
    base_ms = sum(times.values())
    rejected: list[tuple[str, str, str]] = []
    found: list[Option] = []
    steps = [Level((), base_ms, 0.0)]

    def damage_behind() -> Callable[[Network, int], float]:
        behind = Behind(base, batches)

        def measured(edited: Network, place: int) -> float:
            behind.advance(place)
            return divergence(reference, behind.outputs(edited), classes)

        return measured

    if "refit" in kinds:
        found += refit_options(base, fitted, damage_behind(), costs, times, rejected, progress)
    if "narrow" in kinds:
        found += narrow_options(base, fitted, damage_behind(), costs, base_ms, rejected, progress)
    if levels or "merge" in kinds:
        merges = _merges(base, statistics, costs, rejected)
        if levels:
            steps += _levels(base, statistics, merges, batches, damage_of, costs, progress)
        if "merge" in kinds:
            # A merge is one of the linear layers of its shape, and a refit the best of them.
            refitted = {option.span for option in found}
            merges = [merge for merge in merges if merge.span not in refitted]
            found += _measured_alone(base, merges, batches, damage_of, progress)
    return Analysis(base_ms, tuple(steps), tuple(found), tuple(rejected))


def _divided(batches: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Three quarters of the samples, and the last quarter."""
    whole = torch.cat(list(batches))
    size, last = len(batches[0]), max(1, len(whole) // 4)
    return list(whole[:-last].split(size)), list(whole[-last:].split(size))


def run(network: Network, batches: Sequence[Tensor]) -> Tensor:
    """Outputs [N, ...] of the network in eval mode, batch by batch."""
    network.graph.eval()
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in batches])


def _merges(base: Network, statistics: Statistics, costs: Price, rejected: list[tuple[str, str, str]]) -> list[Option]:
    """Every merge that saves time, its damage not yet known."""
    place, dims = positions(base), channel_dims(base)
    found = []
    for segment in segments(base, costs):
        if segment.saving_ms <= 0:
            rejected.append(
                (
                    "merge",
                    segment.layers[0],
                    f"{segment.becomes} would take {segment.after_ms:.4f} ms, the "
                    f"{len(segment.layers)} layers it replaces take {segment.before_ms:.4f} ms",
                )
            )
            continue
        found.append(
            Option(
                "merge",
                segment.layers[0],
                merge_span(base, segment, place),
                segment.saving_ms,
                0.0,
                _edits_of(segment, statistics, dims),
                segment.summary,
                segment.sites,
            )
        )
    return found


def _edits_of(segment: Segment, statistics: Statistics, dims: Mapping[str, int]) -> tuple[Edit, ...]:
    linear = [linearize(site, statistics[site].slope, statistics[site].intercept, dims[site]) for site in segment.sites]
    return (*linear, merge(segment.layers, skip=segment.skip))


def _measured_alone(
    base: Network,
    merges: Sequence[Option],
    batches: Sequence[Tensor],
    damage_of: Callable[[Network], float],
    progress: Callable[[str], None],
) -> list[Option]:
    found = []
    for option in merges:
        progress(f"measuring the damage of merging {option.site}")
        edited = replay(base, option.edits)
        reestimate(edited.graph, batches, base.graph)
        found.append(replace(option, damage=damage_of(edited)))
    return found


def _levels(
    base: Network,
    statistics: Statistics,
    merges: Sequence[Option],
    batches: Sequence[Tensor],
    damage_of: Callable[[Network], float],
    costs: Price,
    progress: Callable[[str], None],
) -> list[Level]:
    order = sorted({site for merge in merges for site in merge.sites}, key=lambda s: (statistics[s].entropy(), s))
    levels: list[Level] = []
    for k in range(1, len(order) + 1):
        allowed = set(order[:k])
        chosen = most_saving([option for option in merges if allowed.issuperset(option.sites)])
        if not chosen or (levels and chosen == levels[-1].options):
            continue
        progress(f"measuring the damage of {len(chosen)} merges ({k} of {len(order)} sites linear)")
        edited = replay(base, [edit for option in chosen for edit in option.edits])
        reestimate(edited.graph, batches, base.graph)
        predicted_ms = sum(milliseconds(edited, costs).values())
        levels.append(Level(chosen, predicted_ms, damage_of(edited)))
    return levels
