"""Every format of the networks that planish is for: export, parity on real images, delegation, memory.

    python tests/benchmarks/formats.py [NETWORK ...] [--formats tflite ...] [--twice]

Networks without public weights here have random ones; the images are real all the same (`problems.py` says where they
are looked for). With `--twice` every artifact is exported again, and the two files are compared.
Appends to reports/benchmarks/formats.json after every artifact; what is there is not done again. Writes a table beside
it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS, UNTRAINED, Problem

from pipeline.environment import environment
from pipeline.export.artifact import Artifact
from pipeline.export.child import export
from pipeline.export.contract import Contract
from pipeline.export.formats import FORMATS
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network
from pipeline.process import settle
from pipeline.verify.delegation import delegation
from pipeline.verify.levels import check_host, check_program
from pipeline.verify.parity import Parity
from pipeline.verify.reference import Reference
from pipeline.verify.sites import sites
from targets.errors import PlanishError

REPORTS = Path(__file__).resolve().parents[2] / "reports" / "benchmarks"
IMAGES = 64
COLUMNS = "format s MB MiB parity images edges top-1 delegated left-out twice".split()
TRAINED = ("resnet-20", "mobilenet-v2", "efficientnet-lite0")
Row = dict[str, Any]


class Trial:
    """One network, saved as every converter gets it, with what it answers to real images."""

    def __init__(self, name: str, scratch: Path) -> None:
        problem = PROBLEMS[name if name in TRAINED else "mobilenet-v2"]
        self.trained = name in TRAINED
        self.title = problem.title if self.trained else f"{UNTRAINED[name][0]}, random weights"
        self.network = self._network(name, problem)
        self.program = scratch / f"{name}.pt2"
        torch.export.save(self.network.exported(), self.program)
        samples = problem.test(1000).select(range(0, 1000, 1000 // IMAGES)).take(IMAGES)
        seen = samples.validate()
        self.contract = Contract(seen.minimum, seen.maximum)
        x, y = next(samples.batches(IMAGES))
        self.reference = Reference.of(
            self.network.graph, x.numpy(), y.numpy() if self.trained else None, (seen.minimum, seen.maximum)
        )

    def _network(self, name: str, problem: Problem) -> Network:
        torch.manual_seed(0)
        module = problem.module() if self.trained else UNTRAINED[name][1]()
        return from_program(export_program(module, (problem.example,)))

    def row(self, format: str, scratch: Path, twice: bool) -> Row:
        """What became of one format; `error` holds what a user sees where nothing did."""
        try:
            artifact = self._export(format, scratch / "once")
        except PlanishError as error:
            told = error.to_json()  # its remedy names the log, which is gone with the folder
            return {"format": format, "error": {key: told[key] for key in ("code", "what", "where", "why")}}
        row = {
            "format": format,
            "seconds": round(artifact.seconds, 1),
            "bytes": artifact.bytes,
            "peak_mib": round(artifact.peak_mib),
            "parity": _figures(check_host(artifact, self.reference)),
            "delegation": self._delegated(artifact),
        }
        if twice:
            row["identical"] = self._export(format, scratch / "again").sha256 == artifact.sha256
        return row

    def _export(self, format: str, directory: Path) -> Artifact:
        return export(
            self.program, format=format, directory=directory, contract=self.contract, log=directory / "converter.log"
        )

    def _delegated(self, artifact: Artifact) -> Row:
        found = delegation(artifact, sites=sites(torch.export.load(self.program)))
        return {
            "delegate": found.delegate,
            "partitions": found.partitions,
            "nodes": found.nodes,
            "delegated_nodes": found.delegated_nodes,
            "fallbacks": [[each.kind, each.module, each.count] for each in found.fallbacks],
            "transposes": [[each.kind, each.module, each.count, each.where] for each in found.transposes],
        }


def _figures(parity: Parity) -> Row:
    judged = [group for group in parity.groups if group.worst]
    task = parity.task and [parity.task.network.value, parity.task.artifact.value]
    return {
        "verdict": parity.verdict,
        "reasons": list(parity.reasons),
        "relative_rmse": judged[0].worst.relative_rmse if judged else None,
        "top1_agreement": judged[0].worst.top1_agreement if judged else None,
        "edge_relative_rmse": max((group.worst.relative_rmse for group in judged[1:]), default=None),
        "top1_of_network_and_artifact": task,
    }


def table(record: Row) -> Iterator[str]:
    yield "# Seven formats, nine networks"
    yield ""
    yield (
        f"Parity against PyTorch on {IMAGES} real images: relative RMSE there, and the largest on edge cases. "
        "Operators the delegate takes, in how many partitions. Seconds on a busy machine; MiB: a converter's peak."
    )
    for network in record["networks"].values():
        program = network["program"]
        yield f"\n## {network['title']}\n"
        yield f"Exported program: {program['verdict']}, relative RMSE {program['relative_rmse']:.1e}.\n"
        yield "| " + " | ".join(COLUMNS) + " |"
        yield "|---" * len(COLUMNS) + "|"
        for row in network["rows"]:
            yield "| " + " | ".join(_cells(row)) + " |"
    yield ""
    yield "Reproduce:\n"
    yield from (f"    {command}" for command in record["commands"])


def _cells(row: Row) -> list[str]:
    if "error" in row:
        error = row["error"]
        return [row["format"], "", "", "", f"**{error['code']}** {error['what']} {error['where']}", *[""] * 6]
    parity, placed = row["parity"], row["delegation"]
    task = parity["top1_of_network_and_artifact"]
    left = ", ".join(f"{count} {kind} in {module or 'the network'}" for kind, module, count in placed["fallbacks"])
    known = placed["delegated_nodes"] is not None
    return [
        row["format"],
        f"{row['seconds']:.0f}",
        f"{row['bytes'] / 1e6:.2f}",
        str(row["peak_mib"] or ""),
        parity["verdict"],
        "" if parity["relative_rmse"] is None else f"{parity['relative_rmse']:.1e}",
        "" if parity["edge_relative_rmse"] is None else f"{parity['edge_relative_rmse']:.1e}",
        "" if task is None else f"{task[1]:.1f} of {task[0]:.1f} %",
        f"{placed['delegated_nodes']} of {placed['nodes']} in {placed['partitions']}" if known else "not known here",
        left if len(left) < 120 else f"{sum(count for _, _, count in placed['fallbacks'])} operators",
        {True: "same bytes", False: "**other bytes**", None: ""}[row.get("identical")],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", default=[*TRAINED, *UNTRAINED])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--twice", action="store_true", help="export again and compare the bytes")
    asked = parser.parse_args()
    settle()
    path = REPORTS / "formats.json"
    record = json.loads(path.read_text()) if path.exists() else {"commands": [], "networks": {}}
    record["environment"] = environment()
    command = " ".join(["python tests/benchmarks/formats.py", *sys.argv[1:]])
    record["commands"] += [] if command in record["commands"] else [command]
    for name in asked.networks:
        known = record["networks"].get(name, {"rows": []})["rows"]
        missing = [format for format in asked.formats if all(row["format"] != format for row in known)]
        if not missing:
            continue
        with tempfile.TemporaryDirectory(prefix="planish-formats-") as scratch:
            trial = Trial(name, Path(scratch))
            network = record["networks"].setdefault(
                name,
                {
                    "title": trial.title,
                    "program": _figures(check_program(trial.program, trial.reference)),
                    "rows": known,
                },
            )
            for format in missing:
                row = trial.row(format, Path(scratch) / format, asked.twice)
                print(name, json.dumps(row), flush=True)
                network["rows"].append(row)
                path.write_text(json.dumps(record, indent=1) + "\n")
                path.with_suffix(".md").write_text("\n".join(table(record)) + "\n")


if __name__ == "__main__":
    main()
