"""The methods that `flatten.py` compares: those of planish, parts of `auto` by themselves, and two common baselines.

    auto, easier, layermerge, depth-dp, svd   as a recipe names them; EASIER removes all at once
    lorita          two factors a layer trained on labels for as many steps as recovery takes, merged, then `svd`
    auto-isolated   the plan of `auto`, every edit fitted on the original alone instead of behind the others
    auto-squares    the plan of `auto`, its refits fitted by least squares before the rectifiers instead of through them
    auto-refits     `auto` without narrowing
    auto-narrow     `auto` with nothing but narrowing
    refit-dense     `auto` with nothing but one dense convolution for two layers or more
    uniform-svd     every layer keeps the same share of its time
    torch-pruning   every layer loses the same share of its channels, those of the least norm (Fang et al., CVPR 2023,
                    package torch-pruning), norms re-estimated on the calibration data

All of them price on the same cost table and may use the same calibration data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from unittest.mock import patch

from problems import Problem
from torch import Tensor, nn

from calibration.batchnorm import reestimate
from calibration.dataset import Samples
from calibration.statistics import collect
from pipeline.compress import realising
from pipeline.compress.descent import train
from pipeline.compress.factorize import PRESETS, factorized, merged
from pipeline.compress.linearize import channel_dims, sites
from pipeline.compress.methods import PLANNERS, Planner, Subject, planner
from pipeline.compress.options import Option
from pipeline.compress.plan import Plan, plan
from pipeline.compress.ranks import total_cost, truncations, uniform, within
from pipeline.compress.realising import realise
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network
from pipeline.model.operators import milliseconds, operators
from pipeline.samples import observed
from pipeline.stages import PLANNING_COST_MACS
from targets.cost import CostTable
from targets.errors import MissingEnvironmentError

BISECTIONS = 7
TILE = 8  # channels a vector unit computes at once; pruned widths are multiples of it where layers are wide


@dataclass(frozen=True)
class Candidate:
    """A method's answer to a budget.

    Attributes:
        predicted_ms, damage: what the method expected of it; None where it does not say.
        reachable: False for the least a method can make, where it cannot meet the budget.
        edits: how many of each kind.
    """

    network: Network
    reachable: bool
    predicted_ms: float | None = None
    damage: float | None = None
    edits: dict[str, int] = field(default_factory=dict)


Proposer = Callable[[float], Candidate]  # from a budget in milliseconds


@dataclass(frozen=True, eq=False)
class Contest:
    """One problem, prepared once for all methods.

    Attributes:
        samples: that networks are fitted on.
        planned_on: samples that damage is measured on; as many as a fit takes where None.
        training: all that there are, for a method that trains.
        steps: how many of recovery every method is given.
    """

    problem: Problem
    costs: CostTable
    samples: Samples
    planned_on: int | None
    progress: Callable[[str], None]
    training: Samples
    steps: Callable[[], int]

    @cached_property
    def module(self) -> nn.Module:
        return self.problem.module()

    @cached_property
    def base(self) -> Network:
        return from_program(export_program(self.module, (self.problem.example,)))

    @cached_property
    def macs(self) -> int:
        return sum(row.macs for row in operators(self.base))

    @cached_property
    def planning(self) -> Sequence[Tensor]:
        """Batches that damage is measured on."""
        return self._batches(slice(self._planned))

    @cached_property
    def _planned(self) -> int:
        return min(self.planned_on or max(32, int(PLANNING_COST_MACS / self.macs)), len(self.samples) // 4)

    def _batches(self, samples: slice) -> list[Tensor]:
        return [x for x, _ in self.samples.select(range(len(self.samples))[samples]).batches()]

    @property
    def calibration(self) -> list[Tensor]:
        return self._batches(slice(None))

    @cached_property
    def subject(self) -> Subject:
        self.progress("statistics")
        shown = observed(self.samples).batches()
        statistics = collect(self.base.graph, sites(self.base), shown, channel_dims=channel_dims(self.base))
        others = self._batches(slice(self._planned, None))
        return Subject(self.base, statistics, self.planning, self.costs, True, fitted=others, progress=self.progress)

    @cached_property
    def auto(self) -> Planner:
        return planner("auto", self.subject)

    def proposer(self, method: str) -> Proposer:
        """Everything a method measures before it is asked for a budget happens here."""
        if method in OTHERS:
            return OTHERS[method](self)
        return partial(_realised, self, self.auto if method == "auto" else planner(method, self.subject), self.base)


def _realised(contest: Contest, asked: Planner, base: Network, budget_ms: float) -> Candidate:
    chosen = asked.plan(budget_ms)
    return _candidate(chosen, realise(base, chosen.options, contest.calibration))


def _candidate(chosen: Plan, network: Network) -> Candidate:
    kinds = [option.form.kind if option.form else option.kind for option in chosen.options]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    return Candidate(network, chosen.reachable, chosen.predicted_ms, chosen.damage, counts)


def _isolated(contest: Contest) -> Proposer:
    asked = contest.auto

    def propose(budget_ms: float) -> Candidate:
        chosen = asked.plan(budget_ms)
        network = replay(contest.base, chosen.edits)
        reestimate(network.graph, contest.calibration, contest.base.graph)
        return _candidate(chosen, network)

    return propose


def _squared(contest: Contest) -> Proposer:
    asked = contest.auto

    def propose(budget_ms: float) -> Candidate:
        with patch.object(realising, "cut_behind", lambda network, name: None):
            return _realised(contest, asked, contest.base, budget_ms)

    return propose


def _part(wanted: Callable[[Option], bool], contest: Contest) -> Proposer:
    """`auto` with the options that are wanted."""
    analysis = contest.auto.analysis
    part = replace(analysis, options=tuple(filter(wanted, analysis.options)))

    def propose(budget_ms: float) -> Candidate:
        chosen = plan(part, budget_ms)
        return _candidate(chosen, realise(contest.base, chosen.options, contest.calibration))

    return propose


def _is_dense(option: Option) -> bool:
    return option.form is not None and option.form.kind == "dense" and len(option.region.layers) > 1


def _lorita(contest: Contest) -> Proposer:
    """With the authors' policy but for a cosine, since no plateau comes in so few steps."""
    policy = replace(PRESETS["lorita-cifar10"], milestones=None, plateau=None)
    policy = policy.lasting(contest.steps() / policy.steps_of_a_pass(contest.training))
    contest.progress("training two factors a layer")
    trained = merged(train(factorized(contest.base, 2), contest.training, policy))
    return partial(_realised, contest, planner("lorita", replace(contest.subject, base=trained)), trained)


def _uniform(contest: Contest) -> Proposer:
    svd = PLANNERS["svd"](contest.subject)
    others = contest.subject.base_ms - sum(svd.times.values())

    def propose(budget_ms: float) -> Candidate:
        ranks = within(partial(uniform, svd.spectra), svd.spectra, budget_ms - others)
        predicted = others + total_cost(svd.spectra, ranks)
        edits = truncations(ranks)
        network = replay(contest.base, edits)
        reestimate(network.graph, contest.calibration, contest.base.graph)
        return Candidate(network, predicted <= budget_ms + 1e-12, predicted, None, {"truncate": len(edits)})

    return propose


def _pruned(contest: Contest) -> Proposer:
    known: dict[float, tuple[float, Network]] = {}

    def at(ratio: float) -> tuple[float, Network]:
        if ratio not in known:
            network = from_program(export_program(pruned(contest, ratio), (contest.problem.example,)))
            known[ratio] = sum(milliseconds(network, contest.costs).values()), network
        return known[ratio]

    def propose(budget_ms: float) -> Candidate:
        low, high = 0.0, 1.0 - 0.5**BISECTIONS
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if at(middle)[0] <= budget_ms else (middle, high)
        predicted, network = at(high)
        network = network.copy()
        reestimate(network.graph, contest.calibration)
        return Candidate(network, predicted <= budget_ms, predicted, None, {"pruning ratio, %": round(100 * high)})

    return propose


def pruned(contest: Contest, ratio: float) -> nn.Module:
    """The module without the share `ratio` of its channels, dependent layers narrowed with them.

    A parameter-free skip that pads channels cannot be narrowed by torch-pruning: there only channels inside the
    blocks go.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingEnvironmentError(
            "the baseline torch-pruning is not installed",
            where="--methods torch-pruning",
            why=str(error),
            fix="pip install torch-pruning",
            code="BENCHMARK_PACKAGE_MISSING",
        ) from error
    module, inner = copy.deepcopy(contest.module), contest.problem.inner
    layers = {name: part for name, part in module.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))}
    free = [name for name in layers if inner is None or ("." in name and name.endswith(inner))]
    ignored = [part for name, part in layers.items() if name not in free or isinstance(part, nn.Linear)]
    torch_pruning.pruner.MagnitudePruner(
        module,
        contest.problem.example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=ignored,
        round_to=None if inner else TILE,
    ).step()
    return module.eval()


OTHERS: dict[str, Callable[[Contest], Proposer]] = {
    "auto-isolated": _isolated,
    "auto-squares": _squared,
    "auto-refits": partial(_part, lambda option: option.kind != "narrow"),
    "auto-narrow": partial(_part, lambda option: option.kind == "narrow"),
    "refit-dense": partial(_part, _is_dense),
    "lorita": _lorita,
    "uniform-svd": _uniform,
    "torch-pruning": _pruned,
}
METHODS = (*PLANNERS, *(name for name in OTHERS if name not in PLANNERS))
