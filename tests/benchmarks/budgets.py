"""Ten budgets a network, each a whole run of `planish fit`: is it met, by how many probes, at what accuracy?

    python tests/benchmarks/budgets.py NETWORK [--shares 95 88 ...] [--steps 200] [--runs FOLDER]

NETWORK: `fashion` (the example, nothing else needed) or `resnet-20` on CIFAR-10, for which `PLANISH_WEIGHTS` names the
folder of resnet20-12fca82f.th and `PLANISH_CIFAR10` the data (see cifar10.py). Writes
reports/benchmarks/budgets-NETWORK.json, .md and .svg. A run that was stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from curves import Panel, draw  # noqa: E402

from pipeline.api import Listener, fit, resume  # noqa: E402
from pipeline.environment import environment  # noqa: E402
from pipeline.process import settle  # noqa: E402
from pipeline.recipe import Recipe, make_recipe  # noqa: E402
from reports.records import CandidateRecord, RunRecord  # noqa: E402

SHARES = (95, 88, 81, 74, 66, 59, 52, 45, 37, 30)
TARGET = "pixel-4-cpu"
OUT = ROOT / "reports" / "benchmarks"


@dataclass(frozen=True)
class Subject:
    title: str
    recipe: dict[str, Any]


def subjects() -> dict[str, Subject]:
    here, example = Path(__file__).parent, ROOT / "examples" / "fashion"
    weights = Path(os.environ.get("PLANISH_WEIGHTS", "PLANISH_WEIGHTS"))
    return {
        "fashion": Subject(
            "Fashion-MNIST example, 2,000 test images",
            {
                "model": f"{example / 'model.py'}:trained",
                "data": str(example / "calibration.npz"),
                "test": str(example / "test.npz"),
            },
        ),
        "resnet-20": Subject(
            "ResNet-20, CIFAR-10, 10,000 test images",
            {
                "model": f"{here / 'cifar10.py'}:resnet20",
                "weights": str(weights / "resnet20-12fca82f.th"),
                "data": f"{here / 'cifar10.py'}:train",
                "test": f"{here / 'cifar10.py'}:test",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
        ),
    }


class Told(Listener):
    """A line a candidate."""

    def judged(self, candidate: CandidateRecord) -> None:
        value = candidate.quality.value
        print(f"  probe {candidate.index}: {candidate.margin_percent:+.2f} %, top-1 {value:.2f} %", flush=True)


def run(recipe: Recipe, folder: Path) -> RunRecord:
    if (folder / "recipe.toml").exists():
        return resume(folder, listener=Told())
    return fit(recipe, folder, listener=Told())


def row(record: RunRecord, share: int, seconds: float) -> dict[str, Any]:
    final, (outcome,) = record.chosen, record.chosen.outcomes
    searched = [candidate for candidate in record.candidates if not candidate.reasons]
    best = next((c for c in record.candidates if f"candidate {c.index} after recovery" in final.reasons), final)
    return {
        "share_percent": share,
        "verdict": record.verdict,
        "limit_ms": outcome.limit,
        "measured_ms": outcome.value,
        "ratio": outcome.value / outcome.limit,
        "probes": len(searched),
        "top1_before_recovery_percent": best.quality.value,
        "top1_percent": final.quality.value,
        "low_percent": final.quality.low,
        "high_percent": final.quality.high,
        "lost_points": final.quality.lost,
        "seconds": round(seconds, 1),
    }


def table(subject: Subject, found: dict[str, Any]) -> str:
    lines = [
        f"# {subject.title}: ten budgets on {TARGET}",
        "",
        f"Original: {found['original_ms']:.3f} ms, top-1 {found['original_percent']:.2f} %. Measured are the exported "
        "TFLite files on the emulated target; probes are the candidates measured before the winner was recovered, with "
        f"{found['steps']} steps of label-free distillation. Seconds are of one run on a machine with two busy cores, "
        "what an earlier budget left in the store included.",
        "",
        "| budget | verdict | measured, ms | of the limit | probes | top-1, % | recovered | 95 % interval | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found["rows"]:
        lines.append(
            f"| {each['share_percent']} % | {each['verdict']} | {each['measured_ms']:.4f} | {each['ratio']:.3f} | "
            f"{each['probes']} | {each['top1_before_recovery_percent']:.2f} | {each['top1_percent']:.2f} | "
            f"{each['low_percent']:.1f} … {each['high_percent']:.1f} | {each['seconds']:.0f} |"
        )
    return "\n".join([*lines, "", f"Reproduce: `{found['command']}`", ""])


def main() -> None:
    settle()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(subjects()))
    parser.add_argument("--shares", type=int, nargs="+", default=SHARES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    asked = parser.parse_args()
    subject, rows = subjects()[asked.network], []
    for share in asked.shares:
        print(f"{asked.network} at {share} %", flush=True)
        recipe = make_recipe(
            **subject.recipe, target=TARGET, latency=f"{share}%", formats=["tflite"], recover_steps=asked.steps
        )
        folder = asked.runs / f"budget-{asked.network}-{share}"
        began = time.monotonic()
        record = run(recipe, folder)
        rows.append(row(record, share, time.monotonic() - began))
        print(f"  {json.dumps(rows[-1])}", flush=True)
    found = {
        "network": asked.network,
        "target": TARGET,
        "command": f"python tests/benchmarks/budgets.py {asked.network} --steps {asked.steps}",
        "steps": asked.steps,
        "original_ms": record.primary(record.base).median_ms,
        "original_percent": record.base.quality.value,
        "rows": rows,
        "environment": environment(),
    }
    name = OUT / f"budgets-{asked.network}"
    name.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    name.with_suffix(".md").write_text(table(subject, found))
    curves = {
        "recovered": [(each["share_percent"], each["top1_percent"]) for each in rows],
        "before recovery": [(each["share_percent"], each["top1_before_recovery_percent"]) for each in rows],
    }
    spreads = {"recovered": [(each["share_percent"], each["low_percent"], each["high_percent"]) for each in rows]}
    lowest = min(quality for curve in curves.values() for _, quality in curve)
    least = int(max(lowest - 5, 0) // 10 * 10)
    panel = Panel(subject.title, found["original_percent"], curves, spreads, least)
    name.with_suffix(".svg").write_text(draw([panel], "top-1", "share of the latency, %"))


if __name__ == "__main__":
    main()
