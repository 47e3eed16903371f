"""The stages of a fit that make artifacts of a candidate, and find out about them: each a cached step of the run."""

from __future__ import annotations

import contextlib
import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.compress.analysis import run
from pipeline.environment import environment
from pipeline.export.artifact import Artifact, sha256_of
from pipeline.export.formats import FORMATS
from pipeline.export.together import export_all
from pipeline.quality import Accuracy, Metric, own_metric
from pipeline.stages import Made, Stages, digest_of
from pipeline.store.writing import PARTIAL, writing
from pipeline.verify.delegation import Delegation, delegation
from pipeline.verify.execute import from_layout, predictions, to_layout
from pipeline.verify.failed import keep_failed
from pipeline.verify.levels import check_emulator, check_gpu, check_host, check_program
from pipeline.verify.parity import Parity
from pipeline.verify.reference import Reference
from pipeline.verify.sites import sites
from reports.measured import GpuWorkRecord, OperatorRecord, QualityRecord
from targets.arm.parts import emulator_parts
from targets.errors import PlanishError
from targets.explain import explain
from targets.gpu.counts import count
from targets.gpu.gpus import driven
from targets.gpu.places import is_ready as gpu_is_ready
from targets.gpu.places import places as gpu_places
from targets.judgement import Goal, Judgement
from targets.judging import judge
from targets.measure import Measurement, measure_many
from targets.peak_memory import PeakMemory, peak_memory
from targets.profile import Profile
from targets.runners import Job

PARITY_SAMPLES = 64
MEASURED_SAMPLES = 1
JUDGED = "judged.npy"
GPU_PRECISIONS = ("fp16", "fp32")
SOFTWARE = "software"  # the driver that stands in for a GPU that Mesa does not compile for here
MODELLED_FORMAT = "tflite"  # on a GPU


class Evidence:
    """The artifacts of a run's candidates, and what is known of them."""

    def __init__(self, stages: Stages) -> None:
        self.stages, self.run, self.recipe, self.profiles = stages, stages.run, stages.recipe, stages.profiles
        self.progress = stages.progress
        self._original_timed: dict[str, Measurement] = {}  # by the clock, of each target

    def exported(self, made: Made, formats: Sequence[str]) -> list[Artifact]:
        """The candidate in each format, several side by side; each is kept by itself.

        Raises:
            PlanishError: of the first format that failed, when the others are done.
        """
        inputs = {
            **self._network(made),
            "channels_last": self.recipe.channels_last,
            "contract": self.stages.samples.contract.to_json(),
            "tools": environment(),
        }
        names = {format: f"{made.folder}/{format}" for format in formats}
        artifacts, failed = [], []
        with contextlib.ExitStack() as around:
            around.enter_context(writing(self.run.root))
            staging = around.enter_context(tempfile.TemporaryDirectory(prefix=PARTIAL, dir=self.run.root))
            reserved = around.enter_context(self.run.reserved(dict.fromkeys(names.values(), inputs)))
            missing = [format for format in formats if names[format] in reserved]
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
        """The exported program, then every artifact on this machine and, if asked, on the emulated phones.

        Raises:
            VerificationError: `PARITY_FAILED`, with the first block that differs; what is known of it is kept in
                `failed/`, in the run directory.
        """
        phones = [profile for profile in self.profiles if emulated and profile.kind != "host"]
        inputs = {
            **self._about(artifacts),
            **self._network(made),
            "contract": self.stages.samples.contract.to_json(),
            "profiles": [profile.version for profile in phones],
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
                for phone in phones:
                    on_phone = self._on_phone(artifact, reference, phone)
                    found += on_phone
                    checked += [artifact] * len(on_phone)
            rows = [parity.to_json() for parity in found]
            (folder / "parity.json").write_text(json.dumps(rows, indent=1) + "\n")
            for artifact, parity in zip(checked, found):
                if parity.failed:
                    self.progress(f"looking for what {parity.format} gets wrong")
                    kept = self.run.root / "failed" / f"{Path(made.folder).name}-{parity.format}-{parity.level}"
                    raise keep_failed(kept, parity, network, artifact or self._program(made), reference)
            return rows

        return [Parity.from_json(row) for row in self.run.stage(f"{made.folder}/parity", inputs, make)]

    def _on_phone(self, artifact: Artifact, reference: Reference, phone: Profile) -> list[Parity]:
        if phone.kind == "gpu":
            return [check_gpu(artifact, reference, each, progress=self.progress) for each in GPU_PRECISIONS]
        return [check_emulator(artifact, reference, phone, progress=self.progress)]

    def delegated(
        self, made: Made, artifacts: Sequence[Artifact], operators: Sequence[OperatorRecord] = ()
    ) -> list[Delegation]:
        """What of each artifact its delegate takes.

        Args:
            operators: of an inference of the first artifact, where they were timed.
        """
        inputs = {
            **self._about(artifacts),
            **self._network(made),
            "target": self.profiles[0].kind,
            "operators": [row.model_dump(mode="json") for row in operators],
        }

        def make(folder: Path) -> list[Any]:
            self.progress("reading what is delegated")
            known = sites(torch.export.load(self._program(made)))
            rows = [
                delegation(
                    artifact,
                    target=self.profiles[0].name,
                    gpu=self.profiles[0].kind == "gpu",
                    sites=known,
                    times=operators if artifact is artifacts[0] else (),
                ).to_json()
                for artifact in artifacts
            ]
            (folder / "delegation.json").write_text(json.dumps(rows, indent=1) + "\n")
            return rows

        name = f"{made.folder}/delegation{'-timed' if operators else ''}"
        return [Delegation.from_json(row) for row in self.run.stage(name, inputs, make)]

    def measured(self, made: Made, artifacts: Sequence[Artifact]) -> list[Measurement]:
        """Time those artifacts of one candidate whose runtime there is here, on every target."""
        here = [artifact for artifact in artifacts if FORMATS[artifact.format].runs_on_host]
        modelled = [artifact for artifact in artifacts if artifact.format == MODELLED_FORMAT]
        return [
            found
            for profile in self.profiles
            for found in self._measured(made, modelled if profile.kind == "gpu" else here, profile)
        ]

    def _measured(self, made: Made, artifacts: Sequence[Artifact], profile: Profile) -> list[Measurement]:
        inputs = {**self._about(artifacts), "profile": profile.version}

        def make(folder: Path) -> list[Any]:
            self.progress(f"measuring {' and '.join(a.format for a in artifacts)} on {profile.name}")
            jobs = []
            for artifact in artifacts:
                jobs.append((artifact.path, artifact.format, self._measured_sample(artifact, folder)))
            found = measure_many(jobs, profile=profile, progress=self.progress)
            with (folder / "samples.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["format", "sample", "ms"])
                table.writerows((m.format, i, ms) for m in found for i, ms in enumerate(m.samples_ms))
            (folder / "measurement.json").write_text(json.dumps([m.to_json() for m in found], indent=1) + "\n")
            return [measurement.to_json() for measurement in found]

        name = f"{made.folder}/{profile.name}-{'-'.join(artifact.format for artifact in artifacts)}"
        rows = self.run.stage(name, inputs, make, shared=profile.kind != "host")  # a clock's answer is of its hour
        return [Measurement.from_json(row) for row in rows]

    def judged(
        self, made: Made, artifact: Artifact, original: Artifact | None, profile: Profile, goal: Goal
    ) -> Judgement:
        """A verdict on an artifact timed by the clock, in turns with the original's.

        Args:
            original: None where the artifact is the original's own.
        """
        beside = [] if original is None else [original]
        inputs = {**self._about([artifact, *beside]), "profile": profile.version, "goal": asdict(goal)}

        def make(folder: Path) -> dict[str, Any]:
            self.progress(f"judging {artifact.format} on {profile.name}")
            jobs = [Job(each.path, self._measured_sample(each, folder)) for each in (*beside, artifact)]
            found = judge(
                jobs[0] if beside else None,
                jobs[-1],
                format=artifact.format,
                profile=profile,
                goal=goal,
                progress=self.progress,
                earlier=self._original_timed.get(profile.name) if goal.median_ms else None,
            )
            (folder / "judgement.json").write_text(json.dumps(found.to_json(), indent=1) + "\n")
            return found.to_json()

        name = f"{made.folder}/{profile.name}-judged"
        found = Judgement.from_json(self.run.stage(name, inputs, make, shared=False))
        if original is None:
            self._original_timed[profile.name] = found.candidate
        return found

    def memory(self, made: Made, artifact: Artifact) -> PeakMemory:
        """How much the process that runs the artifact grows, in this machine's runtime."""

        def make(folder: Path) -> dict[str, Any]:
            self.progress(f"peak memory of {artifact.format}")
            return peak_memory(artifact.path, artifact.format, self._measured_sample(artifact, folder)).to_json()

        row = self.run.stage(f"{made.folder}/memory", self._about([artifact]), make, shared=False)
        return PeakMemory.from_json(row)

    def explained(self, made: Made, artifact: Artifact) -> tuple[OperatorRecord, ...]:
        """Where the time of an inference goes on the first target; empty where that is no emulated one.

        Raises:
            PlanishError: the runtime's operators cannot be told apart.
        """
        profile = self.profiles[0]
        if profile.kind != "emulator":
            return ()
        inputs = {**self._about([artifact]), **self._network(made), "profile": profile.version}

        def make(folder: Path) -> list[Any]:
            self.progress(f"operators of the {artifact.format} artifact on {profile.name}")
            found = explain(
                artifact.path,
                format=artifact.format,
                profile=profile,
                inputs=self._measured_sample(artifact, folder),
                layers=[(row["name"], row["macs"]) for row in made.result["layers"] if row["macs"]],
                progress=self.progress,
            )
            rows = [row.to_json() for row in found]
            (folder / "operators.json").write_text(json.dumps(rows, indent=1) + "\n")
            return rows

        return tuple(OperatorRecord(**row) for row in self.run.stage(f"{made.folder}/operators", inputs, make))

    def gpu_work(self, made: Made, artifact: Artifact) -> tuple[GpuWorkRecord, ...]:
        """What an inference asks of each mobile GPU aimed at, by the kernels that the delegate chooses for it.

        A GPU that cannot be had here as a virtual one is stood in for by the software driver.
        """

        def make(_: Path) -> list[dict[str, Any]]:
            rows = []
            for profile in (profile for profile in self.profiles if profile.gpu):
                virtual = driven(profile.gpu.name)
                usable = virtual and (not virtual.is_mali or gpu_is_ready(mali=True))
                counts = count(artifact.path, virtual.name if usable else SOFTWARE, progress=self.progress)
                kept = {name: getattr(counts, name) for name in GpuWorkRecord.model_fields if name != "target"}
                rows.append({"target": profile.name, **kept})
            return rows

        if not self._aims_at("gpu"):
            return ()
        inputs = {**self._about([artifact]), "gpus": [profile.name for profile in self.profiles]}
        return tuple(GpuWorkRecord(**row) for row in self.run.stage(f"{made.folder}/gpu-work", inputs, make))

    def _measured_sample(self, artifact: Artifact, folder: Path) -> Path:
        """What an artifact is timed on, in its layout, as an .npz in `folder`."""
        sample = next(self.stages.samples.test.take(MEASURED_SAMPLES).batches(MEASURED_SAMPLES))[0].numpy()
        path = folder / f"{artifact.format}-input.npz"
        np.savez(path, x=np.ascontiguousarray(to_layout(sample, artifact.inputs[0])))
        return path

    # Quality ---------------------------------------------------------------------------------------------------

    def quality(self, made: Made, artifact: Artifact | None = None, original: Path | None = None) -> QualityRecord:
        """What the recipe's metric says of a candidate on the test samples.

        Of the artifact on the host's runtime where one is given, else of the network in PyTorch.

        Args:
            original: `judged_on` of the original, which is compared with; None for the original itself.
        """
        stages, recipe = self.stages, self.recipe
        inputs = {
            **self._network(made),
            "test": stages.samples.test.fingerprint,
            "artifact": artifact and artifact.sha256,
            "metric": recipe.metric and [recipe.metric, digest_of(recipe.metric), recipe.lower_is_better],
            "original": original and sha256_of(original),
            "tools": environment(),
        }

        def make(folder: Path) -> dict[str, Any]:
            self.progress(f"judging quality on {len(stages.samples.test)} test samples")
            batches = (x for x, _ in stages.samples.test.batches())
            if artifact is None:
                outputs = run(stages.load(made), list(batches)).numpy()
            else:
                outputs = from_layout(predictions(artifact, (x.numpy() for x in batches)), artifact.outputs[0])
            kept = self._metric.kept(outputs)
            np.save(folder / JUDGED, kept)
            before = None if original is None else np.load(original)
            record = self._metric.judged(kept, before, "network" if artifact is None else "artifact")
            return record.model_dump(mode="json")

        # A metric's key does not see what its file imports.
        row = self.run.stage(self._judged_in(made, artifact), inputs, make, shared=recipe.metric is None)
        return QualityRecord.model_validate(row)

    def judged_on(self, made: Made, artifact: Artifact) -> Path:
        """What `quality` kept of a candidate's artifact, for others to be compared with."""
        return self.run.root / self._judged_in(made, artifact) / JUDGED

    def _judged_in(self, made: Made, artifact: Artifact | None) -> str:
        return f"{made.folder}/quality-{'network' if artifact is None else artifact.format}"

    @cached_property
    def _metric(self) -> Metric:
        test = self.stages.samples.test
        labels = np.concatenate([y.numpy() for _, y in test.batches()]) if test.has_labels else None
        if self.recipe.metric is not None:
            return own_metric(self.recipe.metric, labels, self.recipe.lower_is_better)
        if labels is not None:
            return Accuracy("top-1", labels)
        answers = run(self.stages.base, [x for x, _ in test.batches()]).numpy()
        return Accuracy("agreement with the original", answers.argmax(1))

    def _program(self, made: Made) -> Path:
        return self.run.root / made.folder / "network" / "network.pt2"

    def _reference(self, network: torch.nn.Module) -> Reference:
        samples, contract = self.stages.samples.test.take(PARITY_SAMPLES), self.stages.samples.contract
        return Reference.of_samples(network, samples, self.stages.classes, (contract.minimum, contract.maximum))

    def _aims_at(self, kind: str) -> bool:
        return any(profile.kind == kind for profile in self.profiles)

    def _network(self, made: Made) -> dict[str, Any]:
        """What names a candidate's network: its edits with their weights, and what they are edits of."""
        return {"network": made.result["network_sha256"], "base": self.stages.facts.fingerprint}

    def _about(self, artifacts: Sequence[Artifact]) -> dict[str, Any]:
        """What evidence about artifacts depends on."""
        driver = gpu_places().driver.name if self._aims_at("gpu") and gpu_is_ready() else None
        return {
            "artifacts": [artifact.sha256 for artifact in artifacts],
            "samples": self.stages.samples.test.fingerprint,
            "tools": environment()
            | {"emulator": emulator_parts() if self._aims_at("emulator") else None, "gpu": driver},
        }
