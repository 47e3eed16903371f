"""Early stop: a training is judged from time to time, its best state is kept, and it ends when none is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

LOOKS, LEAST_STEPS = 10, 20  # in a whole training; from one to the next
PATIENCE = 5  # looks without a better state that are borne: at a high rate a training is worse than where it ends


class Watch:
    """The judge of one training, and the best it has seen.

    Args:
        judge: lower is better; of the network as it stands, in eval mode.
    """

    def __init__(self, judge: Callable[[], float]) -> None:
        self.judge, self.best, self.since, self.weights = judge, math.inf, 0, {}

    @property
    def ended(self) -> bool:
        return self.since >= PATIENCE

    def due(self, step: int, steps: int) -> bool:
        """Whether to look when `step` of all steps have been made."""
        return step == steps or step % max(LEAST_STEPS, steps // LOOKS) == 0

    def look(self, graph: nn.Module) -> None:
        training = graph.training
        graph.eval()
        found = self.judge()
        graph.train(training)
        self.since += 1
        if found < self.best:
            self.best, self.since = found, 0
            self.weights = {name: value.detach().clone() for name, value in graph.state_dict().items()}

    @property
    def state(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since, "weights": self.weights}

    def resume(self, state: dict[str, Any]) -> None:
        self.best, self.since, self.weights = state["best"], state["since"], state["weights"]
