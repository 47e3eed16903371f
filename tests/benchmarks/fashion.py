"""Fashion-MNIST (MIT licence) for benchmarks, and the small vision transformer trained on it.

    PLANISH_FASHION=FOLDER python tests/benchmarks/fashion.py WEIGHTS.safetensors

`PLANISH_FASHION` names the folder of the four IDX files, gzipped; Debian's package dataset-fashion-mnist puts them into
/usr/share/datasets/fashion-mnist. Training takes some ten minutes on two cores.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
sys.path.append(str(ROOT / "examples" / "fashion"))

from networks.vit import small_vit  # noqa: E402
from train import read_set  # noqa: E402

from calibration.dataset import open_samples  # noqa: E402
from pipeline.compress.analysis import run  # noqa: E402
from pipeline.compress.descent import Policy, train  # noqa: E402
from pipeline.model.ingest import export_program, from_program  # noqa: E402
from pipeline.process import settle  # noqa: E402

POLICY = Policy(
    epochs=8, batch=128, rate=1.5e-3, optimizer="adamw", weight_decay=0.05, milestones=None, clip=1.0, augment=True
)


def training() -> dict[str, Tensor]:
    """x uint8 [60000, 1, 28, 28], y [60000]."""
    return _read("train")


def test() -> dict[str, Tensor]:
    """x uint8 [10000, 1, 28, 28], y [10000]."""
    return _read("t10k")


def _read(prefix: str) -> dict[str, Tensor]:
    x, y = read_set(Path(os.environ["PLANISH_FASHION"]), prefix)
    return {"x": x, "y": y}


def main(out: str) -> None:
    settle()
    torch.manual_seed(0)
    network = from_program(export_program(small_vit().eval(), (torch.zeros(2, 1, 28, 28),)))
    samples = open_samples(f"{__file__}:training")
    steps = POLICY.steps(samples)

    def told(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step} of {steps}, loss {loss:.4f}", flush=True)

    trained = train(network, samples, POLICY, checkpoint=Path(out).with_suffix(".checkpoint"), progress=told)
    right = sum(int((run(trained, [x]).argmax(1) == y).sum()) for x, y in open_samples(f"{__file__}:test").batches(500))
    trained.save_weights(Path(out))
    print(f"top-1 {right / 100:.2f} % of 10,000 test images; weights in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
