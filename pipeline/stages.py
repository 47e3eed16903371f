"""The stages of a fit, each a cached step of the run directory: from one value to the next."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.statistics import Statistics, collect
from pipeline.compress.analysis import run
from pipeline.compress.linearize import channel_dims, sites
from pipeline.compress.methods import planner
from pipeline.compress.realising import realise
from pipeline.compress.subject import Planner, Subject
from pipeline.environment import environment
from pipeline.explain import edit_rows, layer_rows, rejected_rows
from pipeline.export.artifact import Artifact, sha256_of
from pipeline.export.child import export
from pipeline.model import edits as edit_log
from pipeline.model.edits import replay
from pipeline.model.ingest import ingest, require_one_tensor
from pipeline.model.network import Network
from pipeline.recipe import Recipe
from pipeline.samples import FitSamples, observed, two_samples
from pipeline.store import RunDirectory
from pipeline.training import Training, require_trainable
from pipeline.verify.execute import predictions, to_layout
from pipeline.verify.parity import Parity, check, require
from reports.records import OperatorRecord, QualityRecord
from targets.arm.parts import emulator_parts
from targets.cost import CostTable
from targets.explain import explain
from targets.measure import Measurement, measure_many
from targets.profile import Profile

PARITY_SAMPLES = 64
MEASURED_SAMPLES = 1
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


class Stages:
    """All stages of one run. `progress` receives what a person would want to hear while waiting."""

    def __init__(
        self, run_directory: RunDirectory, recipe: Recipe, profile: Profile, progress: Callable[[str], None]
    ) -> None:
        self.run, self.recipe, self.profile, self.progress = run_directory, recipe, profile, progress

    @cached_property
    def samples(self) -> FitSamples:
        samples = FitSamples(self.recipe, self.base.input_shape, self.classes)
        require_trainable(self.recipe, samples.training, self.classes is not None)
        return samples

    @cached_property
    def training(self) -> Training:
        classes = self.classes is not None
        return Training(self.run, self.recipe, self.base, self.samples.training, classes, self.progress)

    # Networks --------------------------------------------------------------------------------------------------

    @cached_property
    def base(self) -> Network:
        """The user's network as it was ingested, read back from the run directory."""
        recipe = self.recipe

        def make(folder: Path) -> dict[str, Any]:
            self.progress(f"reading {recipe.model}")
            network = ingest(
                recipe.model, weights=recipe.weights and Path(recipe.weights), example=lambda: two_samples(recipe)
            )
            require_one_tensor(network, recipe.model)
            torch.export.save(network.exported(), folder / "network.pt2")
            return {}

        self.run.stage(
            "base",
            {
                "model": recipe.model,
                "model_file": _digest(recipe.model.rpartition(":")[0] or recipe.model),
                "weights": recipe.weights and _digest(recipe.weights),
                "torch": torch.__version__,
            },
            make,
        )
        return ingest(str(self.run.root / "base" / "network.pt2"))

    @cached_property
    def classes(self) -> int | None:
        """Number of classes where the outputs are rows of class scores [N, C], C > 1."""
        with torch.no_grad():
            output = self.base(*self.base.example)
        scores = self.recipe.output == "classes" and output.ndim == 2 and output.shape[1] > 1
        return output.shape[1] if scores else None

    @cached_property
    def costs(self) -> CostTable:
        return CostTable.load(self.profile, self.recipe.formats[0])

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
        knobs |= {"melted": training.melted, "easing": training.easing}
        return planner(recipe.method, Subject(base, self.statistics, batches, self.costs, classes, fitted, **knobs))

    @property
    def _about_base(self) -> dict[str, Any]:
        return {
            "base": self.base.fingerprint(),
            "calibration": self.samples.calibration.fingerprint,
            "torch": torch.__version__,
        }

    @property
    def _about_plan(self) -> dict[str, Any]:
        costs = hashlib.sha256(repr((self.costs.classes, self.costs.invoke_ms)).encode()).hexdigest()
        return {**self._about_base, "costs": costs, "output": self.recipe.output}

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

        recipe = self.recipe
        asked = {"method": recipe.method, "linearize": recipe.linearize, "ranks": recipe.ranks}
        inputs = {**self._about_plan, **asked, "budget_ms": budget_ms, **self._about_training}
        return self._made(f"candidates/{index:02d}", inputs, make)

    def recovered(self, index: int, source: Made) -> Made:
        """The network of `source`, taught by the original on the training samples."""
        training = self.training
        inputs = {
            "from": source.result["weights_sha256"],
            "settings": asdict(training.recovery),
            **training.about,
        }

        def make(folder: Path) -> dict[str, Any]:
            network = training.recovered(self.load(source), training.checkpoint(inputs))
            return self._keep(
                folder, network, {**source.result, "edits": [*source.result["edits"], training.recovery_row]}
            )

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
        return {
            **result,
            "parameters": network.parameters(),
            "weights_sha256": sha256_of(folder / "weights.safetensors"),
        }

    # Artifacts -------------------------------------------------------------------------------------------------

    def exported(self, made: Made, format: str) -> tuple[Artifact, Parity]:
        """Export one format and check it against the network on real samples; no artifact is kept that fails."""
        inputs = {
            "weights": made.result["weights_sha256"],
            "edits": made.result["edits"],
            "base": self.base.fingerprint(),
            "format": format,
            "channels_last": self.recipe.channels_last,
            "samples": self.samples.test.fingerprint,
            "contract": self.samples.contract.to_json(),
            "tools": environment(),
        }
        name = f"{made.folder}/{format}"

        def make(folder: Path) -> dict[str, Any]:
            self.progress(f"exporting {format}")
            artifact = export(
                self.run.root / made.folder / "network" / "network.pt2",
                format=format,
                directory=folder,
                channels_last=self.recipe.channels_last,
                input_range=(self.samples.contract.minimum, self.samples.contract.maximum),
                log=self.run.log(name.replace("/", "-")),
                progress=self.progress,
            )
            self.progress(
                f"checking {format} against the network on {min(PARITY_SAMPLES, len(self.samples.test))} samples"
            )
            samples = next(self.samples.test.take(PARITY_SAMPLES).batches(PARITY_SAMPLES))[0]
            parity = check(artifact, [run(self.load(made), [samples]).numpy()], samples.numpy())
            (folder / "parity.json").write_text(json.dumps(parity.to_json(), indent=1) + "\n")
            require(parity, artifact)
            return {"artifact": artifact.to_json(folder), "parity": parity.to_json()}

        result = self.run.stage(name, inputs, make)
        return (Artifact.from_json(result["artifact"], self.run.root / name), Parity.from_json(result["parity"]))

    def measured(self, made: Made, artifacts: list[Artifact], budget_s: float) -> list[Measurement]:
        """Time artifacts of one candidate on the target."""
        inputs = {
            "artifacts": [artifact.sha256 for artifact in artifacts],
            "profile": self.profile.version,
            "samples": self.samples.test.fingerprint,
            "tools": environment() | {"emulator": emulator_parts() if self.profile.kind == "emulator" else None},
        }
        name = f"{made.folder}/{self.profile.name}-{'-'.join(artifact.format for artifact in artifacts)}"
        if self.profile.kind == "host":  # more seconds, another measurement; the emulator repeats itself
            name += f"-{budget_s:g}s"

        def make(folder: Path) -> list[Any]:
            self.progress(f"measuring {' and '.join(a.format for a in artifacts)} on {self.profile.name}")
            jobs = []
            for artifact in artifacts:
                jobs.append((artifact.path, artifact.format, self._measured_sample(artifact, folder)))
            found = measure_many(jobs, profile=self.profile, progress=self.progress, budget_s=budget_s)
            with (folder / "samples.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["format", "sample", "ms"])
                table.writerows((m.format, i, ms) for m in found for i, ms in enumerate(m.samples_ms))
            (folder / "measurement.json").write_text(json.dumps([m.to_json() for m in found], indent=1) + "\n")
            return [measurement.to_json() for measurement in found]

        return [Measurement.from_json(row) for row in self.run.stage(name, inputs, make)]

    def explained(self, made: Made, artifact: Artifact) -> tuple[OperatorRecord, ...]:
        """Where the time of an artifact's inference goes; empty for a target that is no emulated one.

        Raises:
            PlanishError: the runtime's operators cannot be told apart.
        """
        if self.profile.kind != "emulator":
            return ()
        inputs = {
            "artifact": artifact.sha256,
            "profile": self.profile.version,
            "samples": self.samples.test.fingerprint,
            "tools": environment() | {"emulator": emulator_parts()},
        }

        def make(folder: Path) -> list[Any]:
            self.progress(f"operators of the {artifact.format} artifact on {self.profile.name}")
            found = explain(
                artifact.path,
                format=artifact.format,
                profile=self.profile,
                inputs=self._measured_sample(artifact, folder),
                layers=[(row["name"], row["macs"]) for row in made.result["layers"] if row["macs"]],
                progress=self.progress,
            )
            rows = [row.to_json() for row in found]
            (folder / "operators.json").write_text(json.dumps(rows, indent=1) + "\n")
            return rows

        return tuple(OperatorRecord(**row) for row in self.run.stage(f"{made.folder}/operators", inputs, make))

    def _measured_sample(self, artifact: Artifact, folder: Path) -> Path:
        """What an artifact is timed on, in its layout, as an .npz in `folder`."""
        sample = next(self.samples.test.take(MEASURED_SAMPLES).batches(MEASURED_SAMPLES))[0].numpy()
        path = folder / f"{artifact.format}-input.npz"
        np.savez(path, x=np.ascontiguousarray(to_layout(sample, artifact.inputs[0])))
        return path

    # Quality ---------------------------------------------------------------------------------------------------

    def quality(self, made: Made, artifact: Artifact | None = None) -> QualityRecord:
        """Top-1 on the test samples' labels, or agreement with the original where there are none.

        Of the artifact on the host's runtime where one is given, else of the network in PyTorch.
        """
        inputs = {
            "weights": made.result["weights_sha256"],
            "test": self.samples.test.fingerprint,
            "artifact": artifact and artifact.sha256,
            "base": self.base.fingerprint(),
        }

        def make(_: Path) -> dict[str, Any]:
            self.progress(f"judging quality on {len(self.samples.test)} test samples")
            if artifact is None:
                answers = run(self.load(made), [x for x, _ in self.samples.test.batches()]).numpy()
            else:
                answers = predictions(artifact, (x.numpy() for x, _ in self.samples.test.batches()))
            right = int((answers.argmax(1) == self._truth).sum())
            record = QualityRecord.of_counts(
                "top-1" if self.samples.test.has_labels else "agreement with the original",
                right,
                len(self.samples.test),
                "network" if artifact is None else "artifact",
            )
            return record.model_dump(mode="json")

        name = f"{made.folder}/quality-{'network' if artifact is None else artifact.format}"
        return QualityRecord.model_validate(self.run.stage(name, inputs, make))

    @cached_property
    def _truth(self) -> np.ndarray:
        """What the right answers are: the labels, else the original's own answers."""
        if self.samples.test.has_labels:
            return np.concatenate([y.numpy() for _, y in self.samples.test.batches()])
        return run(self.base, [x for x, _ in self.samples.test.batches()]).numpy().argmax(1)


def _digest(path: str) -> str:
    """SHA-256 of a file's content, or the name itself where it is no file (a module)."""
    return sha256_of(Path(path)) if Path(path).is_file() else path
