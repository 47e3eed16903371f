"""LayerMerge (Kim, El Halabi & Song, ICML 2024): which layers to merge, and which to prune first, under a latency.

Position l stands behind layer l and its activation, position 0 before the first. A segment (i, j) is layers i+1 .. j
without the activations between them; the layers of it that are kept merge into one of kernel size

    k = 1 + sum over kept l of (K_l - 1) * product of the strides before l        (the paper's has no strides)

and of all the sets of kept layers that give a size the one with the largest weights, by L1 norm, stands for it. The
tables T[i, j, k] (time) and I[i, j, k] (importance) then hold everything, and `paths.best_path` picks from them.

`Chain`, `spans` and `entries` are that enumeration for a chain in words; `tables` and `choose` bind it to a network.

Deviations of the binding, each because nothing is trained before the choice is made:
- Importance is minus the output divergence that the edits cause on calibration data, without labels; the paper's is
  exp(change of accuracy) after an epoch of training on each entry. A layer left alone costs 0, whereas the paper trains
  it from scratch; sums of the paper's importances, near 1 each, prefer many segments to few, those of ours do not.
- An activation inside a segment becomes its affine fit rather than the identity, and no activation is added at the end
  of a segment where the network has none.
- Times are predicted for the target at batch 1, each at the true size of its map, skip additions included.
- Of several sets of kept layers with one kernel size the official code takes, where kernels are mixed, the last it
  comes across; we take the largest L1 norm, as the paper says, by a recursion instead of all 2^n subsets.

needs: data. knob: the budget.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import nn

from calibration.statistics import SiteStatistics
from pipeline.compress.algebra import composed, is_layer, moves_padding, shape_of, takes_skip
from pipeline.compress.linearize import RECTIFIERS, channel_dims, linearize
from pipeline.compress.merge import merge, skip_addition
from pipeline.compress.paths import Path, best_path
from pipeline.compress.prune import prune
from pipeline.compress.segments import Segment, segments
from pipeline.model.edits import Edit
from pipeline.model.network import Network
from pipeline.model.operators import FUSED, describe, layer_operator, milliseconds, operators
from targets.price import Price

Pair = tuple[int, int]
Span = tuple[int, int]  # positions: layers start + 1 .. end


@dataclass(frozen=True)
class Layer:
    """A convolution of a chain, as far as enumerating needs it.

    Attributes:
        kernel: extent, dilation included.
        norm: sum of the weights' magnitudes.
        keeps_size: its padding makes up for its kernel.
    """

    inputs: int
    outputs: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    groups: int = 1
    norm: float = 1.0
    keeps_size: bool = True

    @property
    def depthwise(self) -> bool:
        return self.groups == self.inputs == self.outputs > 1

    @property
    def irreducible(self) -> bool:
        """Whether the identity cannot stand in its place."""
        return self.inputs != self.outputs or self.stride != (1, 1) or not self.keeps_size


@dataclass(frozen=True)
class Chain:
    """Layers one behind the other.

    Attributes:
        breaks: positions that no segment has inside.
        skips: position -> later position at which the value of the first is added; a segment holds either the whole of
            a skip or ends with it.
    """

    layers: tuple[Layer, ...]
    breaks: frozenset[int] = frozenset()
    skips: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One row of the tables: segment, merged kernel, and the numbers (from 1) of the layers that are kept."""

    span: Span
    kernel: Pair
    depthwise: bool
    kept: tuple[int, ...]


def spans(chain: Chain) -> list[Span]:
    """Every segment of a chain, single layers too, by start and then by end."""
    positions = range(len(chain.layers) + 1)
    return [
        (i, j)
        for i in positions
        for j in positions[i + 1 :]
        if not any(i < cut < j for cut in chain.breaks)
        and not any(i < source < j < target or source < i < target < j for source, target in chain.skips.items())
    ]


def entries(chain: Chain, span: Span) -> list[Entry]:
    """The kernels that a segment can merge into, by size; a segment of which nothing is kept is none."""
    best: dict[tuple[Pair, bool], tuple[float, tuple[int, ...]]] = {((1, 1), True): (0.0, ())}
    reach = (1, 1)  # product of the strides so far, all of layers that are kept in any case
    for number in range(span[0] + 1, span[1] + 1):
        layer = chain.layers[number - 1]
        longer: dict[tuple[Pair, bool], tuple[float, tuple[int, ...]]] = {}
        for (kernel, depthwise), (norm, kept) in best.items():
            ways = [
                ((_grown(kernel, layer, reach), depthwise and layer.depthwise), (norm + layer.norm, (*kept, number)))
            ]
            if not layer.irreducible:
                ways.append(((kernel, depthwise), (norm, kept)))
            for key, way in ways:
                if key not in longer or way[0] > longer[key][0]:
                    longer[key] = way
        best, reach = longer, (reach[0] * layer.stride[0], reach[1] * layer.stride[1])
    return [Entry(span, *key, kept) for key, (_, kept) in sorted(best.items()) if kept]


def _grown(kernel: Pair, layer: Layer, reach: Pair) -> Pair:
    return tuple(k + (own - 1) * step for k, own, step in zip(kernel, layer.kernel, reach, strict=True))


@dataclass(frozen=True)
class Line:
    """The layers of a network that segments can hold, trunk behind trunk on one line of positions.

    Attributes:
        layers: their names; layer l is `layers[l - 1]`.
        links: beside each, its norms and activation up to the next layer.
        single_ms: time of each as it stands, with its links and with what a segment that ends there absorbs behind it.
        segments: span -> segment of at least two layers; `before_ms` counts all that goes when it merges.
        fixed_ms: time of everything else.
    """

    layers: tuple[str, ...]
    links: tuple[tuple[str, ...], ...]
    single_ms: tuple[float, ...]
    segments: Mapping[Span, Segment]
    fixed_ms: float

    def time_ms(self, span: Span) -> float:
        """Time of the layers of a span as they stand."""
        return sum(self.single_ms[span[0] : span[1]])


def line(network: Network, costs: Price) -> Line:
    """Lays out the mergeable stretches of a network."""
    times = milliseconds(network, costs)
    found = segments(network, costs)
    places = {(s.trunk, s.span[0] + at): name for s in found for at, name in enumerate(s.layers)}
    trunks = {trunk: number for number, trunk in enumerate(dict.fromkeys(s.trunk for s in found))}
    layers: list[str] = []
    links: list[list[str]] = []
    for _, name in sorted(places.items(), key=lambda place: (trunks[place[0][0]], place[0][1])):
        if is_layer(network.layer(name)):
            layers.append(name)
            links.append([])
        else:
            links[-1].append(name)
    number = {name: at for at, name in enumerate(layers, start=1)}
    single = [times[name] + sum(times.get(link, 0.0) for link in own) for name, own in zip(layers, links, strict=True)]
    by_span = {}
    for segment in found:
        held = [number[name] for name in segment.layers if name in number]
        before = sum(times.get(name, 0.0) for name in segment.layers)
        if segment.skip:
            absorbed = _behind_skip(network, segment, times)
            single[held[-1] - 1] += absorbed
            before += absorbed
        by_span[held[0] - 1, held[-1]] = replace(segment, before_ms=before)
    fixed = sum(times.values()) - sum(single)
    return Line(tuple(layers), tuple(map(tuple, links)), tuple(single), by_span, fixed)


def _behind_skip(network: Network, segment: Segment, times: Mapping[str, float]) -> float:
    """Time of the addition that a merged layer absorbs, and of rectifiers behind it, which then fuse with the layer."""
    addition = skip_addition(network.node(segment.layers[-1]), network.node(segment.layers[0]).args[0])
    readers = (user.target for user in addition.users if user.op == "call_module")
    return times[addition.name] + sum(times.get(r, 0.0) for r in readers if isinstance(network.layer(r), FUSED))


@dataclass(frozen=True)
class Merging:
    """An entry of a network's tables.

    Attributes:
        span: positions on the network's `Line`.
        segment: what it is made of.
        kept: names of the layers that merge; `pruned`: of those that are left out.
        kernel: of the merged layer.
        time_ms: of the span afterwards, on the scale of `Line.time_ms`.
        saving_ms: against the span as it stands.
        edits: linearise, prune, merge.
        moves_padding: merging changes the function near the border.
        becomes: the merged layer in words.
    """

    span: Span
    segment: Segment
    kept: tuple[str, ...]
    pruned: tuple[str, ...]
    kernel: Pair
    time_ms: float
    saving_ms: float
    edits: tuple[Edit, ...]
    moves_padding: bool
    becomes: str


def mergings(
    network: Network, costs: Price, statistics: Mapping[str, SiteStatistics], where: Line | None = None
) -> list[Merging]:
    """Every entry of every segment of a network, cheaper or not, by span and kernel."""
    where = where or line(network, costs)
    chain = Chain(tuple(_layer(network.layer(name)) for name in where.layers))
    maps = {row.name: row.operator for row in operators(network)}
    dims = channel_dims(network)
    found = []
    for span in sorted(where.segments):
        for entry in entries(chain, span):
            shapes = [shape_of(network.layer(where.layers[number - 1])) for number in entry.kept]
            *_, merged = accumulate(shapes, composed)
            with torch.device("meta"):
                module = merged.module()
            kept = tuple(where.layers[number - 1] for number in entry.kept)
            segment = where.segments[span]
            after = costs.milliseconds(layer_operator(module, maps[kept[0]].in_size, maps[kept[-1]].out_size))
            saving = segment.before_ms - after
            found.append(
                Merging(
                    span,
                    segment,
                    kept,
                    tuple(name for name in where.layers[slice(*span)] if name not in kept),
                    entry.kernel,
                    where.time_ms(span) - saving,
                    saving,
                    _edits(network, where, segment, kept, statistics, dims),
                    any(moves_padding(shape) for shape in shapes[1:]),
                    describe(module) + (", skip inside" if segment.skip else ""),
                )
            )
    return found


def _layer(module: nn.Module) -> Layer:
    shape = shape_of(module)
    return Layer(
        shape.in_channels,
        shape.out_channels,
        tuple((k - 1) * d + 1 for k, d in zip(shape.kernel, shape.dilation, strict=True)),
        shape.stride,
        shape.groups,
        module.weight.detach().abs().sum(dtype=torch.float64).item(),
        takes_skip(shape),
    )


def _edits(
    network: Network,
    where: Line,
    segment: Segment,
    kept: Sequence[str],
    statistics: Mapping[str, SiteStatistics],
    dims: Mapping[str, int],
) -> tuple[Edit, ...]:
    """A pruned layer goes with its norms; of the activations up to the next kept layer the first, which sees what it
    was fitted to, becomes affine and the others go."""
    links = dict(zip(where.layers, where.links, strict=True))
    inside = [name for name in segment.layers if name in links]
    left_out: list[str] = []
    for name in inside:
        own = [link for link in links[name] if link in segment.layers]
        if name not in kept:
            left_out += [name, *own]
        elif name == kept[-1]:
            left_out += [link for link in own if isinstance(network.layer(link), RECTIFIERS)]
    chain = [name for name in segment.layers if name not in left_out]
    edits = [
        linearize(site, statistics[site].slope, statistics[site].intercept, dims[site])
        for site in segment.sites
        if site in chain
    ]
    if left_out:
        edits.append(prune(left_out))
    if len(kept) > 1 or segment.skip:
        edits.append(merge(chain, skip=segment.skip))
    return tuple(edits)


@dataclass(frozen=True)
class Tables:
    """T and I of a network: a row for every layer as it stands (`merging` None) and for every merging measured."""

    spans: tuple[Span, ...]
    times_ms: tuple[float, ...]
    importances: tuple[float, ...]
    damages: tuple[float, ...]
    mergings: tuple[Merging | None, ...]
    line: Line


def tables(
    network: Network,
    costs: Price,
    statistics: Mapping[str, SiteStatistics],
    damage_of: Callable[[Sequence[Edit]], float],
    *,
    importance_of: Callable[[float], float] = python_operator.neg,
    progress: Callable[[str], None] = lambda text: None,
) -> Tables:
    """Prices every entry and measures those that save time; no path is better for one that does not.

    Args:
        statistics: the affine fits of the network's rectifiers, by site.
        damage_of: divergence, at least 0, of the network's outputs after edits of it; called once an entry.
        importance_of: of a damage, decreasing; `lambda d: math.exp(-d)` has the paper's scale.
    """
    where = line(network, costs)
    singles = [(number, number + 1) for number in range(len(where.layers))]
    useful = [m for m in mergings(network, costs, statistics, where) if m.saving_ms > 0]
    damages = [0.0] * len(singles)
    for merging in useful:
        progress(f"measuring the damage of merging {' + '.join(merging.kept)} into {merging.becomes}")
        damages.append(damage_of(merging.edits))
    return Tables(
        (*singles, *(m.span for m in useful)),
        (*where.single_ms, *(m.time_ms for m in useful)),
        tuple(map(importance_of, damages)),
        tuple(damages),
        (*(None for _ in singles), *useful),
        where,
    )


@dataclass(frozen=True)
class Choice:
    """What the dynamic programme takes from the tables.

    Attributes:
        mergings: disjoint, along the line.
        edits: theirs, in the order they apply.
        predicted_ms: the whole network's time afterwards, at most the budget.
        damage: the sum of theirs, each measured alone.
        path: the rows of the tables.
    """

    mergings: tuple[Merging, ...]
    edits: tuple[Edit, ...]
    predicted_ms: float
    damage: float
    path: Path


def choose(table: Tables, budget_ms: float, *, grid_ms: float | None = None) -> Choice | None:
    """The most important choice whose predicted time is within the budget, or None when no choice is."""
    path = best_path(
        [start for start, _ in table.spans],
        [end for _, end in table.spans],
        table.times_ms,
        table.importances,
        budget_ms - table.line.fixed_ms,
        goals=[len(table.line.layers)],
        grid_ms=grid_ms,
    )
    if path is None:
        return None
    taken = tuple(m for row in path.rows if (m := table.mergings[row]) is not None)
    return Choice(
        taken,
        tuple(edit for merging in taken for edit in merging.edits),
        table.line.fixed_ms + path.time_ms,
        sum(table.damages[row] for row in path.rows),
        path,
    )
