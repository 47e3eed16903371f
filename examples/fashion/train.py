"""Trains `model.py` on Fashion-MNIST and writes everything that the example keeps in the repository.

Written beside this file: `weights.safetensors`, `train_log.json`, and class-balanced samples, `calibration.npz` (from
the training set) and `test.npz` (from the test set). The four IDX files come from Debian's package
`dataset-fashion-mnist` (`apt-get install dataset-fashion-mnist`), or from anywhere else with `--data`.

A run that is killed continues from `build/checkpoint.pt`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
from model import CLASSES, FashionNet, build
from safetensors.torch import save_model
from torch import Tensor, nn

HERE = Path(__file__).parent
CHECKPOINT = HERE / "build" / "checkpoint.pt"
SAMPLES_PER_CLASS = 200


def read_idx(path: Path) -> np.ndarray:
    """An IDX file: two zero bytes, the type (8 = unsigned byte), the rank, big-endian sizes, then the data."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes")
    rank = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_set(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """`prefix` is train or t10k. Returns images [N, 1, 28, 28] uint8 and labels [N] int64."""
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")[:, None]
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def write_balanced(path: Path, images: Tensor, labels: Tensor, rng: np.random.Generator) -> None:
    """Saves `SAMPLES_PER_CLASS` images of each class in random order: x [N, 1, 28, 28] uint8, y [N] int64."""
    per_class = [
        rng.choice(np.flatnonzero(labels.numpy() == c), SAMPLES_PER_CLASS, replace=False) for c in range(len(CLASSES))
    ]
    chosen = rng.permutation(np.concatenate(per_class))
    np.savez_compressed(path, x=images.numpy()[chosen], y=labels.numpy()[chosen])


def scaled(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], the scaling the network is trained with."""
    return images.to(torch.float32) / 255


def augmented(images: Tensor, max_shift: int = 2) -> Tensor:
    """Each image mirrored with probability one half and shifted by up to `max_shift` pixels, zero-filled."""
    count, _, height, width = images.shape
    flip = torch.rand(count) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (max_shift,) * 4)
    top = torch.randint(0, 2 * max_shift + 1, (count, 1)) + torch.arange(height)
    left = torch.randint(0, 2 * max_shift + 1, (count, 1)) + torch.arange(width)
    sample = torch.arange(count)[:, None, None]
    return padded[sample, 0, top[:, :, None], left[:, None, :]][:, None]


@torch.no_grad()
def accuracy(network: FashionNet, images: Tensor, labels: Tensor) -> float:
    """Top-1 on uint8 images, as a fraction."""
    network.eval()
    hits = sum(
        int((network(scaled(x)).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return hits / len(labels)


def train(
    args: argparse.Namespace, images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor
) -> tuple[FashionNet, list[dict[str, float]]]:
    """SGD with Nesterov momentum and one learning-rate cycle; keeps the last weights, not the best on the test set."""
    network = build().to(memory_format=torch.channels_last)
    steps = len(images) // args.batch
    decayed = [p for p in network.parameters() if p.ndim > 1]
    undecayed = [p for p in network.parameters() if p.ndim <= 1]  # norms and biases
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": undecayed, "weight_decay": 0.0}],
        lr=args.lr,
        momentum=0.9,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, epochs=args.epochs, steps_per_epoch=steps, pct_start=0.25, cycle_momentum=False
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    log: list[dict[str, float]] = []
    if CHECKPOINT.exists():
        state = torch.load(CHECKPOINT, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        log = state["log"]

    for epoch in range(len(log), args.epochs):
        torch.manual_seed(args.seed + 1 + epoch)
        network.train()
        started, loss_sum = time.monotonic(), 0.0
        for chosen in torch.randperm(len(images))[: steps * args.batch].split(args.batch):
            x = augmented(scaled(images[chosen])).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
                logits = network(x)
            loss = loss_of(logits.float(), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
        log.append(
            {
                "epoch": epoch + 1,
                "train_loss": round(loss_sum / steps, 4),
                "test_top1": round(accuracy(network, test_images, test_labels), 4),
                "seconds": round(time.monotonic() - started, 1),
            }
        )
        print(log[-1], flush=True)
        CHECKPOINT.parent.mkdir(exist_ok=True)
        torch.save(
            {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "log": log,
            },
            CHECKPOINT,
        )
    return network, log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="four IDX files")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="the peak of the cycle")
    parser.add_argument("--bf16", action="store_true", help="forward and backward in bfloat16, weights in float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    images, labels = read_set(args.data, "train")
    test_images, test_labels = read_set(args.data, "t10k")
    rng = np.random.default_rng(args.seed)
    write_balanced(HERE / "calibration.npz", images, labels, rng)
    write_balanced(HERE / "test.npz", test_images, test_labels, rng)

    network, epochs = train(args, images, labels, test_images, test_labels)
    save_model(network.to(memory_format=torch.contiguous_format), str(HERE / "weights.safetensors"))
    committed = np.load(HERE / "test.npz")
    log = {
        "settings": {"epochs": args.epochs, "batch": args.batch, "lr": args.lr, "bf16": args.bf16, "seed": args.seed},
        "parameters": sum(p.numel() for p in network.parameters()),
        "test_top1": {
            "all_10000": accuracy(network, test_images, test_labels),
            "committed_2000": accuracy(network, torch.from_numpy(committed["x"]), torch.from_numpy(committed["y"])),
        },
        "epochs": epochs,
    }
    (HERE / "train_log.json").write_text(json.dumps(log, indent=1) + "\n")
    print(json.dumps(log["test_top1"]))


if __name__ == "__main__":
    main()
