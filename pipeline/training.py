"""The trainings of a fit, each resumable: LoRITa's, LayerCollapse's and EASIER's before a plan, recovery behind it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from calibration.dataset import Samples
from pipeline.compress.analysis import run
from pipeline.compress.descent import Policy, Progress, require_labels, train
from pipeline.compress.easier import POLICIES as EASIER_POLICIES
from pipeline.compress.easier import Easing
from pipeline.compress.factorize import PRESETS as FACTOR_POLICIES
from pipeline.compress.factorize import factorized, merged
from pipeline.compress.melt import PRESETS as MELTINGS
from pipeline.compress.melt import Melting, melt
from pipeline.compress.recover import Recovery, recover
from pipeline.model import edits as edit_log
from pipeline.model.edits import replay
from pipeline.model.network import Network
from pipeline.quantities import parse_duration
from pipeline.recipe import Recipe
from pipeline.store.run_directory import RunDirectory
from targets.errors import UsageError

PACED_STEPS = 8
HELD_OUT = 0.1  # of the training samples, for the accuracy of EASIER's rounds: the paper's share
JUDGED = 64  # samples in one forward pass


def require_trainable(recipe: Recipe, training: Samples, classes: bool) -> None:
    """Refuse a method that trains on labels where it cannot.

    Raises:
        UsageError: DATA_UNLABELLED; METHOD_OUTPUT where the outputs are no rows of class scores.
    """
    if recipe.method == "lorita":
        asked = "--method lorita"
    elif recipe.method == "layercollapse" and recipe.melting != "taught":
        asked = f"--melting {recipe.melting}"
    elif recipe.method == "easier" and recipe.removal == "rounds":
        asked = "--removal rounds"
    else:
        return
    require_labels(training, asked)
    if not classes:
        raise UsageError(
            f"{asked} trains on class numbers",
            where=recipe.model,
            why="the network's output is not one row of class scores a sample",
            fix="choose another method; `auto` and `layercollapse` need no labels",
            code="METHOD_OUTPUT",
        )


class Training:
    """What a recipe asks to be trained, on the training samples.

    Args:
        base: gives the original network: where training begins, and the teacher.
        about: what names it, and the tools, for the keys of stages.
        classes: the outputs are rows of class scores.
        told: what a person would want to hear while waiting.
    """

    def __init__(
        self,
        run: RunDirectory,
        recipe: Recipe,
        base: Callable[[], Network],
        about: Mapping[str, str],
        samples: Samples,
        classes: bool,
        told: Callable[[str], None],
    ) -> None:
        self.run, self.recipe, self.samples, self.classes = run, recipe, samples, classes
        self._base, self._about, self.told = base, about, told

    @cached_property
    def base(self) -> Network:
        return self._base()

    # Before a plan ---------------------------------------------------------------------------------------------

    @property
    def factor_policy(self) -> Policy:
        """The authors', but over the recipe's epochs, in which a cosine lowers the rate: no plateau comes in so few."""
        policy = replace(FACTOR_POLICIES["lorita-cifar10"], milestones=None, plateau=None)
        return replace(policy.lasting(self.recipe.train_epochs), augment=self.recipe.augment, seed=self.recipe.seed)

    def factorized(self) -> Network:
        """The base retrained as factor chains and merged again: its structure, other weights."""
        policy, factors = self.factor_policy, self.recipe.lorita_factors

        def make(checkpoint: Path) -> Network:
            progress = self._progress(f"training {factors} factors a layer", policy.steps(self.samples))
            chains = factorized(self.base, factors)
            return merged(train(chains, self.samples, policy, checkpoint=checkpoint, progress=progress))

        return self._kept("trained", {}, make)[0]

    @property
    def melting(self) -> Melting:
        settings = MELTINGS[self.recipe.melting]
        policy = settings.policy.lasting(self.recipe.train_epochs)
        policy = replace(policy, augment=self.recipe.augment, seed=self.recipe.seed)
        return replace(settings, policy=policy, classes=self.classes)

    def melted(self, network: Network, sites: Sequence[str]) -> Network:
        """`network`, the base, with the activations at `sites` driven to the identity while it trained."""
        settings = self.melting
        teacher = self.base if self.recipe.melting == "taught" else None

        def make(checkpoint: Path) -> Network:
            progress = self._progress(f"melting {len(sites)} activations", settings.policy.steps(self.samples))
            return melt(network, teacher, self.samples, settings, sites, checkpoint=checkpoint, progress=progress)

        return self._kept(f"melted/{len(sites):02d}", {"sites": list(sites)}, make)[0]

    @property
    def easing_policy(self) -> Policy:
        policy = EASIER_POLICIES[self.recipe.easier_policy].lasting(self.recipe.train_epochs)
        return replace(policy, augment=self.recipe.augment, seed=self.recipe.seed)

    @property
    def easing(self) -> Easing | None:
        """EASIER's rounds, where the recipe asks for them."""
        return Easing(self.retrained, self.recipe.tolerated_drop) if self.recipe.removal == "rounds" else None

    @cached_property
    def _apart(self) -> tuple[Samples, Samples]:
        """What EASIER's rounds train on, and what they are judged on."""
        return self.samples.split(HELD_OUT, self.recipe.seed)

    def retrained(self, network: Network, number: int) -> tuple[Network, float]:
        """`network`, of EASIER's round `number`, trained again, and its accuracy in points.

        That is top-1 on a tenth of the labelled training samples, which no round trains on. The samples that the run
        is judged on in the end, those of `test`, are not among them.
        """
        seen, held = self._apart
        policy, what = self.easing_policy, f"round {number} of removal" if number else "training before removal"

        def make(checkpoint: Path) -> Network:
            progress = self._progress(what, policy.steps(seen))
            return train(network, seen, policy, checkpoint=checkpoint, progress=progress)

        def judge(trained: Network) -> float:
            batches = list(held.batches(JUDGED))
            answers = run(trained, [x for x, _ in batches]).argmax(1)
            return 100.0 * (answers == torch.cat([y for _, y in batches])).double().mean().item()

        return self._kept(f"rounds/{number:02d}", {"network": network.fingerprint()}, make, judge)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that what the recipe's method trains depends on, besides the base and the samples."""
        match self.recipe.method:
            case "lorita":
                return {"factors": self.recipe.lorita_factors, "policy": asdict(self.factor_policy)}
            case "layercollapse":
                return {"preset": self.recipe.melting, "settings": asdict(self.melting)}
            case "easier" if self.recipe.removal == "rounds":
                return {
                    "preset": self.recipe.easier_policy,
                    "policy": asdict(self.easing_policy),
                    "tolerated_drop": self.recipe.tolerated_drop,
                }
            case _:
                return {}

    def _kept(
        self,
        name: str,
        asked: Mapping[str, Any],
        make: Callable[[Path], Network],
        judge: Callable[[Network], Any] = lambda network: None,
    ) -> tuple[Network, Any]:
        """A stage of edits and weights, and what `judge` says; `make` is given the checkpoint that it goes on from."""
        inputs = {**self.about, **self.settings, **asked}

        def save(folder: Path) -> Any:
            network = make(self.checkpoint(inputs))
            edit_log.save(network.edits, folder)
            network.save_weights(folder / "weights.safetensors")
            judged = judge(network)
            self.run.clear_scratch()  # not where the stage is served: a later one may have its checkpoint there
            return judged

        judged = self.run.stage(name, inputs, save)
        folder = self.run.root / name
        return replay(self.base, edit_log.load(folder)).with_weights(folder / "weights.safetensors"), judged

    # After it --------------------------------------------------------------------------------------------------

    @cached_property
    def recovery(self) -> Recovery:
        return self._recovery(self.recipe.recover_steps if self.recipe.recover is None else self._steps_in_time())

    def _steps_in_time(self) -> int:
        """How many steps the recipe's time has room for, by the pace of a few of the original's."""
        asked = {"recover": self.recipe.recover, "batch": self.recipe.recover_batch, **self.about}

        def make(folder: Path) -> dict[str, int]:
            self.told(f"timing {PACED_STEPS} steps of recovery")
            ends: list[float] = []
            trial = self._recovery(PACED_STEPS + 1)  # the first one warms up
            recover(self.base, self.base, self.samples, trial, progress=lambda step, loss: ends.append(monotonic()))
            pace = (ends[-1] - ends[0]) / PACED_STEPS
            return {"steps": int(parse_duration(self.recipe.recover) / pace)}

        return self.run.stage("pace", asked, make, shared=False)["steps"]

    def _recovery(self, steps: int) -> Recovery:
        return Recovery(
            steps,
            self.recipe.recover_batch,
            self.recipe.recover_rate,
            classes=self.classes,
            mixup=self.recipe.mixup,
            augment=self.recipe.augment,
            seed=self.recipe.seed,
        )

    def recovered(self, student: Network, checkpoint: Path) -> Network:
        """The student, taught by the original."""
        progress = self._progress("recovery", self.recovery.steps)
        return recover(student, self.base, self.samples, self.recovery, checkpoint=checkpoint, progress=progress)

    @property
    def recovery_row(self) -> dict[str, Any]:
        """For the report; the fields are those of `EditRecord`."""
        labels = "labels used" if self.samples.has_labels and self.recovery.label_weight > 0 else "no labels"
        return {
            "kind": "recover",
            "site": "the whole network",
            "predicted_saving_ms": None,
            "damage": None,
            "entropy_bits": None,
            "summary": f"up to {self.recovery.steps} steps of distillation from the original, the best kept, {labels}",
        }

    # -----------------------------------------------------------------------------------------------------------

    @property
    def about(self) -> dict[str, Any]:
        """What every training depends on, for the key of its stage."""
        return {**self._about, "training": self.samples.fingerprint}

    def checkpoint(self, inputs: Mapping[str, Any]) -> Path:
        """Where a training made from these inputs keeps its state until it is done."""
        return self.run.scratch(hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16])

    def _progress(self, what: str, steps: int) -> Progress:
        return lambda step, loss: self.told(f"{what}: step {step} of {steps}, loss {loss:.4f}")
