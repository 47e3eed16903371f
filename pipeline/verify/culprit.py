"""Which of the user's blocks is the first to go wrong in an artifact.

A wrong block spoils every value behind it, so the error of a value says little about the block that made it. What
does is the block's own error: the network's block is fed what the artifact's block was fed, and the two results are
compared. Blocks behind the culprit are right by that measure, however wrong their values are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from pipeline.compress.taps import Taps
from pipeline.export.artifact import Artifact
from pipeline.model.network import Network
from pipeline.verify import reproducer
from pipeline.verify.blocks import Blocks, moves
from pipeline.verify.correspondence import EQUAL, Correspondence, Found, distance
from pipeline.verify.execute import from_layout, run_artifact, to_layout
from pipeline.verify.parity import FP32
from pipeline.verify.parts import effect
from pipeline.verify.tapped import interior


@dataclass(frozen=True)
class BlockError:
    """How far one value inside the artifact is from the network's.

    Attributes:
        module: the user's module (or `module.operator` for an operator outside any layer) whose output it is.
        block: the user's block around it, such as `layer2.1`; the module itself outside any block.
        value: RMS of the difference over RMS of the network's value, on the same samples.
        own: the same, but against what the network makes of the artifact's own values before it: what the artifact
            does wrong here, and not further in front.
    """

    module: str
    block: str
    value: float
    own: float


@dataclass(frozen=True)
class Culprit:
    """The verdict of a search.

    Attributes:
        block: the first block that is wrong by itself; None when none is.
        module: the layer in it, as far as the artifact's values tell: what it fuses cannot be told apart.
        wrong: every block that is wrong by itself, the first one first.
        blocks: the errors by depth, in the order of execution.
        looked_into: what was compared, in words: "39 values inside the artifact".
        samples: how many samples were looked at.
        reproducer: folder with the block, its input, what it should and what it did give; None without culprit.
    """

    block: str | None
    module: str | None
    wrong: tuple[str, ...]
    blocks: tuple[BlockError, ...]
    looked_into: str
    samples: int
    reproducer: Path | None

    def to_json(self, root: Path) -> dict[str, Any]:
        """Plain data in strict JSON, `reproducer` relative to `root`; an infinite error becomes the string `inf`."""
        blocks = [
            {key: repr(entry) if entry == float("inf") else entry for key, entry in asdict(block).items()}
            for block in self.blocks
        ]
        folder = self.reproducer and self.reproducer.resolve().relative_to(root.resolve()).as_posix()
        return {**asdict(self), "wrong": list(self.wrong), "blocks": blocks, "reproducer": folder}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], root: Path) -> Culprit:
        """The inverse of `to_json`."""
        blocks = tuple(
            BlockError(block["module"], block["block"], float(block["value"]), float(block["own"]))
            for block in data["blocks"]
        )
        folder = root / data["reproducer"] if data["reproducer"] else None
        return cls(**{**data, "wrong": tuple(data["wrong"]), "blocks": blocks, "reproducer": folder})


SAMPLES = 4  # looked at, as far as the memory for what is computed on them goes


def search(artifact: Artifact, network: Network, samples: np.ndarray, *, folder: Path) -> Culprit:
    """The first of the user's blocks that the artifact gets wrong.

    A block is wrong by itself when its own error alone, put into the network, moves the network's output by about as
    much as the tolerance of parity, or by as much as any other block's does.

    Args:
        artifact: one that runs on this machine, whatever was done to it since its export.
        network: what it should compute; its layers are the user's modules.
        samples: [N, C, H, W] float32 (or [N, F]) in the network's layout; the worst `SAMPLES` of them are looked at.
        folder: the reproducer is written here, and nothing when there is no culprit.

    Raises:
        VerificationError, UsageError: as `HostRuntime`.
    """
    worst, error = _worst(artifact, network, samples)
    values = interior(artifact, worst)
    worst = worst[: values.samples]
    looked_into = f"{len(values.tensors)} values inside the artifact"
    correspondence = Correspondence(network, worst, values)
    blocks = Blocks(network)
    depths = _errors(network, worst, correspondence, blocks)
    suspects = [found for found in correspondence.ordered() if found.own > EQUAL]
    effects = [
        effect(network, worst, suspect.node, suspect.taken - correspondence.expected(suspect.node))
        for suspect in suspects
    ]
    least = min(FP32.relative_rmse, max(effects, default=0.0)) / 2
    wrong = [suspect for suspect, moved in zip(suspects, effects) if moved >= least]
    if not wrong:
        unseen = "" if error <= FP32.relative_rmse else "; asked for them all, its runtime fuses less and is right"
        return Culprit(None, None, (), depths, looked_into + unseen, len(worst), None)
    responsible = [_responsible(found, correspondence, blocks) for found in wrong]
    block, module = blocks.block(responsible[0]), blocks.module(responsible[0])
    reproducer.write(folder, artifact, network, wrong[0], correspondence, module)
    every = tuple(dict.fromkeys(map(blocks.block, responsible)))
    return Culprit(block, module, every, depths, looked_into, len(worst), folder)


def _worst(artifact: Artifact, network: Network, samples: np.ndarray) -> tuple[np.ndarray, float]:
    """The samples whose outputs are furthest off, the worst first, and how far that one is."""
    found = run_artifact(artifact, to_layout(samples, artifact.inputs[0]))
    errors = np.zeros(len(samples))
    with torch.no_grad():
        for index in range(len(samples)):
            expected = tree_leaves(network(torch.from_numpy(samples[index : index + 1])))
            for output, specification, reference in zip(found, artifact.outputs, expected):
                actual = torch.from_numpy(from_layout(output[index : index + 1], specification).copy())
                errors[index] = max(errors[index], distance(actual, reference))
    return samples[np.argsort(-errors, kind="stable")[:SAMPLES]], float(errors.max())


def _errors(
    network: Network, samples: np.ndarray, correspondence: Correspondence, blocks: Blocks
) -> tuple[BlockError, ...]:
    """The error of every value found, but those that only lie elsewhere or are another's under a second name."""
    shown, seen = {}, set()
    for found in correspondence.ordered():
        if found.own > EQUAL or not (found.tensor in seen or moves(found.node)):
            shown[found.node.name] = found
        seen.add(found.tensor)
    right: dict[str, list[torch.Tensor]] = {name: [] for name in shown}
    taps = Taps(network, set(shown), lambda name, value: right[name].append(value))
    for sample in torch.from_numpy(samples):
        taps.show(sample[None])
    return tuple(
        BlockError(
            blocks.module(found.node),
            blocks.block(found.node),
            distance(found.taken, torch.stack(right[name])),
            found.own,
        )
        for name, found in shown.items()
    )


def _responsible(found: Found, correspondence: Correspondence, blocks: Blocks) -> fx.Node:
    """Of the nodes that the artifact fused into one value, the one to name: the first with weights."""
    inside = [node for node in correspondence.between(found.node) if not moves(node)] or [found.node]
    return next(filter(blocks.has_weights, inside), inside[0])
