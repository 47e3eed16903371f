"""EASIER's rounds and LoRITa's training on ResNet-20, CIFAR-10, beside what their papers reached.

    python tests/benchmarks/published.py easier [--rounds 9] [--epochs 0.5]
    python tests/benchmarks/published.py lorita [--epochs 1]

Both begin from the public weights and train for a part of the papers' epochs, with a cosine in place of their
schedules. Needs the data and the weights of `problems.py`. Writes reports/benchmarks/published-METHOD.json and a table
beside it after every training; `lorita` goes on from there, the rounds of `easier` begin anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS

from calibration.dataset import Samples
from pipeline.compress.analysis import run
from pipeline.compress.descent import Policy, train
from pipeline.compress.easier import POLICIES, remove_lowest
from pipeline.compress.factorize import PRESETS, factorized, merged
from pipeline.compress.linearize import sites
from pipeline.compress.ranks import Spectra, pooled, spectrum_of, truncations
from pipeline.environment import environment
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network
from pipeline.process import settle

REPORTS = Path(__file__).resolve().parents[2] / "reports" / "benchmarks"
CALIBRATION = 1000
CUTS = (0.0, 0.1, 0.3, 0.5, 0.6)  # of the convolutions' singular values, the least of all layers together
Row = dict[str, Any]


class Attempt:
    """One network, its data, and the rows so far."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, problem = asked, PROBLEMS["resnet-20"]
        self.training: Samples = problem.training()
        self.test: Samples = problem.test(10_000)
        self.base = from_program(export_program(problem.module(), (problem.example,)))
        self.path = REPORTS / f"published-{asked.method}.json"
        self.record: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else self._fresh()

    def _fresh(self) -> dict[str, Any]:
        about = {"epochs": self.asked.epochs, "base_accuracy": self.accuracy(self.base)}
        return {"command": "", **about, "rows": [], "environment": environment()}

    def accuracy(self, network: Network) -> float:
        """Top-1 in percent."""
        right = sum(int((run(network, [x]).argmax(1) == y).sum()) for x, y in self.test.batches(250))
        return round(100 * right / len(self.test), 2)

    def trained(self, network: Network, policy: Policy, name: str) -> Network:
        steps, started = policy.steps(self.training), time.monotonic()

        def told(step: int, loss: float) -> None:
            if step % 50 == 0:
                print(f"{name}: step {step} of {steps}, loss {loss:.3f}", file=sys.stderr, flush=True)

        done = train(network, self.training, policy, progress=told)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        return done

    def keep(self, row: Row, table: Callable[[dict[str, Any]], Iterator[str]]) -> None:
        print(json.dumps(row), flush=True)
        self.record["rows"].append(row)
        self.record["command"] = "python tests/benchmarks/published.py " + " ".join(sys.argv[1:])
        self.path.write_text(json.dumps(self.record, indent=1) + "\n")
        self.path.with_suffix(".md").write_text("\n".join(table(self.record)) + "\n")


def easier(attempt: Attempt) -> None:
    """Round after round, the rectifier of the lowest entropy goes and the network trains."""
    asked = attempt.asked
    policy = replace(POLICIES["cifar-resnet18"].lasting(asked.epochs), rate=asked.rate, milestones=None)
    chosen = torch.randperm(len(attempt.training), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
    batches = [x for x, _ in attempt.training.select(chosen.tolist()).batches()]
    network = attempt.base
    attempt.record |= {"epochs": asked.epochs, "rows": []}
    for number in range(asked.rounds):
        gone = remove_lowest(network, batches, sites(network))
        before = attempt.accuracy(gone.network)
        network = attempt.trained(gone.network, replace(policy, seed=number), f"round {number + 1}")
        row = {"removed": gone.site, "entropy_bits": round(gone.entropy_bits, 4), "untrained": before}
        attempt.keep({**row, "accuracy": attempt.accuracy(network)}, easier_table)


def easier_table(record: dict[str, Any]) -> Iterator[str]:
    yield "# EASIER's rounds, ResNet-20 on CIFAR-10"
    yield ""
    yield (
        f"Dense: {record['base_accuracy']:.2f} % of 10,000 test images. {record['epochs']:g} epochs after each removal "
        "(paper: 160). The paper's ResNet-18 stays within half a point of dense up to 8 of its 17 rectifiers."
    )
    yield ""
    yield "| removed of 19 | which | entropy, bits | before training, % | after, % | to dense |"
    yield "|---|---|---|---|---|---|"
    for number, row in enumerate(record["rows"], 1):
        figures = f"{row['entropy_bits']:.3f} | {row['untrained']:.2f} | {row['accuracy']:.2f}"
        yield f"| {number} | {row['removed']} | {figures} | {row['accuracy'] - record['base_accuracy']:+.2f} |"
    yield ""
    yield f"Reproduce: `{record['command']}`"


def lorita(attempt: Attempt) -> None:
    """Train as products of 1, 2 and 3 factors, merge, and cut the least singular values without further training."""
    asked = attempt.asked
    policy = replace(PRESETS["lorita-cifar10"], milestones=None, plateau=None).lasting(asked.epochs)
    for factors in (1, 2, 3):
        if any(row["factors"] == factors for row in attempt.record["rows"]):
            continue
        chains = factorized(attempt.base, factors)
        network = merged(attempt.trained(chains, policy, f"{factors} factors"))
        cut = {f"{share:g}": attempt.accuracy(without(network, share)) for share in CUTS}
        attempt.keep({"factors": factors, "accuracy": cut}, lorita_table)


def without(network: Network, share: float) -> Network:
    """The network without that share of its convolutions' singular values, the least of all layers together."""
    spectra: Spectra = {
        name: spectrum_of(layer) for name, layer in network.layers().items() if isinstance(layer, torch.nn.Conv2d)
    }
    return replay(network, truncations(pooled(spectra, 1 - share)))


def lorita_table(record: dict[str, Any]) -> Iterator[str]:
    yield "# LoRITa's training, ResNet-20 on CIFAR-10"
    yield ""
    yield (
        f"The public weights have {record['base_accuracy']:.2f} % of 10,000 test images; then {record['epochs']:g} "
        "epochs as factors (the authors: 300 from the start, 92.33 % with 2 factors, 91.62 % with 3). Columns: the "
        "share of the convolutions' singular values that is cut, without further training."
    )
    yield ""
    yield "| factors | " + " | ".join(f"{share:g}" for share in CUTS) + " |"
    yield "|---|" + "---|" * len(CUTS)
    for row in record["rows"]:
        yield f"| {row['factors']} | " + " | ".join(f"{value:.2f}" for value in row["accuracy"].values()) + " |"
    yield ""
    yield f"Reproduce: `{record['command']}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("method", choices=("easier", "lorita"))
    parser.add_argument("--rounds", type=int, default=9, help="removals")
    parser.add_argument("--epochs", type=float, default=0.5, help="of each training")
    parser.add_argument("--rate", type=float, default=0.02, help="peak learning rate of EASIER's trainings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    asked = parser.parse_args()
    settle()
    torch.set_num_threads(asked.threads)
    {"easier": easier, "lorita": lorita}[asked.method](Attempt(asked))


if __name__ == "__main__":
    main()
