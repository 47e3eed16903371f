"""What planning knows about a network: which edits exist, what each saves on the target and what it breaks.

Damage is measured, not guessed: the divergence of the edited network's outputs from the original's on calibration
samples, before any recovery. Sites are offered in the order of their entropy (EASIER); truncations are priced by the
share of the layer's output energy they drop, scaled by one measured divergence a layer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.batchnorm import reestimate
from calibration.statistics import Statistics, output_covariance
from pipeline.compress.algebra import shape_of
from pipeline.compress.distance import distance
from pipeline.compress.linearize import channel_dims, linearize
from pipeline.compress.merge import merge
from pipeline.compress.segments import Segment, segments
from pipeline.compress.truncate import factors, full_rank, principal_basis, truncatable, truncate
from pipeline.model.edits import Edit, replay
from pipeline.model.network import Network
from pipeline.model.operators import layer_operator, milliseconds, operators
from targets.cost import CostTable

RANKS_PER_LAYER = 12


@dataclass(frozen=True)
class Level:
    """The k lowest-entropy useful sites linearised and their segments merged.

    Attributes:
        segments: the merged segments, disjoint.
        edits: the same as edits of the base.
        predicted_ms: cost table's time of the whole network at this level.
        damage: measured output divergence, all edits together, norms re-estimated, no recovery.
    """

    segments: tuple[Segment, ...]
    edits: tuple[Edit, ...]
    predicted_ms: float
    damage: float

    @property
    def sites(self) -> tuple[str, ...]:
        """The linearised rectifiers."""
        return tuple(site for segment in self.segments for site in segment.sites)


@dataclass(frozen=True)
class Truncation:
    """One rank for one layer."""

    layer: str
    rank: int
    saving_ms: float
    damage: float
    edit: Edit


@dataclass(frozen=True)
class Analysis:
    """Everything a plan is made from."""

    base_ms: float
    levels: tuple[Level, ...]
    truncations: Mapping[str, tuple[Truncation, ...]]
    rejected: tuple[tuple[str, str, str], ...]  # kind, site, reason


def divergence(reference: Tensor, output: Tensor, classes: bool) -> float:
    """`distance` as a number, summed in float64; rounding below zero is zero."""
    return max(distance(reference.double(), output.double(), classes).item(), 0.0)


def analyse(
    base: Network,
    statistics: Statistics,
    samples: Iterable[Tensor],
    costs: CostTable,
    classes: bool,
    progress: Callable[[str], None] = lambda text: None,
) -> Analysis:
    """Measure every option once.

    Args:
        base: the original network.
        statistics: entropies and affine fits of its rectifiers.
        samples: batches [B, ...] float32 of calibration data, a few hundred samples; used for every measurement.
        costs: the target's cost table.
        classes: the outputs are rows of class scores.
    """
    batches = list(samples)
    reference = run(base, batches)

    def damage_of(network: Network) -> float:
        return divergence(reference, run(network, batches), classes)

    times = milliseconds(base, costs)
    base_ms = sum(times.values())
    rejected: list[tuple[str, str, str]] = []
    levels = _levels(base, statistics, batches, damage_of, costs, rejected, progress)
    truncations = _truncations(base, batches, damage_of, costs, times, rejected, progress)
    return Analysis(base_ms, tuple(levels), truncations, tuple(rejected))


def run(network: Network, batches: Sequence[Tensor]) -> Tensor:
    """Outputs [N, ...] of the network in eval mode, batch by batch."""
    network.graph.eval()
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in batches])


def _levels(
    base: Network,
    statistics: Statistics,
    batches: Sequence[Tensor],
    damage_of: Callable[[Network], float],
    costs: CostTable,
    rejected: list[tuple[str, str, str]],
    progress: Callable[[str], None],
) -> list[Level]:
    useful = []
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
        else:
            useful.append(segment)
    order = sorted({site for segment in useful for site in segment.sites}, key=lambda s: (statistics[s].entropy(), s))
    dims = channel_dims(base)
    levels: list[Level] = []
    for k in range(len(order) + 1):
        allowed = set(order[:k])
        chosen = _best_disjoint([segment for segment in useful if allowed.issuperset(segment.sites)])
        if levels and chosen == levels[-1].segments:
            continue
        edits = tuple(edit for segment in chosen for edit in _edits_of(segment, statistics, dims))
        progress(f"measuring the damage of {len(chosen)} merges ({k} of {len(order)} sites linear)")
        edited = replay(base, edits)
        reestimate(edited.graph, batches)
        predicted_ms = sum(milliseconds(edited, costs).values())
        levels.append(Level(chosen, edits, predicted_ms, damage_of(edited) if edits else 0.0))
    return levels


def _edits_of(segment: Segment, statistics: Statistics, dims: Mapping[str, int]) -> list[Edit]:
    linear = [linearize(site, statistics[site].slope, statistics[site].intercept, dims[site]) for site in segment.sites]
    return [*linear, merge(segment.layers, skip=segment.skip)]


def _best_disjoint(candidates: Sequence[Segment]) -> tuple[Segment, ...]:
    """The disjoint segments that save most together: weighted interval scheduling along each trunk."""
    result: list[Segment] = []
    for trunk in dict.fromkeys(segment.trunk for segment in candidates):
        group = sorted((s for s in candidates if s.trunk == trunk), key=lambda s: s.span[1])
        ends = [segment.span[1] for segment in group]
        best: list[tuple[float, tuple[Segment, ...]]] = [(0.0, ())]
        for segment in group:
            saved, before = best[bisect_left(ends, segment.span[0])]
            best.append(max(best[-1], (saved + segment.saving_ms, (*before, segment)), key=lambda choice: choice[0]))
        result += best[-1][1]
    return tuple(result)


def _truncations(
    base: Network,
    batches: Sequence[Tensor],
    damage_of: Callable[[Network], float],
    costs: CostTable,
    times: Mapping[str, float],
    rejected: list[tuple[str, str, str]],
    progress: Callable[[str], None],
) -> dict[str, tuple[Truncation, ...]]:
    editable = base.editable()
    layers = [name for name, module in base.layers().items() if truncatable(module) and name in editable]
    progress(f"measuring the output covariance of {len(layers)} layers")
    covariances = output_covariance(base.graph, layers, batches)
    maps = {row.name: row.operator for row in operators(base)}
    found = {}
    for layer in layers:
        mean, covariance, _ = covariances[layer]
        vectors, values = principal_basis(covariance)
        shape = shape_of(base.layer(layer))
        savings = {}
        for rank in _ranks(full_rank(base.layer(layer))):
            with torch.device("meta"):
                reduce, expand = (part.module() for part in factors(shape, rank))
            thin = costs.milliseconds(
                layer_operator(reduce, maps[layer].in_size, maps[layer].out_size)
            ) + costs.milliseconds(layer_operator(expand, maps[layer].out_size, maps[layer].out_size))
            savings[rank] = times[layer] - thin
        ranks = [rank for rank, saving in savings.items() if saving > 0]
        if not ranks:
            rejected.append(
                ("truncate", layer, f"no rank makes two thin layers cheaper than the {times[layer]:.4f} ms of one")
            )
            continue
        dropped = {rank: (values[rank:].sum() / values.sum().clamp_min(1e-30)).item() for rank in ranks}
        probe = min(ranks, key=lambda r: abs(r - ranks[-1] / 2))
        progress(f"measuring the damage of truncating {layer} to rank {probe}")
        cut = truncate(layer, probe, basis=vectors[:, :probe].clone(), mean=mean)
        damage = damage_of(replay(base, [cut]))
        scale = damage / max(dropped[probe], 1e-9)
        found[layer] = tuple(
            Truncation(
                layer,
                rank,
                savings[rank],
                scale * dropped[rank],
                truncate(layer, rank, basis=vectors[:, :rank].clone(), mean=mean),
            )
            for rank in ranks
        )
    return found


def _ranks(full: int) -> list[int]:
    """Up to a dozen ranks below the full one, on the multiples of 4 or 8 that vector units like."""
    step = max(4, 8 * round(full / RANKS_PER_LAYER / 8)) if full >= 16 else 1
    return list(range(step, full, step))
