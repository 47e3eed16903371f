"""A program saved for one batch size, as `torch.export` saves by default, traced again for any."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from targets.errors import UsageError

SAME = 1e-3  # relative to the outputs' scale: far above the rounding of another batch size, far below another function


def fixed_batch(program: ExportedProgram) -> int | None:
    """The batch size that an input of `program` is fixed to; None where all of them are symbolic."""
    names = set(program.graph_signature.user_inputs)
    inputs = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    sizes = [value.shape[0] for value in inputs if len(getattr(value, "shape", ()))]
    return next((size for size in sizes if isinstance(size, int)), None)


def for_any_batch(program: ExportedProgram) -> ExportedProgram:
    """`program` with a symbolic batch dimension; itself where it has one.

    A program saved for one size may have that size in every reshape. Traced anew it may fail, or, worse, may compute
    something else in the right shape; so what both answer to the same samples is compared.

    Raises:
        UsageError: MODEL_BATCH where it cannot be traced for another batch, or does not treat samples independently.
    """
    batch = fixed_batch(program)
    if batch is None:
        return program
    arguments = program.example_inputs[0]
    module = program.module(check_guards=False)
    module._forward_pre_hooks.clear()  # they refuse any batch but the saved one, before anything is traced
    first, second = _chance(arguments, 0), _chance(arguments, 1)
    both = tuple(torch.cat(pair) for pair in zip(first, second))
    try:
        dynamic = tuple({0: torch.export.Dim.AUTO} for _ in both)
        found = torch.export.export(module, both, dynamic_shapes=dynamic, strict=False)
        if fixed_batch(found) is not None:
            raise ValueError("its operators fix the batch size")
        _require_same(module, found.module(check_guards=False), first, second, both)
    except Exception as error:  # torch's tracer raises whatever the operators do
        raise UsageError(
            "the network is fixed to one batch size",
            where="its exported program",
            why=f"it was saved for a batch of {batch}, and for another one: {str(error).strip().splitlines()[0]}",
            fix="use x.shape[0] or -1 where the batch size stands in forward; save a .pt2 with "
            "dynamic_shapes=({0: torch.export.Dim.AUTO},)",
            code="MODEL_BATCH",
        ) from error
    return found


def _chance(arguments: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    """Samples of the arguments' shapes and types; numbers that are no floats stay as they are."""
    chance = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(each.shape, generator=chance, dtype=each.dtype) if each.is_floating_point() else each
        for each in arguments
    )


def _require_same(module, found, first, second, both: tuple[Tensor, ...]) -> None:
    """ValueError unless `found` answers two batches at once, and their samples one by one, as `module` did each."""
    with torch.no_grad():
        pairs = zip(tree_leaves(module(*first)), tree_leaves(module(*second)), strict=True)
        expected = [torch.cat(pair) for pair in pairs]
        together = tree_leaves(found(*both))
        alone = [tree_leaves(found(*(each[index : index + 1] for each in both))) for index in range(len(both[0]))]
    for wanted, at_once, *one_by_one in zip(expected, together, *alone, strict=True):
        for got in (at_once, torch.cat(one_by_one)):
            if got.shape != wanted.shape:
                raise ValueError("an output has another shape than its samples have in the saved batch")
            if not (got - wanted).abs().max() <= SAME * wanted.abs().max():
                raise ValueError("an output has other values than in the saved batch")
