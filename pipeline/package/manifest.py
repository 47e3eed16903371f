"""The bundle: the artifacts that are handed over, and a manifest that says everything an app needs to know of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.export.artifact import Artifact, TensorSpec
from pipeline.store.writing import PARTIAL, copy_writable
from reports.records import ArtifactRecord, ManifestRecord, RunRecord, TensorRecord


def write_bundle(root: Path, run: RunRecord, artifacts: Sequence[Artifact]) -> None:
    """Write `root/bundle/` with a copy of each artifact and `manifest.json`, replacing an earlier one whole."""
    partial, bundle = root / f"{PARTIAL}bundle-{os.getpid()}", root / "bundle"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for artifact in artifacts:
        for path in (artifact.path, *(artifact.path.with_name(name) for name in artifact.beside)):
            copy_writable(path, partial / path.name)
    (partial / "manifest.json").write_text(manifest(run, artifacts).to_json())
    shutil.rmtree(bundle, ignore_errors=True)
    os.replace(partial, bundle)


def manifest(run: RunRecord, artifacts: Sequence[Artifact]) -> ManifestRecord:
    """The manifest of a run's chosen candidate."""
    chosen = run.chosen
    return ManifestRecord(
        planish_version=run.planish_version,
        name=run.name,
        source_run=run.name,
        targets=run.targets,
        edits=tuple(f"{edit.kind} {edit.site}: {edit.summary}" for edit in chosen.edits),
        tools=run.environment,
        artifacts=tuple(
            ArtifactRecord(
                file=artifact.path.name,
                format=artifact.format,
                sha256=artifact.sha256,
                bytes=artifact.bytes,
                runtime=artifact.runtime,
                minimum_runtime_version=artifact.runtime_minimum,
                inputs=tuple(_tensor(spec) for spec in artifact.inputs),
                outputs=tuple(_tensor(spec) for spec in artifact.outputs),
                measurements=tuple(each for each in chosen.measurements if each.format == artifact.format),
                quality=chosen.quality,
            )
            for artifact in artifacts
        ),
    )


def _tensor(spec: TensorSpec) -> TensorRecord:
    return TensorRecord(**asdict(spec), description=spec.description)
