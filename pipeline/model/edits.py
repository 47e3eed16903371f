"""Edits: a compressed network is `base + [Edit, ...] + weights`, and an edit is plain data.

An edit names what changes (kind, site, arguments) and carries the few tensors it needs (a fitted slope, a projection
basis). Replaying the same edits on the same base gives the same network bit for bit; the code that applies each kind
stands in `pipeline/compress/` and registers itself here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.model.network import Network


@dataclass(frozen=True)
class Edit:
    """One change of a network.

    Attributes:
        kind: what is done: `linearize`, `merge`, `refit` ... (each `@applies` in `pipeline/compress/`).
        site: dotted name of the layer or activation the edit is about, as the user knows it.
        arguments: JSON-able settings.
        tensors: float32 or float64 tensors that the edit needs besides the network's own weights.
    """

    kind: str
    site: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "site": self.site,
            "arguments": dict(self.arguments),
            "tensors": sorted(self.tensors),
        }


Apply = Callable[["Network", Edit], "Network"]
_APPLY: dict[str, Apply] = {}


def applies(kind: str) -> Callable[[Apply], Apply]:
    """Register the function that applies edits of `kind` to a network, returning a new one."""

    def register(function: Apply) -> Apply:
        _APPLY[kind] = function
        return function

    return register


def replay(base: Network, edits: Sequence[Edit]) -> Network:
    """Apply `edits` to `base` in order; `base` stays as it is, and shares nothing with the result.

    Raises:
        KeyError: an edit's kind is unknown to this version.
    """
    import pipeline.compress.collapse
    import pipeline.compress.grouped
    import pipeline.compress.linearize
    import pipeline.compress.merge
    import pipeline.compress.narrow
    import pipeline.compress.prune
    import pipeline.compress.refit
    import pipeline.compress.split
    import pipeline.compress.truncate  # noqa: F401  (each registers its kind)

    network = base if edits else base.copy()
    for edit in edits:
        network = _APPLY[edit.kind](network, edit)
    return network


def save(edits: Sequence[Edit], directory: Path) -> None:
    """Write `edits.json` (readable) and `edits.safetensors` (the tensors, keyed by edit index)."""
    from safetensors.torch import save_file

    (directory / "edits.json").write_text(json.dumps([edit.to_json() for edit in edits], indent=1) + "\n")
    tensors = {f"{i}.{name}": t.contiguous() for i, edit in enumerate(edits) for name, t in edit.tensors.items()}
    save_file(tensors, directory / "edits.safetensors")


def load(directory: Path) -> tuple[Edit, ...]:
    """Read what `save` wrote."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(directory / "edits.safetensors")
    rows = json.loads((directory / "edits.json").read_text())
    return tuple(
        Edit(row["kind"], row["site"], row["arguments"], {name: tensors[f"{i}.{name}"] for name in row["tensors"]})
        for i, row in enumerate(rows)
    )
