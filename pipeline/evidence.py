"""The stages of a fit that make artifacts of a candidate, and find out about them: each a cached step of the run."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.compress.analysis import run
from pipeline.environment import environment
from pipeline.export.artifact import Artifact
from pipeline.export.formats import FORMATS
from pipeline.export.together import export_all
from pipeline.stages import Made, Stages
from pipeline.store.writing import PARTIAL, writing
from pipeline.verify.delegation import Delegation, delegation
from pipeline.verify.execute import predictions, to_layout
from pipeline.verify.failed import keep_failed
from pipeline.verify.levels import check_emulator, check_host, check_program
from pipeline.verify.parity import Parity
from pipeline.verify.reference import Reference
from pipeline.verify.sites import sites
from reports.records import OperatorRecord, QualityRecord
from targets.arm.parts import emulator_parts
from targets.errors import PlanishError
from targets.explain import explain
from targets.measure import Measurement, measure_many

PARITY_SAMPLES = 64
MEASURED_SAMPLES = 1


class Evidence:
    """The artifacts of a run's candidates, and what is known of them."""

    def __init__(self, stages: Stages) -> None:
        self.stages, self.run, self.recipe, self.profile = stages, stages.run, stages.recipe, stages.profile
        self.progress = stages.progress

    def exported(self, made: Made, formats: Sequence[str]) -> list[Artifact]:
        """The candidate in each format, several side by side; each is kept by itself.

        Raises:
            PlanishError: of the first format that failed, when the others are done.
        """
        inputs = {
            "weights": made.result["weights_sha256"],
            "edits": made.result["edits"],
            "base": self.stages.base.fingerprint(),
            "channels_last": self.recipe.channels_last,
            "contract": self.stages.samples.contract.to_json(),
            "tools": environment(),
        }
        names = {format: f"{made.folder}/{format}" for format in formats}
        missing = [format for format in formats if not self.run.holds(names[format], inputs)]
        artifacts, failed = [], []
        with writing(self.run.root), tempfile.TemporaryDirectory(prefix=PARTIAL, dir=self.run.root) as staging:
            converted = self._converted(made, missing, Path(staging)) if missing else {}

            def keep(format: str, folder: Path) -> dict[str, Any]:
                artifact = converted[format]
                if isinstance(artifact, PlanishError):
                    raise artifact
                return artifact.moved(folder).to_json(folder)

            for format, name in names.items():
                try:
                    row = self.run.stage(name, inputs, lambda folder, format=format: keep(format, folder))
                    artifacts.append(Artifact.from_json(row, self.run.root / name))
                except PlanishError as error:
                    failed.append(error)
        if failed:
            raise failed[0]
        return artifacts

    def _converted(self, made: Made, formats: Sequence[str], staging: Path) -> dict[str, Artifact | PlanishError]:
        return export_all(
            self._program(made),
            formats=formats,
            directory=staging,
            channels_last=self.recipe.channels_last,
            contract=self.stages.samples.contract,
            logs=self.run.log(f"{made.folder}-export".replace("/", "-")).with_suffix(""),
            progress=lambda format, phase: self.progress(f"exporting {format}: {phase}"),
        )

    def verified(self, made: Made, artifacts: Sequence[Artifact], emulated: bool) -> list[Parity]:
        """The exported program, then every artifact on this machine and, if asked, on the emulated phone.

        Raises:
            VerificationError: `PARITY_FAILED`, with the first block that differs; what is known of it is kept in
                `failed/`, in the run directory.
        """
        inputs = {
            **self._about(artifacts),
            "weights": made.result["weights_sha256"],
            "contract": self.stages.samples.contract.to_json(),
            "profile": self.profile.version if emulated else None,
        }

        def make(folder: Path) -> list[Any]:
            network = self.stages.load(made)
            reference = self._reference(network.graph)
            found = [check_program(self._program(made), reference)]
            checked: list[Artifact | None] = [None]
            for artifact in artifacts:
                self.progress(f"checking {artifact.format} on {len(reference.samples)} samples and edge cases")
                found.append(check_host(artifact, reference))
                checked.append(artifact)
                if emulated:
                    found.append(check_emulator(artifact, reference, self.profile, progress=self.progress))
                    checked.append(artifact)
            rows = [parity.to_json() for parity in found]
            (folder / "parity.json").write_text(json.dumps(rows, indent=1) + "\n")
            for artifact, parity in zip(checked, found):
                if parity.failed:
                    self.progress(f"looking for what {parity.format} gets wrong")
                    kept = self.run.root / "failed" / f"{Path(made.folder).name}-{parity.format}-{parity.level}"
                    raise keep_failed(kept, parity, network, artifact or self._program(made), reference)
            return rows

        return [Parity.from_json(row) for row in self.run.stage(f"{made.folder}/parity", inputs, make)]

    def delegated(
        self, made: Made, artifacts: Sequence[Artifact], operators: Sequence[OperatorRecord] = ()
    ) -> list[Delegation]:
        """What of each artifact its delegate takes.

        Args:
            operators: of an inference of the first artifact, where they were timed.
        """
        inputs = {**self._about(artifacts), "operators": [row.model_dump(mode="json") for row in operators]}

        def make(folder: Path) -> list[Any]:
            self.progress("reading what is delegated")
            known = sites(torch.export.load(self._program(made)))
            rows = [
                delegation(
                    artifact,
                    target=self.profile.name,
                    sites=known,
                    times=operators if artifact is artifacts[0] else (),
                ).to_json()
                for artifact in artifacts
            ]
            (folder / "delegation.json").write_text(json.dumps(rows, indent=1) + "\n")
            return rows

        name = f"{made.folder}/delegation{'-timed' if operators else ''}"
        return [Delegation.from_json(row) for row in self.run.stage(name, inputs, make)]

    def measured(self, made: Made, artifacts: list[Artifact], budget_s: float) -> list[Measurement]:
        """Time those artifacts of one candidate on the target whose runtime there is here."""
        artifacts = [artifact for artifact in artifacts if FORMATS[artifact.format].runs_on_host]
        inputs = {**self._about(artifacts), "profile": self.profile.version}
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
        inputs = {**self._about([artifact]), "profile": self.profile.version}

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
        sample = next(self.stages.samples.test.take(MEASURED_SAMPLES).batches(MEASURED_SAMPLES))[0].numpy()
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
            "test": self.stages.samples.test.fingerprint,
            "artifact": artifact and artifact.sha256,
            "base": self.stages.base.fingerprint(),
        }

        def make(_: Path) -> dict[str, Any]:
            self.progress(f"judging quality on {len(self.stages.samples.test)} test samples")
            if artifact is None:
                answers = run(self.stages.load(made), [x for x, _ in self.stages.samples.test.batches()]).numpy()
            else:
                answers = predictions(artifact, (x.numpy() for x, _ in self.stages.samples.test.batches()))
            right = int((answers.argmax(1) == self._truth).sum())
            record = QualityRecord.of_counts(
                "top-1" if self.stages.samples.test.has_labels else "agreement with the original",
                right,
                len(self.stages.samples.test),
                "network" if artifact is None else "artifact",
            )
            return record.model_dump(mode="json")

        name = f"{made.folder}/quality-{'network' if artifact is None else artifact.format}"
        return QualityRecord.model_validate(self.run.stage(name, inputs, make))

    @cached_property
    def _truth(self) -> np.ndarray:
        """What the right answers are: the labels, else the original's own answers."""
        if self.stages.samples.test.has_labels:
            return np.concatenate([y.numpy() for _, y in self.stages.samples.test.batches()])
        return run(self.stages.base, [x for x, _ in self.stages.samples.test.batches()]).numpy().argmax(1)

    def _program(self, made: Made) -> Path:
        return self.run.root / made.folder / "network" / "network.pt2"

    def _reference(self, network: torch.nn.Module) -> Reference:
        samples, contract = self.stages.samples.test.take(PARITY_SAMPLES), self.stages.samples.contract
        return Reference.of_samples(network, samples, self.stages.classes, (contract.minimum, contract.maximum))

    def _about(self, artifacts: Sequence[Artifact]) -> dict[str, Any]:
        """What evidence about artifacts depends on."""
        return {
            "artifacts": [artifact.sha256 for artifact in artifacts],
            "samples": self.stages.samples.test.fingerprint,
            "tools": environment() | {"emulator": emulator_parts() if self.profile.kind == "emulator" else None},
        }
