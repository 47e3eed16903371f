"""What a GPU wants of a plan that a CPU does not: one network flattened for each, both artifacts on both.

    python tests/benchmarks/gpu_fit.py resnet-56|mobilenet-v2 [--latency 60%] [--runs FOLDER]

`PLANISH_WEIGHTS` names the folder of the weights, `PLANISH_CIFAR10` or `PLANISH_IMAGENET` the data (see cifar10.py,
imagenet.py). Nothing is recovered: the plans are compared, before any training. Writes
reports/benchmarks/gpu-fit-NETWORK.json and .md. A run that was stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.api import Listener, fit, resume  # noqa: E402
from pipeline.environment import environment  # noqa: E402
from pipeline.process import settle  # noqa: E402
from pipeline.recipe import make_recipe  # noqa: E402
from reports.matrix import MatrixRecord  # noqa: E402
from reports.records import CandidateRecord, EditRecord, RunRecord, read_run  # noqa: E402
from targets.gpu.counts import count  # noqa: E402

GPU, CPU = "pixel-4-gpu", "pixel-4-cpu"
DRIVEN = "adreno-640"
OUT = ROOT / "reports" / "benchmarks"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def subjects() -> dict[str, dict[str, Any]]:
    here, weights = Path(__file__).parent, Path(os.environ.get("PLANISH_WEIGHTS", "PLANISH_WEIGHTS"))
    return {
        "resnet-56": {
            "model": f"{here / 'cifar10.py'}:resnet56",
            "weights": str(weights / "resnet56-4bfd9763.th"),
            "data": f"{here / 'cifar10.py'}:train",
            "test": f"{here / 'cifar10.py'}:test",
            **IMAGENET,
        },
        "mobilenet-v2": {
            "model": f"{here / 'imagenet.py'}:mobilenet_v2",
            "weights": str(weights / "mobilenet_v2-b0353104.pth"),
            "data": f"{here / 'imagenet.py'}:calibration",
            "test": f"{here / 'imagenet.py'}:evaluation",
            **IMAGENET,
        },
    }


class Told(Listener):
    def judged(self, candidate: CandidateRecord) -> None:
        found = ", ".join(f"{o.target} {o.value:.4g} ms ({o.margin_percent:+.1f} %)" for o in candidate.outcomes)
        print(f"  probe {candidate.index}: {found}, top-1 {candidate.quality.value:.2f} %", flush=True)


def form_of(edit: EditRecord) -> str:
    """What an edit puts in the place of layers, in the plural."""
    made = edit.summary.partition("become")[2]
    if edit.kind != "refit" or not made:
        return {"narrow": "narrowed layers", "refit": "refits that leave nothing"}.get(edit.kind, edit.kind)
    layers = made.count("conv ") + made.count("linear ")
    if layers == 1:
        return "refits to one layer"
    return "refits to depthwise and pointwise" if "depthwise" in made else "refits to two thin layers"


def plan_of(run: RunRecord, folder: Path) -> dict[str, Any]:
    """What a plan did, what it left of the network, and what an inference asks of the GPU."""
    chosen = run.chosen
    measured = run.primary(chosen)
    return {
        "verdict": run.verdict,
        "edits": dict(Counter(form_of(edit) for edit in chosen.edits if edit.kind != "recover").most_common()),
        "layers": len(chosen.layers),
        "macs": chosen.macs,
        "parameters": chosen.parameters,
        "top1_percent": chosen.quality.value,
        "low_percent": chosen.quality.low,
        "high_percent": chosen.quality.high,
        "dispatches": count(folder / run.target.name / measured.file, DRIVEN).dispatches,
        "seconds": round(run.seconds),
    }


def table(name: str, found: dict[str, Any]) -> str:
    plans, original = found["plans"], found["original"]
    lines = [
        f"# {name}: one plan for the GPU of a Pixel 4, one for its CPU, each at {found['latency']} of the original",
        "",
        "Before any recovery. Milliseconds on the CPU are emulated, those on the GPU modelled; dispatches are counted "
        "as LiteRT's GPU accelerator drives an Adreno of that family.",
        "",
        "| | original | planned for the GPU | planned for the CPU |",
        "|---|---|---|---|",
    ]
    for title, target in (("modelled on the GPU, ms", GPU), ("emulated on the CPU, ms", CPU)):
        values = [original[target], *(found["cells"][plan][target] for plan in (GPU, CPU))]
        lines.append(f"| {title} | {' | '.join(f'{value:.3f}' for value in values)} |")
    rows = {
        "top-1, %": "top1_percent",
        "dispatches": "dispatches",
        "operators": "layers",
        "multiply-accumulates": "macs",
        "parameters": "parameters",
    }
    for title, key in rows.items():
        values = [original[key], plans[GPU][key], plans[CPU][key]]
        shown = [f"{value:.2f}" if isinstance(value, float) else f"{value:,}" for value in values]
        lines.append(f"| {title} | {' | '.join(shown)} |")
    edits = [", ".join(f"{n} {kind}" for kind, n in plans[target]["edits"].items()) or "none" for target in (GPU, CPU)]
    lines += [f"| edits | | {edits[0]} | {edits[1]} |", "", f"Reproduce: `{found['command']}`", ""]
    return "\n".join(lines)


def main() -> None:
    settle()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(subjects()))
    parser.add_argument("--latency", default="60%")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    asked = parser.parse_args()
    folder = asked.runs / f"gpu-fit-{asked.network}"
    if (folder / "recipe.toml").exists():
        matrix = resume(folder, listener=Told())
    else:
        recipe = make_recipe(
            **subjects()[asked.network],
            target=[GPU, CPU],
            latency=asked.latency,
            per_target=True,
            formats=["tflite"],
            recover_steps=0,
        )
        matrix = fit(recipe, folder, listener=Told())
    assert isinstance(matrix, MatrixRecord)
    runs = {target: read_run(folder / target / "report.json") for target in (GPU, CPU)}
    base = runs[GPU].base
    original = {
        **{target: run.primary(run.base).median_ms for target, run in runs.items()},
        "top1_percent": base.quality.value,
        "dispatches": count(folder / GPU / base.measurements[0].file, DRIVEN).dispatches,
        "layers": len(base.layers),
        "macs": base.macs,
        "parameters": base.parameters,
    }
    found = {
        "network": asked.network,
        "latency": asked.latency,
        "command": f"python tests/benchmarks/gpu_fit.py {asked.network}",
        "original": original,
        "plans": {target: plan_of(run, folder) for target, run in runs.items()},
        "cells": {a: {t: matrix.cell(a, t).median_ms for t in (GPU, CPU)} for a in (GPU, CPU)},
        "edits": {target: [edit.model_dump() for edit in run.chosen.edits] for target, run in runs.items()},
        "environment": environment(),
    }
    out = OUT / f"gpu-fit-{asked.network}"
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(asked.network, found))
    print(table(asked.network, found))


if __name__ == "__main__":
    main()
