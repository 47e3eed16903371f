"""What a method compresses, and what it answers with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from torch import Tensor

from calibration.batchnorm import reestimate
from calibration.statistics import Statistics
from pipeline.compress.analysis import divergence, run
from pipeline.compress.collapse import soften
from pipeline.compress.easier import Easing
from pipeline.compress.plan import Plan
from pipeline.model.edits import Edit, replay
from pipeline.model.network import Network
from pipeline.model.operators import milliseconds
from targets.price import Price

Rejected = tuple[tuple[str, str, str], ...]  # kind, site, reason
Selector = Literal["global", "local", "uniform", "alds", "alds-grouped", "greedy"]


def melted_at_once(network: Network, sites: Sequence[str]) -> Network:
    """The activations become the identity, and nothing trains."""
    return replay(network, [soften(site, slope=1.0) for site in sites])


@dataclass(frozen=True)
class Subject:
    """What is compressed, for what, and what is known of it.

    Attributes:
        base: the original network; for `lorita` what its training made of it.
        statistics: entropies and affine fits of its rectifiers.
        batches: [B, ...] float32 of calibration data, for every measurement of damage.
        fitted: others, for fits; see `analyse`.
        costs: the target's cost table.
        classes: the outputs are rows of class scores.
        linearize: at least this many activations become linear, where the method has that knob.
        ranks: how ranks are selected, where the method truncates (see `ranks`).
        melted: for `layercollapse`, the base with the activations at some sites driven to the identity.
        easing: for `easier`, how its rounds train; None removes all activations at once.
        kept: gives what a method measures by name, made at most once; what it is given can be pickled.
    """

    base: Network
    statistics: Statistics
    batches: Sequence[Tensor]
    costs: Price
    classes: bool
    fitted: Sequence[Tensor] | None = None
    linearize: int = 0
    progress: Callable[[str], None] = field(default=lambda text: None)
    ranks: Selector = "global"
    melted: Callable[[Network, Sequence[str]], Network] = melted_at_once
    easing: Easing | None = None
    kept: Callable[[str, Callable[[], Any]], Any] = field(default=lambda name, make: make())

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
        return self.divergence_of(edited)

    def divergence_of(self, network: Network) -> float:
        """Output divergence of a network from the original."""
        return divergence(self._reference, run(network, self.batches), self.classes)


class Planner(Protocol):
    """A method at work on a subject: measured once, asked for many budgets."""

    @property
    def rejected(self) -> Rejected:
        """What was looked at and is never taken, with the reason: most of it saves no time."""

    def plan(self, budget_ms: float) -> Plan:
        """For a predicted time of at most `budget_ms`, or for the least there is."""

    def start(self, chosen: Plan) -> Network:
        """What the options of a plan are about: the subject's base, or what a training made of it for this plan."""
