"""Which rank for which layer: selectors that turn singular values into ranks, and ranks into a budget.

A selector returns a rank for every layer, or None where the layer stays whole. All of them ask what a rank costs, in
milliseconds on the target where these are given, else in the parameters r (Cout + Cin k^2) of the two thin layers
(LoRITa, 2405.03089), and never take a rank that another, higher one undercuts: `Spectrum.settled`. The published
break-even rule is the case in which parameters count, and the highest "rank" is the layer as it is.

    local     the same share of the singular values of every layer (LoRITa)
    uniform   the same share of the cost of every layer: the usual baseline
    pooled    the largest of all values, each relative to its layer's largest (LoRITa, "global")
    greedy    step by step from the layer whose loss grows least (LoRITa, "iter")
    alds      the least largest relative error |W - W_r|_2 / |W|_2 under a budget (ALDS, 2107.11442)

`greedy` and `alds` take a budget; `within` finds the setting of the other three that keeps one.

needs: weights; a loss for `greedy`. knob: the budget, or the share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from pipeline.compress.algebra import operator_of
from pipeline.compress.truncate import truncate
from pipeline.model.edits import Edit

FLOOR = 1
GREEDY_FLOOR = 2
BISECTIONS = 50

Ranks = dict[str, int | None]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A layer as rank selection sees it.

    Attributes:
        values: [R] float64, falling: the singular values of the weight as [Cout, Cin k k]. With groups, the largest
            j-th singular value of any group's [Cout, Cin k k / groups].
        rows, columns: Cout and Cin k k.
        linear: an `nn.Linear`, which `pooled` treats apart.
        costs: [R + 1], what the two thin layers cost at rank 1 ... R, and last what the layer costs as it is; infinite
            for a rank that is not on offer. None counts parameters.
        groups: channel groups of the first thin layer; each has a rank of its own (ALDS).
        norm: |W|_2; None where it is the first value, that is without groups.
    """

    values: np.ndarray
    rows: int
    columns: int
    linear: bool = False
    costs: np.ndarray | None = None
    groups: int = 1
    norm: float | None = None

    @property
    def full(self) -> int:
        return len(self.values)

    @cached_property
    def prices(self) -> np.ndarray:
        """[R + 1]: `costs`, or parameters: j (groups Cout + Cin k k) at rank j."""
        if self.costs is not None:
            return np.asarray(self.costs, dtype=np.float64)
        thin = np.arange(1, self.full + 1) * (self.groups * self.rows + self.columns)
        return np.append(thin, self.rows * self.columns).astype(np.float64)

    @cached_property
    def least_prices(self) -> np.ndarray:
        """[R + 1]: the least price of each rank or any higher one; rises with the rank."""
        return np.minimum.accumulate(self.prices[::-1])[::-1]

    def settled(self, rank: int) -> int | None:
        """The cheapest form of at least `rank`, of equally cheap ones the highest; None: the layer as it is.

        Hence break-even, vector units that compute rank 5 and rank 8 in the same time, and ranks not on offer.
        """
        from_here = self.prices[max(rank, FLOOR) - 1 :]
        best = self.full - int(from_here[::-1].argmin())  # the last of the least ones
        return None if best == self.full else best + 1

    def cost(self, rank: int | None) -> float:
        return float(self.prices[-1 if rank is None else rank - 1])

    def errors(self, bound: bool = True) -> np.ndarray:
        """[R]: relative error in operator norm after keeping 0 ... R - 1.

        Exact for one group. For k groups the largest error of a group is only a lower bound, and the authors' code
        allocates by it, which favours many groups; times sqrt(k) it is the upper bound of the paper (`bound`).
        """
        norm = self.values[0] if self.norm is None else self.norm
        return self.values / max(norm, np.finfo(float).tiny) * (self.groups**0.5 if bound else 1.0)


Spectra = Mapping[str, Spectrum]


def spectrum_of(module: nn.Module, milliseconds: Callable[[int | None], float] | None = None) -> Spectrum:
    """The spectrum of a dense convolution or linear layer.

    Args:
        milliseconds: of the two thin layers at a rank on the target, and of the layer as it is for None.
    """
    matrix = operator_of(module).weight.flatten(1)
    values = torch.linalg.svdvals(matrix).numpy()
    costs = None
    if milliseconds is not None:
        costs = np.array([milliseconds(rank) for rank in (*range(1, len(values) + 1), None)])
    return Spectrum(values, *matrix.shape, isinstance(module, nn.Linear), costs)


def total_cost(spectra: Spectra, ranks: Mapping[str, int | None]) -> float:
    """Milliseconds, or parameters, of all layers together."""
    return sum(spectrum.cost(ranks[name]) for name, spectrum in spectra.items())


def truncations(ranks: Mapping[str, int | None]) -> list[Edit]:
    """The edits of a choice, in the weights' own basis: what follows the merging of LoRITa's factors."""
    return [truncate(name, rank) for name, rank in ranks.items() if rank is not None]


def local(spectra: Spectra, keep: float) -> Ranks:
    """Every layer keeps `keep` of its singular values, rounded down, and one at least."""
    return {name: spectrum.settled(_whole(spectrum.full * keep)) for name, spectrum in spectra.items()}


def uniform(spectra: Spectra, keep: float) -> Ranks:
    """Every layer keeps the highest rank that costs at most `keep` of what the layer costs as it is."""
    ranks = {}
    for name, spectrum in spectra.items():
        affordable = np.searchsorted(spectrum.least_prices, keep * spectrum.prices[-1] * (1 + 1e-12), side="right")
        ranks[name] = spectrum.settled(int(affordable))
    return ranks


def pooled_ranks(spectra: Spectra, keep: float) -> dict[str, int]:
    """How many values each layer keeps when the smallest of the pool go, before the cost is asked."""
    relative = {name: spectrum.errors(bound=False) for name, spectrum in spectra.items()}
    pool = np.sort(np.concatenate(list(relative.values()))) if relative else np.empty(0)
    dropped = _whole(len(pool) * (1 - keep))
    limit = pool[dropped - 1] if dropped else -1.0
    return {name: max(FLOOR, int((values > limit).sum())) for name, values in relative.items()}


def pooled(spectra: Spectra, keep: float, *, linear: bool = False) -> Ranks:
    """LoRITa's global selection: S / max(S) of all convolutions in one pool, of which the share `keep` stays.

    The largest value of a layer always stays. Linear layers stay whole, or with `linear` have a pool of their own,
    normalised as well (the authors' code pools their plain singular values).
    """
    ranks: Ranks = dict.fromkeys(spectra)
    for apart in (False, True) if linear else (False,):
        pool = {name: spectrum for name, spectrum in spectra.items() if spectrum.linear == apart}
        ranks |= {name: pool[name].settled(rank) for name, rank in pooled_ranks(pool, keep).items()}
    return ranks


def within(select: Callable[[float], Ranks], spectra: Spectra, budget: float) -> Ranks:
    """The mildest choice of a selector that costs at most `budget`, by bisection on the share it keeps.

    When even its strongest costs more, that one: compare `total_cost`.
    """
    mildest = select(1.0)
    if total_cost(spectra, mildest) <= budget:
        return mildest
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if total_cost(spectra, select(middle)) <= budget else (low, middle)
    return select(low)


def alds(spectra: Spectra, budget: float, *, bound: bool = True) -> Ranks:
    """The choice with the least largest relative error that costs at most `budget`; if none does, the cheapest.

    Every layer takes the lowest rank whose error is at most tau, one at least; the cost falls as tau grows, so that
    bisection over the errors that occur finds the least tau exactly.
    """
    errors = {name: spectrum.errors(bound) for name, spectrum in spectra.items()}

    def at(tau: float) -> Ranks:
        return {name: spectrum.settled(int((errors[name] > tau).sum())) for name, spectrum in spectra.items()}

    taus = np.unique(np.concatenate([[0.0], *errors.values()]))
    low, high = 0, len(taus) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if total_cost(spectra, at(taus[middle])) <= budget else (middle + 1, high)
    return at(taus[low])


def largest_error(spectra: Spectra, ranks: Mapping[str, int | None], *, bound: bool = True) -> float:
    """What `alds` minimises: the largest relative error of any layer."""
    kept = ((spectrum.errors(bound), ranks[name]) for name, spectrum in spectra.items())
    return max((float(e[rank]) for e, rank in kept if rank is not None and rank < len(e)), default=0.0)


def greedy(
    spectra: Spectra,
    loss_of: Callable[[Ranks], float],
    *,
    budget: float = 0.0,
    grid: int = 8,
    tune: Callable[[Ranks], None] | None = None,
    acceptable: Callable[[Ranks], bool] = lambda ranks: True,
    patience: int = 4,
) -> Ranks:
    """LoRITa's iterative selection: each step takes `grid` ranks from the layer whose loss grows least by it.

    The grid is halved, down to 1, when no layer has that many to give above the floor of 2, and, ours, when the step
    would pass the budget, so that the last steps are fine ones. Steps above break-even change nothing and tune nothing.

    Args:
        loss_of: training loss of a choice.
        budget: steps end when the cost is at most this.
        grid: 8 for ResNet-20 and 32 for VGG-16 in the authors' code.
        tune: fine-tunes after each step what `loss_of` looks at (the authors': up to 50 epochs at a rate of 1e-2).
        acceptable: whether a choice is good enough (the authors': at most a point of accuracy below the reference).
            After `patience` steps in a row that are not, the last one that was is returned.

    Returns:
        The choice that costs at most the budget, or the last acceptable one.
    """
    raw = {name: spectrum.full for name, spectrum in spectra.items()}
    losses: dict[tuple[int | None, ...], float] = {}

    def settled(ranks: Mapping[str, int]) -> Ranks:
        return {name: spectrum.settled(ranks[name]) for name, spectrum in spectra.items()}

    def loss(name: str) -> float:
        ranks = settled(raw | {name: raw[name] - grid})
        key = tuple(ranks.values())
        if key not in losses:
            losses[key] = loss_of(ranks)
        return losses[key]

    good, refused = settled(raw), 0
    while total_cost(spectra, settled(raw)) > budget and refused < patience:
        able = [name for name in raw if raw[name] - grid >= GREEDY_FLOOR]
        if not able and grid == 1:
            break
        least = min(able, key=loss) if able else None
        after = raw if least is None else raw | {least: raw[least] - grid}
        if grid > 1 and (least is None or total_cost(spectra, settled(after)) <= budget):
            grid //= 2
            continue
        changed, raw = settled(after) != settled(raw), after
        if not changed:
            continue
        if tune is not None:
            tune(settled(raw))
            losses.clear()
        good, refused = (settled(raw), 0) if acceptable(settled(raw)) else (good, refused + 1)
    return good


def _whole(value: float) -> int:
    """Rounded down, with 0.3 * 10 and 10 * (1 - 0.7) both 3."""
    return int(value + 1e-9)
