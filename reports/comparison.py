"""Two layer lists side by side: what stayed, what changed, what went, what came, and by which edit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reports.records import EditRecord, LayerRecord

_SITE_SEPARATORS = re.compile(r"[\s,+→]+")


@dataclass(frozen=True)
class LayerRow:
    """One row of the comparison; at least one of `before` and `after` is present."""

    name: str
    before: LayerRecord | None
    after: LayerRecord | None
    edits: tuple[EditRecord, ...]

    @property
    def change(self) -> Literal["kept", "changed", "removed", "added"]:
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        same = self.before.kind == self.after.kind and self.before.description == self.after.description
        return "kept" if same else "changed"


def compare_layers(
    before: Sequence[LayerRecord], after: Sequence[LayerRecord], edits: Sequence[EditRecord]
) -> list[LayerRow]:
    """Pair layers by name, in network order; a layer without a partner stands alone where it belongs."""
    names_before, names_after = [each.name for each in before], [each.name for each in after]
    rows: list[LayerRow] = []
    matcher = difflib.SequenceMatcher(None, names_before, names_after, autojunk=False)
    for operation, i, i_end, j, j_end in matcher.get_opcodes():
        if operation == "equal":
            pairs = list(zip(before[i:i_end], after[j:j_end], strict=True))
        else:
            pairs = [(each, None) for each in before[i:i_end]] + [(None, each) for each in after[j:j_end]]
        for old, new in pairs:
            name = (old or new).name
            rows.append(LayerRow(name, old, new, tuple(edit for edit in edits if touches(edit.site, name))))
    return rows


def touches(site: str, layer: str) -> bool:
    """Whether an edit at `site` (one path, or several joined by `+`, `,`, `→` or blanks) concerns that layer."""
    return any(layer == path or layer.startswith(f"{path}.") for path in _SITE_SEPARATORS.split(site) if path)
