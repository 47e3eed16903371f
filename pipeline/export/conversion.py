"""What a converter is asked for, what it returns, and the network that it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.export.artifact import TensorSpec
from pipeline.export.contract import Contract

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

_SAME = 1e-3  # relative to the outputs' scale: far above the rounding of another batch size, far below another function


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
Converter = Callable[["ExportedProgram", Request, Phase], Conversion]


def fixed_at_batch_one(program: ExportedProgram) -> ExportedProgram:
    """Exports `program` again with its batch dimension set to 1.

    Other symbolic dimensions take the size of the example that the network was saved with: an artifact's shapes are
    fixed, which is what mobile delegates need.

    A program saved for one batch size has that size in every reshape. Traced anew it may fail, or, worse, may compute
    something else in the right shape; so its answers for the batch and those for its samples one by one are compared.

    Raises:
        ValueError: the network takes keyword inputs, or was saved for a fixed batch and does not compute its samples
            independently at batch 1.
    """
    import torch

    names = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    arguments, keywords = program.example_inputs
    if keywords:
        raise ValueError(f"the network takes keyword inputs ({', '.join(keywords)}); only positional ones are exported")
    examples = tuple(torch.zeros(1, *example.shape[1:], dtype=example.dtype) for example in arguments)
    # The saved guards state what the example batch showed (often "at least 2"); batch 1 is traced anew here.
    module = program.module(check_guards=False)
    batches = {value.shape[0] for value in values if isinstance(value.shape[0], int)}
    batch = max(batches, default=1)
    if batch == 1:
        return torch.export.export(module, examples)
    module._forward_pre_hooks.clear()  # they refuse any batch but the saved one, before anything is traced
    try:
        single = torch.export.export(module, examples)
        _require_same(module, single.module(), arguments, batch)
    except Exception as error:  # torch's tracer raises whatever the operators do
        raise ValueError(
            f"the network was saved for a fixed batch of {batch}, an artifact runs at batch 1, and it cannot be "
            f"traced at 1; save it with a symbolic batch dimension ({str(error).strip().splitlines()[0]})"
        ) from None
    return single


def _require_same(module, single, arguments: tuple[Tensor, ...], batch: int) -> None:
    """ValueError unless `single` gives for each sample of a batch what `module` gives for all of them."""
    import torch
    from torch.utils._pytree import tree_leaves

    chance = torch.Generator().manual_seed(0)
    samples = [
        torch.randn(argument.shape, generator=chance, dtype=argument.dtype)
        if argument.is_floating_point()
        else argument
        for argument in arguments
    ]
    with torch.no_grad():
        together = tree_leaves(module(*samples))
        apart = [tree_leaves(single(*(sample[index : index + 1] for sample in samples))) for index in range(batch)]
    for expected, *found in zip(together, *apart, strict=True):
        if any(one.shape != (1, *expected.shape[1:]) for one in found):
            raise ValueError("an output at batch 1 has another shape than one sample of the batch")
        difference = (torch.cat(found) - expected).abs().max()
        if not difference <= _SAME * expected.abs().max():
            raise ValueError("an output at batch 1 has other values than in the batch")
