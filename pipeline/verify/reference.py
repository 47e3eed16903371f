"""What the network itself answers, run eagerly by PyTorch: what every level of parity is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pipeline.verify.edge_cases import Group, groups

if TYPE_CHECKING:
    from calibration.dataset import Samples

Range = tuple[float, float] | None  # smallest and largest value of the calibration data
_BATCH = 16


@dataclass(frozen=True, eq=False)
class Case:
    """One group and the network's answers to it.

    Attributes:
        outputs: [N, ...] each, in the network's own layout.
        nudged: the same of the samples with every value moved by one rounding, up or down; edge cases only. It shows
            how well conditioned the network is there: where a rounding of the input already moves the outputs far, no
            artifact can follow.
    """

    group: Group
    outputs: tuple[np.ndarray, ...]
    nudged: tuple[np.ndarray, ...] | None = None

    def first(self, count: int) -> Case:
        nudged = self.nudged and tuple(output[:count] for output in self.nudged)
        outputs = tuple(output[:count] for output in self.outputs)
        return Case(Group(self.group.name, self.group.samples[:count]), outputs, nudged)


@dataclass(frozen=True, eq=False)
class Reference:
    """The user's samples and the edge cases made from them, with the network's answers.

    Attributes:
        cases: the user's own samples first.
        labels: class numbers [N] of the user's own samples, where they have any.
    """

    cases: tuple[Case, ...]
    labels: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        samples: np.ndarray,
        labels: np.ndarray | None = None,
        input_range: Range = None,
    ) -> Reference:
        """Run `network` on `samples` [N, C, ...] float32 and on the edge cases made from them (`edge_cases.groups`)."""
        network.eval()
        unit = np.float32(2.0**-24 * max(1e-30, float(np.abs(samples).max())))
        cases = []
        for group in groups(samples, input_range):
            nudged = None
            if group.edge:
                signs = np.random.default_rng(0).choice(np.float32([-1, 1]), group.samples.shape)
                moved = group.samples + signs * np.maximum(unit, np.spacing(np.abs(group.samples)))
                nudged = _answers(network, moved)
            cases.append(Case(group, _answers(network, group.samples), nudged))
        return cls(tuple(cases), labels)

    @classmethod
    def of_samples(cls, network: nn.Module, samples: Samples, classes: int | None, input_range: Range) -> Reference:
        """The same on all of `samples`; their labels count where the outputs are scores of `classes`."""
        x, y = next(samples.batches(len(samples)))
        return cls.of(network, x.numpy(), None if y is None or classes is None else y.numpy(), input_range)

    @property
    def own(self) -> Case:
        """The user's samples."""
        return self.cases[0]

    @property
    def samples(self) -> np.ndarray:
        """All samples in the order of the cases, [N, ...]."""
        return np.concatenate([case.group.samples for case in self.cases])

    def first(self, samples: int, edge_samples: int) -> Reference:
        """Fewer of each, for a runner that is slow."""
        cases = [case.first(edge_samples if case.group.edge else samples) for case in self.cases]
        return Reference(tuple(cases), None if self.labels is None else self.labels[:samples])

    def split(self, outputs: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Outputs [N, ...] on `samples`, cut into those of each case."""
        ends = np.cumsum([len(case.group.samples) for case in self.cases])[:-1]
        return [list(parts) for parts in zip(*(np.split(output, ends) for output in outputs))]


def _answers(network: nn.Module, samples: np.ndarray) -> tuple[np.ndarray, ...]:
    with torch.inference_mode():
        batches = [tree_leaves(network(batch)) for batch in torch.from_numpy(samples).split(_BATCH)]
    return tuple(torch.cat(parts).numpy() for parts in zip(*batches))
