"""Runs a module over batches in eval mode and shows the tensors at named submodules to an observer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from targets.errors import UsageError, nearest

Batch = Tensor | tuple[Tensor, Tensor | None]
Observer = Callable[[str, nn.Module, Tensor], None]
"""Called with the site's name, its module and the tensor there; must not change the tensor."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; every submodule's own mode is restored after it."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def inputs_of(batch: Batch) -> Tensor:
    """x of a batch that is x or (x, y)."""
    return batch if isinstance(batch, Tensor) else batch[0]


def observe(
    module: nn.Module,
    names: Sequence[str],
    side: Literal["input", "output"],
    batches: Iterable[Batch],
    observer: Observer,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Runs `module` on every batch and calls `observer` with the input or the output of each named submodule.

    Inputs are seen before the submodule runs, so an in-place activation has not yet overwritten them.

    Args:
        progress: called after each batch with the number of samples seen so far.

    Returns the number of samples. Raises `UsageError`: SITE_UNKNOWN, SITE_SHARED when a module runs more than once in a
    forward pass (its statistics would mix several sites), SITE_UNUSED when it never runs, DATA_EMPTY.
    """
    calls = dict.fromkeys(names, 0)

    def see(name: str, part: nn.Module, tensor: Tensor) -> None:
        calls[name] += 1
        if calls[name] == 1:
            observer(name, part, tensor)

    seen = 0
    with evaluating(module), ExitStack() as hooks:
        for name, part in _resolve(module, names).items():
            if side == "input":
                handle = part.register_forward_pre_hook(lambda part, args, name=name: see(name, part, args[0]))
            else:
                handle = part.register_forward_hook(lambda part, args, output, name=name: see(name, part, output))
            hooks.callback(handle.remove)
        for batch in batches:
            x = inputs_of(batch)
            calls.update(dict.fromkeys(calls, 0))
            module(x)
            _check_calls(calls)
            seen += len(x)
            if progress is not None:
                progress(seen)
    if seen == 0:
        raise UsageError(
            "there are no samples to calibrate with",
            where="calibration",
            why="the data gave no batch",
            fix="give at least a few hundred samples",
            code="DATA_EMPTY",
        )
    return seen


def _resolve(module: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    parts = dict(module.named_modules(remove_duplicate=False))
    resolved: dict[str, nn.Module] = {}
    for name in names:
        if name not in parts:
            raise UsageError(
                f"the network has no module '{name}'",
                where=name,
                why=f"it has {len(parts) - 1} modules, none of that name",
                fix=f"{nearest(name, parts)}list them with `planish inspect`",
                code="SITE_UNKNOWN",
            )
        twin = next((other for other, part in resolved.items() if part is parts[name]), None)
        if twin is not None:
            raise _shared(name, f"it is the same object as '{twin}'")
        resolved[name] = parts[name]
    return resolved


def _check_calls(calls: dict[str, int]) -> None:
    for name, count in calls.items():
        if count > 1:
            raise _shared(name, f"it runs {count} times in one forward pass")
        if count == 0:
            raise UsageError(
                f"module '{name}' does not run",
                where=name,
                why="the forward pass never reached it",
                fix="leave it out of the sites, or call it in forward()",
                code="SITE_UNUSED",
            )


def _shared(name: str, why: str) -> UsageError:
    return UsageError(
        f"module '{name}' stands for several sites",
        where=name,
        why=why,
        fix="give each place where it is used a module of its own",
        code="SITE_SHARED",
    )
