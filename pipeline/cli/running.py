"""A run that speaks: its console, and the stage that stands for it there."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.api import Listener
from pipeline.recipe import Recipe
from reports.console import Console, Stage
from reports.records import CandidateRecord, GoalRecord, TargetRecord


class Speaking(Listener):
    """Tells a console of a run."""

    def __init__(self, console: Console, stage: Stage) -> None:
        self.console, self.stage = console, stage

    def doing(self, text: str) -> None:
        self.stage.update(text)

    def begun(self, recipe: Recipe, targets: Sequence[TargetRecord], goal: GoalRecord) -> None:
        self.console.begin(recipe.model, targets, goal)

    def judged(self, candidate: CandidateRecord) -> None:
        self.console.probe(candidate)
