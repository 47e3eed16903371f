"""Networks on LiteRT's GPU path without a GPU: parity on real images, what the accelerator takes, what it dispatches.

    python tests/benchmarks/gpu.py [NETWORK ...] [--gpus adreno-640 ...]

Networks, weights and images are those of `formats.py`. Needs `planish targets setup pixel-4-gpu`, and for Mali GPUs
`planish targets setup galaxy-s10-exynos-gpu`. Writes reports/benchmarks/gpu.json after every network, and a table
beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from formats import REPORTS, Trial

from pipeline.environment import environment
from pipeline.export.artifact import Artifact
from pipeline.export.child import export
from pipeline.process import settle
from pipeline.verify.execute import to_layout
from targets.cache import cache_root
from targets.delegation.gpu import on_gpu
from targets.gpu import gpus, places
from targets.gpu.counts import compiled, count
from targets.gpu.run import run
from targets.runners import host

NETWORKS = ("resnet-20", "mobilenet-v2", "efficientnet-lite0", "vit-tiny")
COMPILED = ("adreno-640", "adreno-740", "mali-g76", "mali-g710")
IMAGES = 16
# Of a compiled kernel: its instructions, and what bounds how many of its threads are on a core at once.
INSTRUCTIONS, REGISTERS = ("Instruction Count", "Instructions"), "Registers used"
Row = dict[str, Any]


def measured(name: str, chosen: list[str], scratch: Path) -> Row:
    trial = Trial(name, scratch)
    artifact = export(
        trial.program, format="tflite", directory=scratch, contract=trial.contract, log=scratch / "converter.log"
    )
    found = on_gpu(artifact.path)
    samples = trial.reference.samples[:IMAGES]
    return {
        "title": trial.title,
        "operators": len(found.kinds),
        "on_gpu": len(found.taken),
        "refused": sorted({(found.kinds[index], reason) for index, reason in found.refused.items()}),
        "runs": [_run(artifact, samples, precision, scratch) for precision in ("fp32", "fp16")],
        "counts": [_counts(artifact, gpu) for gpu in chosen],
    }


def _run(artifact: Artifact, samples: np.ndarray, precision: str, scratch: Path) -> Row:
    inputs, cpu, gpu = (scratch / f"{side}.npz" for side in ("inputs", "cpu", "gpu"))
    np.savez(inputs, x=to_layout(samples, artifact.inputs[0]))
    host.run(artifact.path, "tflite", inputs, cpu)
    shutil.rmtree(
        cache_root() / "gpu/shaders", ignore_errors=True
    )  # kernels that were compiled before, for a set-up from nothing
    done = run(artifact.path, inputs, gpu, precision)
    start = time.perf_counter()
    again = run(artifact.path, inputs, gpu, precision)
    seconds = time.perf_counter() - start
    with np.load(cpu) as expected, np.load(gpu) as actual:
        (name,) = expected.files
        difference = np.abs(actual[name] - expected[name]).max() / np.abs(expected[name]).max()
        agreement = (actual[name].argmax(-1) == expected[name].argmax(-1)).mean()
    return {
        "precision": precision,
        "relative_difference": float(difference),
        "top1_agreement": float(agreement),
        "setup_seconds": round(done.setup_seconds, 2),
        "setup_again_seconds": round(again.setup_seconds, 2),
        "seconds_an_image": round(float(np.median(done.seconds)), 3),
        "check_seconds": round(seconds, 1),
        "driver": done.driver,
    }


def _counts(artifact: Artifact, gpu: str) -> Row:
    start = time.perf_counter()
    total = count(artifact.path, gpu)
    seconds = time.perf_counter() - start
    kernels = compiled(artifact.path, gpu)
    instructions = [sum(kernel.statistics.get(key, 0) for key in INSTRUCTIONS) for kernel in kernels]
    return {
        "asked": gpu,
        **vars(total),
        "seconds": round(seconds, 1),
        "instructions": sum(instructions),
        "most_registers": max(kernel.statistics.get(REGISTERS, 0) for kernel in kernels),
        "kernels_with_loops": sum(kernel.statistics.get("Loops", 0) > 0 for kernel in kernels),
    }


def table(record: Row) -> Iterator[str]:
    yield "# LiteRT's GPU path without a GPU"
    yield ""
    yield (
        f"{record['mesa']}, LiteRT {record['environment']['ai-edge-litert']}, {IMAGES} real images. The largest "
        "difference from the CPU's outputs over the largest output. Seconds of a busy machine whose processors stand "
        "in for a GPU: the set-up compiles the kernels, and finds them compiled the second time; a check is a process "
        f"of its own with {IMAGES} images, then. Counts are of one inference in fp16."
    )
    yield ""
    yield "| network | on the GPU | difference | top-1 as on the CPU | set-up s | again s | s an image | check s |"
    yield "|---" * 8 + "|"
    for network in record["networks"].values():
        for row in network["runs"]:
            yield (
                f"| {network['title']}, {row['precision']} | {network['on_gpu']} of {network['operators']} | "
                f"{row['relative_difference']:.1e} | {row['top1_agreement']:.0%} | {row['setup_seconds']:.1f} | "
                f"{row['setup_again_seconds']:.1f} | {row['seconds_an_image']:.2f} | {row['check_seconds']:.1f} |"
            )
    yield ""
    yield (
        "Compiled by Mesa for a GPU of the family: static figures of code, loops count once. Instructions are the sum "
        "over the different kernels."
    )
    for network in record["networks"].values():
        yield f"\n## {network['title']}\n"
        if network["refused"]:
            yield "Not on the GPU: " + "; ".join(f"{kind}: {reason}" for kind, reason in network["refused"]) + "\n"
        yield (
            "| GPU | compiled as | dispatches | kernels | invocations | barriers | submits | MB on the GPU | "
            "instructions | most registers | kernels with loops | s |"
        )
        yield "|---" * 12 + "|"
        for row in network["counts"]:
            code = [f"{row['instructions']:.0f}", f"{row['most_registers']:.0f}", str(row["kernels_with_loops"])]
            cells = [
                row["asked"],
                row["gpu"],
                *(str(row[key]) for key in ("dispatches", "kernels", "invocations", "barriers", "submits")),
                f"{row['allocated_bytes'] / 1e6:.0f}",
                *(code if row["instructions"] else ["", "", ""]),
                f"{row['seconds']:.0f}",
            ]
            yield "| " + " | ".join(cells) + " |"
    yield ""
    yield "Reproduce:\n"
    yield from (f"    {command}" for command in record["commands"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--gpus", nargs="*", default=COMPILED, choices=[*gpus.GPUS, *gpus.STAND_INS])
    asked = parser.parse_args()
    settle()
    path = REPORTS / "gpu.json"
    record = json.loads(path.read_text()) if path.exists() else {"commands": [], "networks": {}}
    record["environment"] = environment()
    record["mesa"] = f"Mesa {places.require().mesa(mali=False)}"
    command = " ".join(["python tests/benchmarks/gpu.py", *sys.argv[1:]])
    record["commands"] += [] if command in record["commands"] else [command]
    for name in asked.networks:
        with tempfile.TemporaryDirectory(prefix="planish-gpu-") as scratch:
            record["networks"][name] = measured(name, ["software", *asked.gpus], Path(scratch))
        print(name, json.dumps(record["networks"][name]), flush=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        path.with_suffix(".md").write_text("\n".join(table(record)) + "\n")


if __name__ == "__main__":
    main()
