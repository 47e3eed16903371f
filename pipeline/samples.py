"""The user's samples as a fit uses them: what it trains on, what it looks at, what it is judged on."""

from __future__ import annotations

import math
import random
from pathlib import Path

from torch import Tensor

from calibration.dataset import Samples, open_samples
from pipeline.export.contract import Contract
from pipeline.recipe import Recipe
from targets.errors import UsageError

OBSERVED_VALUES = 1 << 25  # of their inputs together


class FitSamples:
    """The data of a recipe, read once and checked: finite, of the network's input shape, labels within its outputs.

    Attributes:
        training: what recovery trains on.
        test: what quality is judged on; no stage that makes a network sees it.
        calibration: a random part of the training samples that statistics and planning look at.
        contract: what the data tells an app: range, normalisation, names of the classes.
    """

    def __init__(self, recipe: Recipe, input_shape: tuple[int, ...], classes: int | None) -> None:
        data = _open(recipe, recipe.data, input_shape, classes)
        _require_repeatable(data)
        self.contract = Contract.of(data, recipe.labels, classes)
        if recipe.test is None:
            self.training, self.test = data.split(0.2, recipe.seed)
        else:
            self.training, self.test = data, _open(recipe, recipe.test, input_shape, classes)
            self.test.validate()
        count = min(recipe.calibration_samples, len(self.training))
        chosen = random.Random(recipe.seed).sample(range(len(self.training)), count)
        self.calibration = self.training.select(chosen)  # in no order: any first part is a random one, too


def observed(calibration: Samples) -> Samples:
    """Those that activations are observed on: of large samples a few hundred are enough, with values at every pixel."""
    return calibration.take(max(64, OBSERVED_VALUES // math.prod(calibration.shape)))


def _require_repeatable(samples: Samples) -> None:
    first, again = (next(samples.take(1).batches(1))[0] for _ in range(2))
    if not first.equal(again):
        raise UsageError(
            "the data changes from one reading to the next",
            where=samples.name,
            why="the first sample differs when it is read twice, as random augmentation does",
            fix="return the dataset without random augmentation; recovery varies the samples itself",
            code="DATA_RANDOM",
        )


def two_samples(recipe: Recipe) -> Tensor:
    """The first samples [2, ...] of the data, before the network's input shape is known.

    Raises:
        UsageError: MODEL_EXAMPLE for a folder of images, which could be of any size.
    """
    if Path(recipe.data).is_dir():
        raise UsageError(
            "the network's input size is not known",
            where=recipe.model,
            why="a folder of images does not say what size the network takes",
            fix="let the callable return the pair (model, torch.zeros(1, 3, 224, 224)), with your size",
            code="MODEL_EXAMPLE",
        )
    return next(_open(recipe, recipe.data, None, None).take(2).batches(2))[0]


def _open(recipe: Recipe, source: str, shape: tuple[int, ...] | None, classes: int | None) -> Samples:
    return open_samples(source, input_shape=shape, classes=classes, mean=recipe.mean, std=recipe.std)
