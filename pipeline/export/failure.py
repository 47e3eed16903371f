"""Why a converter refused a network, in one paragraph: which operator, where in the user's model, what helps.

Converters raise what they please: a name of their own IR, a stack of MLIR, a graph printed whole. `explain` distils one
sentence from it, finds the operator it is about in the exported program, and through the program's metadata the user's
module and line. The stack itself stays in the log.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.export.lowering import Lower, first_refused, kinds, lowering, refused
from pipeline.export.remedies import remedies
from targets.errors import VerificationError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

SEARCH_S = 90.0  # most that the search for an unnamed operator may take
Found = Literal["named", "alone", "in place", ""]

_LENGTH = 300
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NODES = (  # a node's name and its operator, as fx prints a graph's code and a node
    re.compile(r"^\s*(\w+) = torch\.ops\.([\w.]+)\(", re.M),
    re.compile(r"%(\w+) : .*?call_function\[target=torch\.ops\.([\w.]+)\]"),
)
_BARE = re.compile(r"(?:fx node \w+, kind |\bnode \w+ \(|Torch `)(\w+(?:\.\w+)?)")  # as coremltools speaks of operators
# What the operators of TFLite's other dialect, which its runtime may lack, come from.
_FROM_STABLEHLO = {
    "SORT": ("topk", "sort", "argsort", "kthvalue", "median"),
    "SCATTER": ("scatter", "scatter_add", "index_put", "index_add"),
    "GATHER": ("gather", "index", "take_along_dim"),
    "REDUCE_WINDOW": ("max_pool2d", "avg_pool2d", "cumsum", "cumprod"),
    "RNG_BIT_GENERATOR": ("rand", "randn", "rand_like", "randn_like", "bernoulli", "multinomial"),
}
_ENDS = (
    *("While executing %", "Original traceback:", "stack trace:", "See https://", "There are a few things to try"),
    *("You can proceed with", "Use tlparse", "Details:", "The error occurred while tracing"),
    " from fake tensor input 0",
)
_PLAINER = (
    (re.compile(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>"), r"\1"),
    (re.compile(r"<OpOverload\(op='([\w.:]+)'[^>]*>"), r"\1"),
    (re.compile(r"<EdgeOpOverload: ([\w.]+)>: schema = .*? -> \w+"), r"\1"),
    (re.compile(r"\btorch\._?ops\."), ""),
    (re.compile(r" ?Failure message: No decompositions registered for the real-valued input"), ""),
    (re.compile(r"<eval_with_key>[\d.]*(:\d+)*:? ?(error:)?"), ""),
    (re.compile(r" at /\S+?:\d+"), ""),
    (re.compile(r"Didn't find op for builtin opcode '(\w+)' version.*", re.S), r"The runtime has no operator \1."),
    (re.compile(r", you can enable TF kernels fallback.*?TF Select ops:", re.S), ":"),
    (re.compile(r" that was explicitly marked illegal: %\w+ = .*? : \((.*?)\) -> .*", re.S), r" of \1"),
    (re.compile(r" ?\(?https?://\S+\)?\"?"), ""),
)


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
        operator: `aten.roll`, or empty where no operator is to blame or none was found.
        places: of the operator in the user's model, the one that the converter stopped at first.
        sentence: the converter's own words, cleaned.
        remedies: what helps, the best first.
        found: how the operator was found: "named" by the converter, refused "alone" as well, or the first refused
            "in place", behind all that comes before it.
    """

    format: str
    operator: str
    places: tuple[Place, ...]
    sentence: str
    remedies: tuple[str, ...]
    found: Found = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Failure:
        """The inverse of `to_json`."""
        places = tuple(Place(**place) for place in data["places"])
        return cls(**{**data, "places": places, "remedies": tuple(data["remedies"])})

    def error(self, title: str, *, network: str, log: str) -> VerificationError:
        """The four lines, `EXPORT_FAILED`; `title` is the format's, `network` stands where no place is known."""
        what = f"The operator {self.operator} cannot be exported to {title}." if self.operator else ""
        elsewhere = ["ask `planish inspect` with other formats which takes it"] if self.operator else []
        more = f", and {len(self.places) - 1} more" if len(self.places) > 1 else ""
        return VerificationError(
            what or f"The network could not be exported to {title}.",
            where=f"{self.places[0]}{more}" if self.places else network,
            why=f"the network converts up to it and not with it: {self.sentence}"
            if self.found == "in place"
            else self.sentence,
            fix="; or ".join([*self.remedies, *elsewhere, f"read {log} for the converter's own words"]) + ".",
            code="EXPORT_FAILED",
        )


def explain(
    error: BaseException,
    program: ExportedProgram | None,
    format: str,
    *,
    seconds: float = SEARCH_S,
    phase: Callable[[str], None] | None = None,
) -> Failure:
    """What `error` of the converter to `format` says about `program`.

    The operator is the one that the message names, traced back through decompositions. Where it names none that the
    program has, the kinds of operators are converted apart from each other, for about `seconds` at most.

    Args:
        program: as it was given to the converter; None where it could not even be loaded.
        phase: told when a search begins.
    """
    sentence = clean(root_of(error))
    failure = Failure(format, "", (), sentence, remedies("", sentence))
    if program is None or isinstance(error, (ImportError, OSError)):
        return failure
    try:
        nodes, found = _named(_texts(error), program), "named"
        if not nodes and seconds > 0:
            if phase is not None:
                phase("looking for the operator that was refused")
            nodes, found, sentence = _searched(program, lowering(format), sentence, time.monotonic() + seconds)
    except Exception:  # torch's passes and the converters fail in many ways; the sentence stands by itself
        traceback.print_exc()
        return failure
    return blamed(replace(failure, sentence=sentence), nodes, found)


def blamed(failure: Failure, nodes: Sequence[Node], found: Found) -> Failure:
    """`failure` with the operator of `nodes` to blame; as it is where there are none."""
    if not nodes:
        return failure
    operator = short_name(str(nodes[0].target))
    places = tuple(dict.fromkeys(place(node) for node in nodes))
    return replace(
        failure, operator=operator, places=places, remedies=remedies(operator, failure.sentence), found=found
    )


def short_name(operator: str) -> str:
    """`aten.roll` for `aten.roll.default`; other overloads keep their names."""
    return operator.removesuffix(".default")


def _searched(program: ExportedProgram, lower: Lower, sentence: str, deadline: float) -> tuple[list[Node], Found, str]:
    """The calls that the converter refuses by themselves, or the first that it refuses behind what comes before."""
    for kind, own in refused(kinds(program), program, lower, deadline=deadline):
        return list(kind.nodes), "alone", clean(root_of(own))
    first = first_refused(program, lower, deadline=deadline)
    return ([first], "in place", sentence) if first is not None else ([], "", sentence)


def clean(error: BaseException) -> str:
    """The converter's own words without colours, graphs, stacks, paths of packages and advice; one paragraph."""
    text = _COLOUR.sub("", str(error))
    for end in _ENDS:
        text = text.partition(end)[0]
    for pattern, plain in _PLAINER:
        text = pattern.sub(plain, text)
    text = " ".join(text.split()).strip()
    if len(text) > _LENGTH:
        text = text[:_LENGTH].rsplit(" ", 1)[0] + " …"
    return text if text.count(" ") > 1 else f"{type(error).__name__}: {text or 'no message'}"


def source_of(node: Node, program: ExportedProgram) -> Node | None:
    """The node of `program` that a node of a program derived from it (decomposed, lowered) comes from."""
    chain = _chain(node)
    names = {_chain(mine): mine for mine in program.graph.nodes}
    return next((names[chain[start:]] for start in range(len(chain)) if chain[start:] in names), None)


def _chain(node: Node) -> tuple[str, ...]:
    """Names of the node and of what it was made from, pass by pass back to the first."""
    names = [node.name]
    before = node.meta.get("from_node")
    while before:
        names.append(before[-1].name)
        before = before[-1].from_node
    return tuple(names)


def root_of(error: BaseException) -> BaseException:
    """The exception at the end of the chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _texts(error: BaseException) -> list[str]:
    """What the exceptions behind `error` say, the innermost first."""
    texts = [str(error)]
    while (behind := error.__cause__ or error.__context__) is not None:
        texts.append(str(behind))
        error = behind
    return [_COLOUR.sub("", text) for text in reversed(texts)]


def _named(texts: Sequence[str], program: ExportedProgram) -> list[Node]:
    """The calls of the operator that a message names, the one it stopped at first; none where it names none of them."""
    namespaces = "|".join(
        re.escape(name) for name in {"aten", "prims", *(str(n.target).partition(".")[0] for n in _calls(program))}
    )
    anywhere = re.compile(rf"\b(?:{namespaces})(?:\.|::)[A-Za-z_]\w*(?:\.\w+)?")
    claims: list[tuple[str, str]] = []  # (node's name or "", operator)
    for text in texts:
        claims += [match.groups() for pattern in _NODES for match in list(pattern.finditer(text))[-1:]]
        claims += [("", name.replace("::", ".")) for name in anywhere.findall(text.partition("While executing")[0])]
        claims += [("", f"aten.{name}") for name in _BARE.findall(text)]
        for dialect in re.findall(r"STABLEHLO_(\w+)", text):
            claims += [("", f"aten.{name}") for name in _FROM_STABLEHLO.get(dialect, ())]
    claims = list(dict.fromkeys(claims))
    for table in _TABLES:
        derived = table(program) if claims else program
        for name, operator in claims:
            calls = [node for node in _calls(derived) if _is(node, operator)]
            calls.sort(key=lambda node, name=name: node.name != name)
            sources = [node if derived is program else source_of(node, program) for node in calls]
            if first := next(filter(None, sources), None):
                same = [node for node in _calls(program) if node.target is first.target and node is not first]
                return [first, *same]
    return []


def _is(node: Node, operator: str) -> bool:
    """Whether a call is of `operator`, whose overload may be left out."""
    name = str(node.target)
    return name == operator or name.rpartition(".")[0] == operator or name.rpartition(".")[0] == operator + "_"


def _calls(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _core(program: ExportedProgram) -> ExportedProgram:
    return program.run_decompositions()


def _all(program: ExportedProgram) -> ExportedProgram:
    from torch._decomp import decomposition_table

    return program.run_decompositions(dict(decomposition_table))


# A converter decomposes before it refuses, so the operator may be there only behind one of these.
_TABLES: tuple[Callable[[ExportedProgram], ExportedProgram], ...] = (lambda program: program, _core, _all)


def place(node: Node) -> Place:
    """Where in the user's model the node of an exported program comes from."""
    stack = [(path, str(kind)) for path, kind in (node.meta.get("nn_module_stack") or {}).values() if path or kind]
    path, kind = stack[-1] if stack else ("", "")
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    mine = [(file, line) for file, line in frames if "site-packages" not in file and not file.startswith("<")]
    own = "" if kind.startswith("torch.export.") else kind.rpartition(".")[2]
    return Place(re.sub(r"@\d+", "", path), own, "{}:{}".format(*mine[-1]) if mine else "")


def short(source: str) -> str:
    """`file:line`, relative to the folder the user stands in where it is below it."""
    file, _, line = source.rpartition(":")
    below = file and Path(file).is_relative_to(Path.cwd())
    return f"{Path(file).relative_to(Path.cwd())}:{line}" if below else source
