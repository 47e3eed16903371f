"""Batch-norm statistics of a network whose weights or structure were edited."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibration.moments import ChannelMoments
from calibration.observe import Batch, evaluating, inputs_of
from targets.errors import UsageError


def reestimate(module: nn.Module, batches: Iterable[Batch]) -> None:
    """Sets the running mean and variance of every batch norm in `module` to those of its inputs over all `batches`.

    One pass. Each batch is normalised with its own statistics on the way, as in training ("precise" batch norm, Wu &
    Johnson 2021), while the inputs of every layer are pooled in float64 over all batches: not an average of batch
    averages, so unequal batches weigh by their size and the spread between batches counts. The first batch norm on each
    path is therefore exact; deeper ones see inputs normalised by their batch instead of by the pool, a difference that
    vanishes as batches grow (64 or more is plenty). The variance is unbiased, as the running variance of torch is.

    Everything but the batch norms is in eval mode meanwhile; all modes are restored. Without a batch norm that keeps
    running statistics this does nothing, and no batch is read. A batch of one sample has no statistics and is left out.

    Args:
        batches: x: [B, ...] or (x, y).

    Raises `UsageError` DATA_EMPTY when no batch has two samples.
    """
    norms = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    }
    if not norms:
        return
    moments = {name: ChannelMoments() for name in norms}
    momenta = {name: part.momentum for name, part in norms.items()}
    used = 0
    with evaluating(module), ExitStack() as restore:
        for name, part in norms.items():
            hook = part.register_forward_pre_hook(
                lambda part, args, seen=moments[name]: seen.add(args[0].movedim(1, 0).flatten(1))
            )
            restore.callback(hook.remove)
            restore.callback(setattr, part, "momentum", momenta[name])
            part.training, part.momentum = True, 0.0  # normalise by the batch, leave the running statistics alone
        for x in map(inputs_of, batches):
            if len(x) > 1:
                module(x)
                used += 1
    if used == 0:
        raise UsageError(
            "there are no samples to re-estimate the batch norms with",
            where="batch-norm re-estimation",
            why="no batch holds two samples",
            fix="give at least a few hundred samples",
            code="DATA_EMPTY",
        )
    for name, part in norms.items():
        seen = moments[name]
        if seen.count:  # a norm that never ran keeps what it had
            part.running_mean.copy_(seen.mean)
            part.running_var.copy_(seen.products / (seen.count - 1))
            part.num_batches_tracked.fill_(used)
