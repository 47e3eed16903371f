"""Compression methods side by side on the same network, cost table, calibration data and budgets.

    python tests/benchmarks/flatten.py NETWORK [--methods auto svd ...] [--shares 75 60 50 40] [--recover SECONDS]

For every method and share of the original's latency: plan, apply, and judge without any training. With `--recover` the
label-free distillation of `pipeline.compress.recover` follows, the same number of steps for every method: as many as
the original against itself takes in that many seconds here. With `--measure` the TFLite artifacts are timed on the
emulated target as well: the predicted share is the cost table's, the measured one is a fact.

Appends to reports/benchmarks/flatten-NETWORK.json after every point; what is there is not done again, and its networks
are kept in the cache for a later `--recover` or `--measure`. Writes a table (.md) and the curves (.svg) beside it.
`problems.py` says which data it needs and where it looks for it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import METHODS, Candidate, Contest, Proposer
from curves import Panel, draw
from problems import PROBLEMS

from pipeline.compress.analysis import divergence, run
from pipeline.compress.recover import Recovery, recover
from pipeline.environment import environment
from pipeline.export.child import export
from pipeline.model.ingest import ingest
from pipeline.model.network import Network
from pipeline.model.operators import milliseconds
from pipeline.process import settle
from pipeline.verify.execute import to_layout
from targets.cache import cache_root
from targets.cost import CostTable
from targets.errors import PlanishError
from targets.measure import measure
from targets.profile import load_profile

REPORTS = Path(__file__).resolve().parents[2] / "reports" / "benchmarks"
TARGET, FORMAT = "pixel-4-cpu", "tflite"
BATCH = 64
TIMED_STEPS = 5


class Benchmark:
    """One network's contest, and the file that its points go to."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.problem = asked, PROBLEMS[asked.network]
        self.profile = load_profile(TARGET)
        costs = CostTable.load(self.profile, FORMAT)
        self.training, self.test = self.problem.training(), self.problem.test(asked.test)
        count = min(asked.calibration, len(self.training))
        chosen = random.Random(0).sample(range(len(self.training)), count)  # files may be sorted
        samples = self.training.select(chosen)
        self.contest = Contest(
            self.problem, costs, samples, asked.planning, self.progress, self.training, lambda: self.steps
        )
        self.base_ms = sum(milliseconds(self.base, costs).values())
        self.started, self.phase = time.monotonic(), ""
        self.phases: dict[str, float] = {}
        self.proposers: dict[str, Proposer] = {}
        self.path = REPORTS / f"flatten-{asked.network}.json"
        self.record: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else self._fresh()

    @property
    def base(self) -> Network:
        return self.contest.base

    def _fresh(self) -> dict[str, Any]:
        settings = {
            "test_samples": len(self.test),
            "calibration_samples": len(self.contest.samples),
            "planning_samples": sum(map(len, self.contest.planning)),
            "cost_table": self.contest.costs.source,
        }
        base = {"accuracy": self.accuracy(self.base), "predicted_ms": self.base_ms, "macs": self.contest.macs}
        return {
            "network": self.problem.title,
            "target": f"{TARGET}, {FORMAT}",
            "commands": [],
            "settings": settings,
            "base": base,
            "methods": {},
            "points": [],
            "environment": environment(),
        }

    def progress(self, text: str) -> None:
        """Seconds go to the phase that a text opens: its first words, without the layer's name."""
        print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
        self.enter(" ".join(text.split()[:5]))

    def enter(self, phase: str) -> None:
        if self.phase:
            self.phases[self.phase] = self.phases.get(self.phase, 0.0) + time.monotonic() - self.started
        self.started, self.phase = time.monotonic(), phase

    # Points ----------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        asked = self.asked
        if asked.measure:
            self._measure(self.base, self.record["base"])
        for method in asked.methods:
            for share in asked.shares:
                point = self._known(method, share) or self._judged(method, share)
                if asked.measure and point["reachable"] and "measured_ms" not in point:
                    self._measure(self._network(point), point)
                    self.keep(point)
                if asked.recover and point["reachable"] and "steps" not in point:
                    self._recovered(point)

    def _known(self, method: str, share: float) -> dict[str, Any] | None:
        points = self.record["points"]
        return next((point for point in points if (point["method"], point["share"]) == (method, share)), None)

    def _proposer(self, method: str) -> Proposer:
        if method not in self.proposers:
            started, self.phases = time.monotonic(), {}
            self.enter("preparing")
            self.proposers[method] = self.contest.proposer(method)
            self.enter("")
            facts = {
                "analysis_s": round(time.monotonic() - started, 1),
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "phases_s": {phase: round(seconds, 1) for phase, seconds in self.phases.items()},
            }
            print(method, json.dumps(self.record["methods"].setdefault(method, facts)), flush=True)
        return self.proposers[method]

    def _judged(self, method: str, share: float) -> dict[str, Any]:
        """A new point: the network planned, applied and tested."""
        self._proposer(method)
        started = time.monotonic()
        candidate = self._candidate(method, share)
        network = candidate.network
        point = {
            "method": method,
            "share": share,
            "reachable": candidate.reachable,
            "planned_share": candidate.predicted_ms and round(100 * candidate.predicted_ms / self.base_ms, 2),
            "predicted_share": round(100 * self._predicted_ms(network) / self.base_ms, 2),
            "expected_damage": candidate.damage,
            "damage": self._damage(network),
            "edits": candidate.edits,
            "parameters": network.parameters(),
            "seconds": round(time.monotonic() - started, 1),
            "accuracy": self.accuracy(network),
        }
        self.record["points"].append(point)
        self.keep(point)
        return point

    def _candidate(self, method: str, share: float) -> Candidate:
        candidate, kept = self._proposer(method)(share / 100 * self.base_ms), self._kept(method, share)
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(candidate.network.exported(), kept)
        return candidate

    def _network(self, point: dict[str, Any]) -> Network:
        """The network of a point: from the cache, or made again."""
        kept = self._kept(point["method"], point["share"])
        return ingest(str(kept)) if kept.exists() else self._candidate(point["method"], point["share"]).network

    def _kept(self, method: str, share: float) -> Path:
        return cache_root() / "benchmarks" / self.path.stem / f"{method}-{share:g}.pt2"

    def _recovered(self, point: dict[str, Any]) -> None:
        network, steps, started = self._network(point), self.steps, time.monotonic()
        taught = recover(network, self.base, self.training, self._recovery(steps))
        point |= {"steps": steps, "recovery_s": round(time.monotonic() - started, 1)}
        point["recovered_accuracy"] = self.accuracy(taught)
        self.keep(point)

    def _predicted_ms(self, network: Network) -> float:
        return sum(milliseconds(network, self.contest.costs).values())

    def _damage(self, network: Network) -> float:
        return divergence(self._reference, run(network, self.contest.planning), True)

    @cached_property
    def _reference(self) -> torch.Tensor:
        return run(self.base, self.contest.planning)

    def accuracy(self, network: Network) -> float:
        """Top-1 in percent."""
        right = 0
        for x, y in self.test.batches():
            right += int((run(network, [x]).argmax(1) == y).sum())
        return round(100 * right / len(self.test), 2)

    # Recovery --------------------------------------------------------------------------------------------------

    def _recovery(self, steps: int) -> Recovery:
        return Recovery(steps=steps, batch=BATCH, label_weight=0.0, augment=True)

    @cached_property
    def steps(self) -> int:
        """As many as the original against itself takes in the seconds asked for; kept with the record."""
        settings = self.record["settings"]
        if "steps" not in settings:
            if not self.asked.recover:
                sys.exit("lorita trains for as many steps as recovery takes: say for how long with --recover SECONDS")
            stamps = [time.monotonic()]
            warm = self._recovery(TIMED_STEPS + 1)
            recover(self.base, self.base, self.training, warm, progress=lambda *_: stamps.append(time.monotonic()))
            step_s = (stamps[-1] - stamps[1]) / TIMED_STEPS
            settings |= {"recovery_seconds": self.asked.recover, "steps": max(1, round(self.asked.recover / step_s))}
        return settings["steps"]

    # Artifacts -------------------------------------------------------------------------------------------------

    def _measure(self, network: Network, into: dict[str, Any]) -> None:
        if "measured_ms" in into:
            return
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            torch.export.save(network.exported(), folder / "network.pt2")
            artifact = export(
                folder / "network.pt2", format=FORMAT, directory=folder / "out", log=folder / "export.log"
            )
            sample = next(self.test.take(1).batches(1))[0].numpy()
            np.savez(folder / "input.npz", x=np.ascontiguousarray(to_layout(sample, artifact.inputs[0])))
            found = measure(artifact.path, format=FORMAT, profile=self.profile, inputs=folder / "input.npz")
            into |= {"measured_ms": found.median_ms, "bytes": artifact.bytes}

    # Records ---------------------------------------------------------------------------------------------------

    def keep(self, point: dict[str, Any] | None = None) -> None:
        """Write what there is."""
        if point is not None:
            print(json.dumps(point), flush=True)
            base, command = self.record["base"], command_line()
            if "measured_ms" in point and "measured_ms" in base:
                point["measured_share"] = round(100 * point["measured_ms"] / base["measured_ms"], 2)
            if command not in self.record["commands"]:
                self.record["commands"].append(command)
        self.path.write_text(json.dumps(self.record, indent=1) + "\n")
        self.path.with_suffix(".md").write_text(table(self.record))
        self.path.with_suffix(".svg").write_text(picture(self.record))


def table(record: dict[str, Any]) -> str:
    """The page beside the JSON: top-1 of each method at each share, and the facts that belong to it."""
    settings, base, points = record["settings"], record["base"], record["points"]
    shares = sorted({point["share"] for point in points}, reverse=True)
    taught = ""
    if "steps" in settings:
        taught = f" Behind an arrow: after {settings['steps']} steps of {BATCH} images of label-free distillation."
    lines = [
        f"# {record['network']}: methods side by side, {record['target']}",
        "",
        f"Top-1, %, on {settings['test_samples']} test images; the original has {base['accuracy']:.2f}. Columns: "
        f"share of the original's predicted {base['predicted_ms']:.3f} ms. {settings['calibration_samples']} "
        f"calibration images without labels, damage measured on {settings['planning_samples']}. No training.{taught} "
        "`not reached`: the method's fastest network takes the share in brackets.",
        "",
        "| method | " + " | ".join(f"{share:g} %" for share in shares) + " | analysis, s | peak memory, MB |",
        "|---|" + "---|" * (len(shares) + 2),
    ]
    for method, facts in record["methods"].items():
        cells = [cell(points, method, share) for share in shares]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {facts['analysis_s']:g} | {facts['peak_memory_mb']} |")
    if measured := [point for point in points if "measured_share" in point]:
        lines += [
            "",
            f"The artifacts' share, predicted and emulated, % (the original takes {base['measured_ms']:.3f} ms):",
            "",
            "| method | " + " | ".join(f"{share:g} %" for share in shares) + " |",
            "|---|" + "---|" * len(shares),
        ]
        for method in record["methods"]:
            found = {point["share"]: point for point in measured if point["method"] == method}
            told = [share_cell(found.get(share)) for share in shares]
            if any(told):
                lines.append(f"| {method} | " + " | ".join(told) + " |")
    lines += ["", "Seconds on a busy machine; peak memory is that of the process so far. Reproduce:", ""]
    return "\n".join([*lines, *(f"    {command}" for command in record["commands"]), ""])


def cell(points: list[dict[str, Any]], method: str, share: float) -> str:
    point = next((point for point in points if (point["method"], point["share"]) == (method, share)), None)
    if point is None:
        return ""
    if not point["reachable"]:
        return f"not reached ({point['predicted_share']:.0f} %: {point['accuracy']:.2f})"
    after = point.get("recovered_accuracy")
    return f"{point['accuracy']:.2f}" + (f" → {after:.2f}" if after is not None else "")


def share_cell(point: dict[str, Any] | None) -> str:
    return "" if point is None else f"{point['predicted_share']:.1f}, {point['measured_share']:.1f}"


def picture(record: dict[str, Any]) -> str:
    def curves(figure: str) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for point in record["points"]:
            if figure in point and point["edits"]:
                found.setdefault(point["method"], []).append((point["predicted_share"], point[figure]))
        return {method: sorted(set(points)) for method, points in found.items()}

    base = record["base"]["accuracy"]
    panels = [Panel(f"{record['network']}, no training", base, curves("accuracy"))]
    if after := curves("recovered_accuracy"):
        panels.append(Panel(f"after {record['settings']['steps']} steps of distillation", base, after))
    return draw(panels, "top-1", "predicted share of the original's latency, %")


def command_line() -> str:
    return "python tests/benchmarks/flatten.py " + " ".join(sys.argv[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network", choices=PROBLEMS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--shares", nargs="+", type=float, default=[75.0, 60.0, 50.0, 40.0], metavar="PERCENT")
    parser.add_argument("--recover", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--measure", action="store_true", help="time the artifacts on the emulated target")
    parser.add_argument("--test", type=int, default=2000, metavar="N", help="test images")
    parser.add_argument("--calibration", type=int, default=1000, metavar="N", help="calibration images")
    parser.add_argument("--planning", type=int, metavar="N", help="images damage is measured on; else as many as a fit")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    asked = parser.parse_args()
    settle()
    torch.set_num_threads(asked.threads)
    try:
        Benchmark(asked).compare()
    except PlanishError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
