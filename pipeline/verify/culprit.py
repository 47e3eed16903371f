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

from pipeline.export.artifact import Artifact
from pipeline.model.network import Network


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
        looked_into: "the artifact", or "re-exported prefixes" where its inside cannot be seen.
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
        reproducer = self.reproducer and self.reproducer.resolve().relative_to(root.resolve()).as_posix()
        return {**asdict(self), "wrong": list(self.wrong), "blocks": blocks, "reproducer": reproducer}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], root: Path) -> Culprit:
        """The inverse of `to_json`."""
        blocks = tuple(
            BlockError(block["module"], block["block"], float(block["value"]), float(block["own"]))
            for block in data["blocks"]
        )
        reproducer = root / data["reproducer"] if data["reproducer"] else None
        return cls(**{**data, "wrong": tuple(data["wrong"]), "blocks": blocks, "reproducer": reproducer})


def search(artifact: Artifact, network: Network, samples: np.ndarray, *, folder: Path) -> Culprit:
    """The first of the user's blocks that the artifact gets wrong.

    Args:
        artifact: one that runs on this machine, whatever was done to it since its export.
        network: what it should compute; its layers are the user's modules.
        samples: [N, C, H, W] float32 (or [N, F]) in the network's layout; the worst few of them are looked at.
        folder: the reproducer is written here, and nothing when there is no culprit.
    """
    raise NotImplementedError
