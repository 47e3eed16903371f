"""What is kept of an artifact that failed parity: itself, the figures, the first block that differs, a page."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from pipeline.export.artifact import Artifact
from pipeline.model.network import Network
from pipeline.store.writing import PARTIAL, copy_writable
from pipeline.verify.culprit import Culprit, search
from pipeline.verify.parity import Parity, failure
from pipeline.verify.records import culprit_record, parity_record
from pipeline.verify.reference import Reference
from reports.html.render import render_failed
from targets.cache import write_atomic
from targets.errors import PlanishError, VerificationError

REPRODUCER = "reproducer"


def keep_failed(
    folder: Path, parity: Parity, network: Network, file: Artifact | Path, reference: Reference
) -> VerificationError:
    """Writes what is known to `folder`, replacing what is there, and returns the error `PARITY_FAILED`.

    Holds a copy of the file, `parity.json`, `index.html` and, of an artifact that is wrong on this machine,
    `culprit.json` with the errors by depth, and `reproducer/` with the smallest part of the network that shows it.

    Args:
        network: what the artifact should compute.
        file: the artifact, or the exported program at level "program".
    """
    path = file.path if isinstance(file, Artifact) else file
    error = failure(parity, path)
    partial = folder.with_name(f"{PARTIAL}{folder.name}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    copy_writable(path, partial / path.name)
    (partial / "parity.json").write_text(json.dumps(parity.to_json(), indent=1) + "\n")
    culprit, why = None, error.why
    if isinstance(file, Artifact) and parity.level == "host":
        try:
            culprit = search(file, network, reference.own.group.samples, folder=partial / REPRODUCER)
        except PlanishError as unseen:  # the failure itself is what the user has to hear of
            why = f"{why} Which block is at fault could not be found: {unseen.why}"
    if culprit is not None:
        (partial / "culprit.json").write_text(json.dumps(culprit.to_json(partial), indent=1) + "\n")
        why = f"{why} {_told(culprit)}"
    shown = culprit and culprit_record(culprit, partial)
    write_atomic(partial / "index.html", render_failed(error.what.rstrip("."), parity_record(parity), shown))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    fix = f"look at {folder / 'index.html'}; {error.fix}"
    return VerificationError(error.what, where=error.where, why=why, fix=fix, code=error.code)


def _told(culprit: Culprit) -> str:
    if culprit.block is None:
        return "No block is wrong by itself."
    inside = f", in it {culprit.module}" if culprit.module not in (None, culprit.block) else ""
    return f"The first block to go wrong is {culprit.block}{inside}."
