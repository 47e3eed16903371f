"""What a converter is asked for, what it returns, and the network that it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.export.artifact import TensorSpec
from pipeline.export.contract import Contract

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        format: name in `formats.FORMATS`; a converter may serve several.
        channels_last: rank-4 inputs and outputs are NHWC where the format can have them so.
        contract: what an app must know beyond that, for formats that hold it themselves.
    """

    format: str
    channels_last: bool
    contract: Contract = Contract()


@dataclass(frozen=True)
class Conversion:
    """What a converter returns: the artifact's content and the contract read back from it.

    Attributes:
        content: of the file, or of a directory's files by their paths in it, "/" between names.
        runtime_minimum: oldest version of the format's runtime that loads it.
        beside: files that go with it, by name.
        delegation: what a delegate took and what it left, where the converter says so; see `delegated`.
    """

    content: bytes | Mapping[str, bytes]
    runtime_minimum: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    beside: Mapping[str, bytes] = field(default_factory=dict)
    delegation: dict[str, Any] | None = None


Phase = Callable[[str], None]


def fixed_at_batch_one(program: ExportedProgram) -> ExportedProgram:
    """Exports `program` again with its symbolic batch dimension set to 1.

    Other symbolic dimensions take the size of the example that the network was saved with: an artifact's shapes are
    fixed, which is what mobile delegates need.

    Raises:
        ValueError: the network takes keyword inputs, or its batch is a constant other than 1; what `ingest` reads has
            a symbolic one.
    """
    import torch

    names = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    arguments, keywords = program.example_inputs
    if keywords:
        raise ValueError(f"the network takes keyword inputs ({', '.join(keywords)}); only positional ones are exported")
    for value in values:
        batch = value.shape[0]
        if isinstance(batch, int) and batch != 1:
            raise ValueError(f"the network was saved for a fixed batch of {batch}, an artifact runs at batch 1")
    examples = tuple(torch.zeros(1, *example.shape[1:], dtype=example.dtype) for example in arguments)
    # The saved guards state what the example batch showed (often "at least 2"); batch 1 is traced anew here.
    return torch.export.export(program.module(check_guards=False), examples)
