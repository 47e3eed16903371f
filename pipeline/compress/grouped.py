"""Low-rank truncation in groups of input channels, and the choice of how many groups (ALDS, 2107.11442).

The Cin input channels are split into g equal groups, and each group's [Cout, Cin k k / g] is truncated to rank j:

    conv k x k in g groups: Cin -> g j;   then 1x1: g j -> Cout

with j (g Cout + Cin k k) parameters. One group is `truncate`. Which number of groups is best depends on what a
layer may cost, and that on the numbers of groups of all layers: the search alternates between both from several starts.
Of the paper's four ways to fold a kernel this is the first, its default; the choice of the others is not made.

needs: weights. knob: the budget.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compress.algebra import LinearOperator, operator_of
from pipeline.compress.ranks import Spectrum, alds, largest_error, total_cost
from pipeline.compress.truncate import thinned, truncate
from pipeline.model.edits import Edit, applies
from pipeline.model.network import Network

STARTS = (1, 3, 5, 7, 9)  # groups, or the nearest there is; 1 is ours: the result is never worse than that of `alds`
SEEDS = 15
ROUNDS = 4
ROUNDINGS = (0.5, 0.3, 0.1, -0.1, -0.3, -0.5)

Forms = Mapping[int, Spectrum]
Choice = tuple[int, int]  # rank of each group, groups


def truncate_grouped(site: str, rank: int, groups: int) -> Edit:
    """The edit that truncates convolution `site` to `rank` in each of `groups` groups of its input channels."""
    return Edit("truncate_grouped", site, {"rank": rank, "groups": groups})


def grouped_factors(operator: LinearOperator, rank: int, groups: int) -> tuple[LinearOperator, LinearOperator]:
    """The two thin operators, first `reduce` (k x k in groups, no bias), then `expand` (1x1)."""
    left, values, right = torch.linalg.svd(_by_group(operator, groups), full_matrices=False)
    root = values[:, :rank].sqrt()  # split evenly, so that both factors train at the same scale
    down = root[:, :, None] * right[:, :rank]
    up = left[:, :, :rank] * root[:, None, :]
    reduce = LinearOperator(
        down.reshape(groups * rank, operator.in_channels // groups, *operator.kernel),
        torch.zeros(groups * rank, dtype=torch.float64),
        operator.stride,
        operator.padding,
        operator.dilation,
        groups,
    )
    return reduce, LinearOperator(up.transpose(0, 1).reshape(operator.out_channels, -1, 1, 1), operator.bias)


def forms_of(module: nn.Module, milliseconds: Callable[[int | None, int], float] | None = None) -> dict[int, Spectrum]:
    """The spectra of a dense layer by the number of groups: every divisor of its input channels at which some rank
    has fewer parameters than the layer; for a linear layer, which has no groups, 1 alone.

    Args:
        milliseconds: of the two thin layers at a rank and number of groups on the target, and for (None, 1) of the
            layer as it is.
    """
    operator = operator_of(module)
    rows, columns = operator.weight.flatten(1).shape
    norm = float(torch.linalg.matrix_norm(operator.weight.flatten(1), ord=2))
    most = 1 if operator.tokens else operator.in_channels
    forms = {}
    for groups in (k for k in range(1, most + 1) if operator.in_channels % k == 0):
        if groups > 1 and groups * rows + columns >= rows * columns:
            break
        values = torch.linalg.svdvals(_by_group(operator, groups)).amax(0).numpy()
        costs = None
        if milliseconds is not None:
            thin = [milliseconds(rank, groups) for rank in range(1, len(values) + 1)]
            costs = np.array([*thin, milliseconds(None, 1)])
        forms[groups] = Spectrum(values, rows, columns, operator.tokens, costs, groups, norm)
    return forms


def alds_grouped(
    forms: Mapping[str, Forms], budget: float, *, seeds: int = SEEDS, bound: bool = True
) -> dict[str, Choice | None]:
    """Rank and groups of every layer, None where it stays whole, with the least largest error found under `budget`.

    From each start four times: allocate ranks by `alds` to the layers in their present groups; with what each layer
    then costs, give it the number of groups whose error is least at that cost. The authors take 15 starts, 30 in their
    longer variant. When nothing keeps the budget, the cheapest that was found.
    """
    best: dict[str, Choice | None] = {}
    least = (True, math.inf, math.inf)
    for seed in range(seeds):
        groups = _start(forms, seed)
        for _ in range(ROUNDS):
            spectra = {name: forms[name][k] for name, k in groups.items()}
            ranks = alds(spectra, budget, bound=bound)
            cost, error = total_cost(spectra, ranks), largest_error(spectra, ranks, bound=bound)
            found = (False, error, cost) if cost <= budget else (True, cost, error)
            if found < least:
                least = found
                best = {name: None if rank is None else (rank, groups[name]) for name, rank in ranks.items()}
            groups = _regrouped(forms, {name: spectra[name].cost(ranks[name]) for name in ranks}, budget, bound)
    return best


def grouped_truncations(choice: Mapping[str, Choice | None]) -> list[Edit]:
    """The edits of a choice, in the weights' own basis."""
    return [
        truncate(name, chosen[0]) if chosen[1] == 1 else truncate_grouped(name, *chosen)
        for name, chosen in choice.items()
        if chosen is not None
    ]


def _by_group(operator: LinearOperator, groups: int) -> Tensor:
    """[groups, Cout, Cin k k / groups]."""
    rows, columns = operator.weight.flatten(1).shape
    return operator.weight.reshape(rows, groups, columns // groups).transpose(0, 1)


def _start(forms: Mapping[str, Forms], seed: int) -> dict[str, int]:
    """The number of groups nearest to the seed's (of two the larger), or, after the fixed ones, any."""
    if seed < len(STARTS):
        return {name: min(own, key=lambda k: (abs(k - STARTS[seed]), -k)) for name, own in forms.items()}
    chance = random.Random(seed)
    return {name: chance.choice(sorted(own)) for name, own in forms.items()}


def _regrouped(forms: Mapping[str, Forms], shares: Mapping[str, float], budget: float, bound: bool) -> dict[str, int]:
    """For each layer the number of groups with the least error at its share of the cost.

    The rank that a share buys is rounded to the nearest, and, as long as all together cost more than the budget, with
    a little less goodwill.
    """
    groups: dict[str, int] = {}
    for rounding in ROUNDINGS:
        together = 0.0
        for name, own in forms.items():
            ranks = {k: _affordable(spectrum, shares[name], rounding) for k, spectrum in own.items()}
            groups[name] = min(own, key=lambda k: (np.append(own[k].errors(bound), 0.0)[ranks[k]], k))
            together += own[groups[name]].cost(own[groups[name]].settled(ranks[groups[name]]))
        if together <= budget:
            break
    return groups


def _affordable(spectrum: Spectrum, share: float, rounding: float) -> int:
    """The rank, 1 ... R, that costs about `share`: between two ranks in proportion, then rounded."""
    exact = np.interp(share, [0.0, *spectrum.least_prices[:-1]], range(spectrum.full + 1))
    return min(max(1, math.floor(exact + rounding)), spectrum.full)


@applies("truncate_grouped")
def _apply(network: Network, edit: Edit) -> Network:
    operator = operator_of(network.layer(edit.site))
    return thinned(network, edit, grouped_factors(operator, edit.arguments["rank"], edit.arguments["groups"]))
