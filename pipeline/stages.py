"""The stages of a fit that make networks, each a cached step of the run directory: from one value to the next."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.statistics import Statistics, collect
from pipeline.compress.linearize import channel_dims, sites
from pipeline.compress.methods import planner
from pipeline.compress.realising import realise
from pipeline.compress.subject import Planner, Subject
from pipeline.explain import edit_rows, layer_rows, rejected_rows
from pipeline.export.artifact import sha256_of
from pipeline.model import edits as edit_log
from pipeline.model.edits import replay
from pipeline.model.ingest import ingest, require_one_tensor
from pipeline.model.network import Network
from pipeline.model.operators import milliseconds, operators
from pipeline.recipe import Recipe
from pipeline.samples import FitSamples, observed, two_samples
from pipeline.store.keys import content_key
from pipeline.store.run_directory import RunDirectory
from pipeline.training import Training, require_trainable
from reports.records import OutcomeRecord
from targets.cost import CostTable
from targets.price import Price, StoredBytes, needs, surrogate
from targets.profile import Profile

PLANNING_COST_MACS = 1e10  # multiply-accumulates that one measurement of damage may cost, where 32 samples cost less


@dataclass(frozen=True)
class Made:
    """A candidate network on disk.

    Attributes:
        folder: `candidates/<nn>`, relative to the run.
        result: what its network stage returned: plan figures, rows for the report, hash of the weights.
    """

    folder: str
    result: dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What stages ask of the user's network most, so that a run that finds its work done need not load it.

    Attributes:
        fingerprint: of its graph and weights.
        input_shape: of one sample.
        classes: where its output is one row of class scores a sample.
    """

    fingerprint: str
    input_shape: tuple[int, ...]
    classes: int | None


@dataclass(frozen=True)
class BasePrice:
    """What planning pays for the original: its operators, and what no plan saves."""

    operators: float
    fixed: float


@dataclass(frozen=True)
class Planned:
    """What planning answers to a budget.

    Attributes:
        budget, predicted: asked for and expected, prices of the whole network.
        signature: of the edits that were chosen; the same for two budgets that give one plan.
        smallest: nothing smaller can be planned.
        empty: no edit makes this network cheaper, or none may.
        rejected: rows for the report.
    """

    budget: float
    predicted: float
    signature: str
    smallest: bool
    empty: bool
    rejected: list[dict[str, Any]]


class Stages:
    """The networks of one run; `Evidence` makes artifacts of them. `progress` receives what a person wants to hear."""

    def __init__(
        self,
        run_directory: RunDirectory,
        recipe: Recipe,
        profiles: Sequence[Profile],
        progress: Callable[[str], None],
    ) -> None:
        self.run, self.recipe, self.profiles, self.progress = run_directory, recipe, tuple(profiles), progress
        self._asked: tuple[tuple[str, str | None], ...] = ()  # (quantity, target) of every limit with a price
        self._weights: tuple[float, ...] = ()

    @cached_property
    def samples(self) -> FitSamples:
        samples = FitSamples(self.recipe, self.facts.input_shape, self.classes)
        require_trainable(self.recipe, samples.training, self.classes is not None)
        return samples

    @cached_property
    def training(self) -> Training:
        about = {"torch": torch.__version__, "base": self.facts.fingerprint}
        classes = self.classes is not None
        return Training(self.run, self.recipe, lambda: self.base, about, self.samples.training, classes, self.progress)

    # Networks --------------------------------------------------------------------------------------------------

    @cached_property
    def facts(self) -> Facts:
        """Of the user's network, which is read into the run directory here."""
        recipe = self.recipe

        def make(folder: Path) -> dict[str, Any]:
            self.progress(f"reading {recipe.model}")
            network = ingest(
                recipe.model, weights=recipe.weights and Path(recipe.weights), example=lambda: two_samples(recipe)
            )
            require_one_tensor(network, recipe.model)
            torch.export.save(network.exported(), folder / "network.pt2")
            kept = ingest(str(folder / "network.pt2"))
            return asdict(Facts(kept.fingerprint(), tuple(kept.input_shape), kept.classes))

        row = self.run.stage(
            "base",
            {
                "model": recipe.model,
                "model_file": digest_of(recipe.model),
                "weights": recipe.weights and digest_of(recipe.weights),
                "torch": torch.__version__,
            },
            make,
            shared=False,  # the key does not see what the model's file imports
        )
        return Facts(row["fingerprint"], tuple(row["input_shape"]), row["classes"])

    @cached_property
    def base(self) -> Network:
        """The user's network as it was ingested, read back from the run directory."""
        self.facts  # noqa: B018  (puts it there)
        return ingest(str(self.run.root / "base" / "network.pt2"))

    @property
    def classes(self) -> int | None:
        """Number of classes where the outputs are rows of class scores, and are meant as such."""
        return self.facts.classes if self.recipe.output == "classes" else None

    @cached_property
    def tables(self) -> dict[str, CostTable]:
        """Of each target the costs in the deciding format."""
        format = self.recipe.formats[0]
        return {profile.name: CostTable.load(profile, format, self.progress) for profile in self.profiles}

    @property
    def costs(self) -> CostTable:
        """Of the first target: what layers are shown with."""
        return self.tables[self.profiles[0].name]

    def weigh(self, outcomes: Sequence[OutcomeRecord]) -> None:
        """Let planning pay for what the limits need, given how far the original is from them.

        Peak memory has no price: no table says what an operator adds to it. The search measures it all the same.
        """
        ratios: dict[tuple[str, str | None], float] = {}
        for outcome in outcomes:
            if outcome.quantity != "memory":  # latency and its 90th percentile have one cost table
                what = ("size", None) if outcome.quantity == "size" else ("latency", outcome.target)
                ratios[what] = max(ratios.get(what, 0.0), outcome.value / outcome.limit)
        self._asked, self._weights = tuple(ratios), needs(list(ratios.values()))

    @cached_property
    def price(self) -> Price:
        """What planning pays for an operator; on the scale of the first limit's."""
        if not self._asked:
            return self.costs
        prices = [StoredBytes() if what == "size" else self.tables[target] for what, target in self._asked]
        return surrogate(prices, self._weights, [row.operator for row in operators(self.base)])

    @cached_property
    def base_price(self) -> BasePrice:
        def make(_: Path) -> dict[str, float]:
            return asdict(BasePrice(sum(milliseconds(self.base, self.price).values()), self.price.invoke_ms))

        return BasePrice(**self.run.stage("price", {**self._about_base, **self._about_price}, make))

    @cached_property
    def statistics(self) -> Statistics:
        def make(folder: Path) -> dict[str, Any]:
            samples = observed(self.samples.calibration)
            self.progress(f"entropy of {len(sites(self.base))} activations on {len(samples)} samples")
            found = collect(
                self.base.graph,
                sites(self.base),
                samples.batches(),
                channel_dims=channel_dims(self.base),
            )
            found.save(folder / "statistics.safetensors")
            return {site: found[site].entropy() for site in found}

        self.run.stage("statistics", self._about_base, make)
        return Statistics.load(self.run.root / "statistics" / "statistics.safetensors")

    @cached_property
    def planner(self) -> Planner:
        """The recipe's method with every option measured; made only when a plan is not already in the run directory."""
        base = self.training.factorized() if self.recipe.method == "lorita" else self.base
        macs = sum(row["macs"] for row in layer_rows(self.base, self.costs))
        samples = self.samples.calibration
        count = min(max(32, int(PLANNING_COST_MACS / max(macs, 1))), max(1, len(samples) // 4))
        batches = [x for x, _ in samples.take(count).batches()]
        fitted = [x for x, _ in samples.select(range(count, len(samples))).batches()]
        recipe, training, classes = self.recipe, self.training, self.classes is not None
        knobs = {"linearize": recipe.linearize, "ranks": recipe.ranks, "progress": self.progress}
        knobs |= {"melted": training.melted, "easing": training.easing, "kept": self._kept_table}
        return planner(recipe.method, Subject(base, self.statistics, batches, self.price, classes, fitted, **knobs))

    def _kept_table(self, name: str, make: Callable[[], Any]) -> Any:
        """What a method measured of its options: the dear part of planning, made once and read back."""

        def save(folder: Path) -> None:
            with (folder / "table.pickle").open("wb") as file:
                pickle.dump(make(), file, protocol=pickle.HIGHEST_PROTOCOL)

        self.run.stage(f"planning/{name}", self._about_method, save)
        with (self.run.root / "planning" / name / "table.pickle").open("rb") as file:
            return pickle.load(file)

    @property
    def _about_base(self) -> dict[str, Any]:
        return {
            "base": self.facts.fingerprint,
            "calibration": self.samples.calibration.fingerprint,
            "tools": [torch.__version__, np.__version__],
        }

    @property
    def _about_plan(self) -> dict[str, Any]:
        return {**self._about_base, "costs": _digest_of_costs(self.costs), "output": self.recipe.output}

    @property
    def _about_method(self) -> dict[str, Any]:
        recipe = self.recipe
        asked = {"method": recipe.method, "linearize": recipe.linearize, "ranks": recipe.ranks}
        return {**self._about_plan, **asked, **self._about_price, **self._about_training}

    @property
    def _about_price(self) -> dict[str, Any]:
        prices = [_digest_of_costs(self.tables[target]) if target else what for what, target in self._asked]
        return {"prices": prices or [_digest_of_costs(self.costs)], "weights": self._weights}

    @property
    def _about_training(self) -> dict[str, Any]:
        settings = self.training.settings
        return {**settings, **self.training.about} if settings else {}

    def original(self) -> Made:
        """Candidate 00: the network as the user gave it."""

        def make(folder: Path) -> dict[str, Any]:
            return self._keep(
                folder,
                self.base,
                {
                    "layers": layer_rows(self.base, self.costs),
                    "edits": [],
                    "rejected": [],
                    "predicted_ms": sum(row["predicted_ms"] for row in layer_rows(self.base, self.costs)),
                    "budget_ms": None,
                    "smallest": False,
                    "damage": 0.0,
                },
            )

        return self._made("candidates/00", self._about_plan, make)

    def planned(self, number: int, budget: float) -> Planned:
        """The plan for a predicted price, without applying it; `number` counts the plans of a run."""

        def make(folder: Path) -> dict[str, Any]:
            chosen = self.planner.plan(budget)
            rows = edit_rows(chosen, self.statistics)
            signature = content_key({"edits": rows})
            rejected = rejected_rows(self.planner.rejected)
            return asdict(Planned(budget, chosen.predicted_ms, signature, not chosen.reachable, not rows, rejected))

        return Planned(**self.run.stage(f"plans/{number:02d}", {**self._about_method, "budget": budget}, make))

    def compressed(self, index: int, budget_ms: float) -> Made:
        """Plan for a predicted budget, apply the edits, re-estimate norms."""

        def make(folder: Path) -> dict[str, Any]:
            chosen = self.planner.plan(budget_ms)
            batches = [x for x, _ in self.samples.calibration.batches()]
            network = realise(self.planner.start(chosen), chosen.options, batches, self.progress)
            return self._keep(
                folder,
                network,
                {
                    "layers": layer_rows(network, self.costs),
                    "edits": edit_rows(chosen, self.statistics),
                    "rejected": rejected_rows(self.planner.rejected),
                    "predicted_ms": chosen.predicted_ms,
                    "budget_ms": budget_ms,
                    "smallest": not chosen.reachable,
                    "damage": chosen.damage,
                },
            )

        return self._made(f"candidates/{index:02d}", {**self._about_method, "budget_ms": budget_ms}, make)

    def recovered(self, index: int, source: Made) -> Made:
        """The network of `source`, taught by the original on the training samples."""
        training = self.training
        inputs = {
            "from": source.result["network_sha256"],
            "settings": asdict(training.recovery),
            **training.about,
        }

        def make(folder: Path) -> dict[str, Any]:
            network = training.recovered(self.load(source), training.checkpoint(inputs))
            taught = [training.recovery_row] if training.recovery.steps else []
            return self._keep(folder, network, {**source.result, "edits": [*source.result["edits"], *taught]})

        made = self._made(f"candidates/{index:02d}", inputs, make)
        self.run.clear_scratch()
        return made

    def load(self, made: Made) -> Network:
        """A candidate read back: base, edits, weights. The user's Python file is not needed."""
        folder = self.run.root / made.folder / "network"
        return replay(self.base, edit_log.load(folder)).with_weights(folder / "weights.safetensors")

    def _made(self, folder: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> Made:
        return Made(folder, self.run.stage(f"{folder}/network", inputs, make))

    def _keep(self, folder: Path, network: Network, result: dict[str, Any]) -> dict[str, Any]:
        edit_log.save(network.edits, folder)
        network.save_weights(folder / "weights.safetensors")
        torch.export.save(network.exported(), folder / "network.pt2")
        (folder / "plan.json").write_text(json.dumps(result, indent=1) + "\n")
        kept = [sha256_of(folder / name) for name in ("edits.json", "weights.safetensors")]
        return {**result, "parameters": network.parameters(), "network_sha256": content_key({"kept": kept})}


def _digest_of_costs(table: CostTable) -> str:
    return hashlib.sha256(repr((table.classes, table.invoke_ms)).encode()).hexdigest()


def digest_of(named: str) -> str:
    """SHA-256 of the content of `file` or `file.py:callable`, or the name itself where it is no file (a module)."""
    path = Path(named if Path(named).is_file() else named.rpartition(":")[0])
    return sha256_of(path) if path.is_file() else named
