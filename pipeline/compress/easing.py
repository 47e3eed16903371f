"""EASIER's rounds as a planner: a budget is answered by the fewest removals whose merges meet it.

The paper removes for as long as the accuracy lasts. Here rounds (see `easier.iterate`) go on only as far as a budget
asks, each trained when it is due, and the tolerated drop may end them earlier. What the activations leave behind is
merged, all that saves time.

What we do otherwise than the paper: only a rectifier inside a segment whose merge saves time on the target is removed,
the lowest entropy first. The others would cost accuracy and bring nothing.

needs: data, training. knob: how many rounds, and the tolerated drop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.compress.easier import Easing, Removal, Removed, Round, iterate, remove_lowest
from pipeline.compress.merge import merge
from pipeline.compress.options import Option, most_saving
from pipeline.compress.plan import Plan
from pipeline.compress.realising import realise
from pipeline.compress.segments import Segment, merge_span, segments
from pipeline.compress.split import with_own_rectifiers
from pipeline.compress.subject import Rejected, Subject
from pipeline.model.edits import replay
from pipeline.model.network import Network, positions
from pipeline.model.operators import milliseconds


@dataclass(frozen=True)
class EasedPlan(Plan):
    """A plan for a network that rounds have trained.

    `damage` is counted from the original's output, that of an option too: what the training changed is in it.

    Attributes:
        removed: the activations that are lines by now, in the order they went.
        trained: what the options are about.
    """

    removed: tuple[Removed, ...]
    trained: Network

    @property
    def sites(self) -> tuple[str, ...]:
        """The activations that become linear, whether or not what that leaves is merged."""
        return tuple(gone.site for gone in self.removed)


class EasierRounds:
    """The planner."""

    def __init__(self, subject: Subject, easing: Easing) -> None:
        self.subject, self.easing = subject, easing
        dense = with_own_rectifiers(subject.base)
        self._rounds = iterate(dense, self._remove, easing) if self._worthwhile(dense) else iter(())
        self._plans = [EasedPlan((), 0.0, subject.base_ms, 0.0, False, (), subject.base)]
        self._measured = {0: self._plans[0]}
        self._too_slow = _too_slow(segments(dense, subject.costs))
        self._ended: Rejected = ()

    @property
    def rejected(self) -> Rejected:
        return (*self._too_slow, *self._ended)

    def start(self, chosen: Plan) -> Network:
        return chosen.trained

    def plan(self, budget_ms: float) -> EasedPlan:
        tried: list[EasedPlan] = []
        for plan in self._every():
            tried.append(plan)
            if len(plan.removed) >= self.subject.linearize and plan.predicted_ms <= budget_ms + 1e-12:
                break
        deep = [plan for plan in tried if len(plan.removed) >= self.subject.linearize] or tried[-1:]
        chosen = self._with_damage(min(deep, key=lambda plan: plan.predicted_ms))
        return replace(chosen, budget_ms=budget_ms, reachable=chosen.predicted_ms <= budget_ms + 1e-12)

    def _every(self) -> Iterator[EasedPlan]:
        """The plans after 0, 1, 2 ... tolerated rounds; a round that has not been made trains when it is asked for."""
        yield from self._plans
        for done in self._rounds:
            self.subject.progress(self._told(done))
            if not done.tolerated:
                self._ended = (self._intolerable(done),)
            elif done.removed:
                self._plans.append(self._merged(done))
                yield self._plans[-1]

    def _told(self, done: Round) -> str:
        reached = f"{done.accuracy:.2f} % of the held-out samples right"
        if not done.removed:
            return f"trained with every activation: {reached}"
        lost = f"{done.drop:.2f} points lost, {self.easing.tolerated_drop:g} tolerated"
        return f"round {len(done.removed)}: {reached}, {lost}"

    def _intolerable(self, done: Round) -> tuple[str, str, str]:
        why = (
            f"round {len(done.removed)}, the last: without it {done.drop:.2f} points of accuracy are lost on held-out "
            f"samples and {self.easing.tolerated_drop:g} are tolerated"
        )
        return "linearize", done.removed[-1].site, why

    def _worthwhile(self, network: Network) -> list[str]:
        """The rectifiers inside segments whose merge saves time."""
        faster = [segment for segment in segments(network, self.subject.costs) if segment.saving_ms > 0]
        return list(dict.fromkeys(site for segment in faster for site in segment.sites))

    def _remove(self, network: Network) -> Removal | None:
        batches = [*self.subject.batches, *(self.subject.fitted or ())]
        gone = remove_lowest(network, batches, self._worthwhile(network))
        if gone is not None:
            self.subject.progress(f"{gone.site} has the lowest entropy, {gone.entropy_bits:.3f} bits: it is removed")
        return gone

    def _merged(self, done: Round) -> EasedPlan:
        """All merges that save time in what a round left, whatever the budget; their damage is not known yet."""
        network, costs = done.network, self.subject.costs
        place, gone = positions(network), {one.site for one in done.removed}
        linear = [segment for segment in segments(network, costs) if segment.saving_ms > 0 and not segment.sites]
        options = most_saving([_option(network, segment, place, gone) for segment in linear])
        edited = replay(network, [edit for option in options for edit in option.edits])
        predicted = sum(milliseconds(edited, costs).values())
        return EasedPlan(options, 0.0, predicted, 0.0, False, done.removed, network)

    def _with_damage(self, plan: EasedPlan) -> EasedPlan:
        """With the damage of each merge alone, and of all of them."""
        subject, rounds = self.subject, len(plan.removed)
        if rounds not in self._measured:
            subject.progress(f"measuring the damage of {len(plan.options)} merges after {rounds} rounds")
            options = tuple(replace(option, damage=self._damage_of(plan, (option,))) for option in plan.options)
            self._measured[rounds] = replace(plan, options=options, damage=self._damage_of(plan, options))
        return self._measured[rounds]

    def _damage_of(self, plan: EasedPlan, options: tuple[Option, ...]) -> float:
        return self.subject.divergence_of(realise(plan.trained, options, self.subject.batches))


def _option(network: Network, segment: Segment, place: dict[str, int], gone: set[str]) -> Option:
    return Option(
        "merge",
        segment.layers[0],
        merge_span(network, segment, place),
        segment.saving_ms,
        0.0,
        (merge(segment.layers, skip=segment.skip),),
        segment.summary,
        tuple(name for name in segment.layers if name in gone),
    )


def _too_slow(found: list[Segment]) -> Rejected:
    if not found:
        return (("merge", "the network", "it has no two layers with nothing but norms and activations between them"),)
    return tuple(
        (
            "merge",
            segment.layers[0],
            f"no activation is removed for {segment.becomes}, which takes {segment.after_ms:.4f} ms, the "
            f"{len(segment.layers)} layers it would replace {segment.before_ms:.4f} ms",
        )
        for segment in found
        if segment.saving_ms <= 0
    )
