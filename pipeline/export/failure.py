"""Why a converter refused a network, in one paragraph: which operator, where in the user's model, what helps.

Converters raise what they please: a name of their own IR, a stack of MLIR, a graph printed whole. `explain` distils one
sentence from it, finds the operator it is about in the exported program, and through the program's metadata the user's
module and line. The stack itself stays in the log.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.errors import VerificationError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True)
class Place:
    """Where in the user's model an operator comes from; fields are empty where the program does not tell."""

    module: str  # path: "stages.2.attention"; "" is the network itself
    kind: str  # the module's class: "WindowAttention"
    source: str  # "file:line", the innermost frame of the user's code

    def __str__(self) -> str:
        name = self.module or "the network itself"
        return f"{name}{f' ({self.kind})' if self.kind else ''}{f', {short(self.source)}' if self.source else ''}"


@dataclass(frozen=True)
class Failure:
    """One converter's refusal.

    Attributes:
        format: name of the format asked for.
        operator: `aten.roll.default`, or empty where no operator is to blame or none was found.
        places: of the operator in the user's model, the one that the converter stopped at first.
        sentence: the converter's own words, cleaned.
        remedies: what helps, the best first.
    """

    format: str
    operator: str
    places: tuple[Place, ...]
    sentence: str
    remedies: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Failure:
        """The inverse of `to_json`."""
        places = tuple(Place(**place) for place in data["places"])
        return cls(**{**data, "places": places, "remedies": tuple(data["remedies"])})

    def error(self, title: str, *, network: str, log: str) -> VerificationError:
        """The four lines, `EXPORT_FAILED`. `title` names the format to a person; `network` stands where no place is known."""
        what = f"The operator {self.operator} cannot be exported to {title}." if self.operator else ""
        more = f", and {len(self.places) - 1} more" if len(self.places) > 1 else ""
        return VerificationError(
            what or f"The network could not be exported to {title}.",
            where=f"{self.places[0]}{more}" if self.places else network,
            why=self.sentence,
            fix="; or ".join([*self.remedies, f"read {log} for the converter's own words"]) + ".",
            code="EXPORT_FAILED",
        )


def explain(error: BaseException, program: ExportedProgram | None, format: str) -> Failure:
    """What `error`, raised by the converter to `format`, says about `program` (None: it was not loaded yet)."""
    raise NotImplementedError


def place(node: Node) -> Place:
    """Where in the user's model the node of an exported program comes from."""
    stack = [(path, str(kind)) for path, kind in (node.meta.get("nn_module_stack") or {}).values() if path or kind]
    path, kind = stack[-1] if stack else ("", "")
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    mine = [(file, line) for file, line in frames if "site-packages" not in file]
    own = "" if kind.startswith("torch.export.") else kind.rpartition(".")[2]
    return Place(re.sub(r"@\d+", "", path), own, "{}:{}".format(*mine[-1]) if mine else "")


def short(source: str) -> str:
    """`file:line`, relative to the folder the user stands in where it is below it."""
    file, _, line = source.rpartition(":")
    below = file and Path(file).is_relative_to(Path.cwd())
    return f"{Path(file).relative_to(Path.cwd())}:{line}" if below else source
