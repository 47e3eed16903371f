"""Batch-norm statistics of a network whose weights or structure were edited."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibration.moments import ChannelMoments
from calibration.observe import Batch, evaluating, inputs_of
from targets.errors import UsageError


def reestimate(module: nn.Module, batches: Iterable[Batch], reference: nn.Module | None = None) -> None:
    """Sets the running statistics of every batch norm in `module` to what its inputs are over all `batches` by now.

    One pass. Each batch is normalised with its own statistics on the way, as in training ("precise" batch norm, Wu &
    Johnson 2021), while the inputs of every layer are pooled in float64 over all batches: not an average of batch
    averages, so unequal batches weigh by their size and the spread between batches counts. The first batch norm on each
    path is therefore exact; deeper ones see inputs normalised by their batch instead of by the pool, a difference that
    vanishes as batches grow (64 or more is plenty). The variance is unbiased, as the running variance of torch is.

    Running statistics are often those of augmented training data, and a network is used to them: its own statistics on
    plain samples can serve it worse. With a `reference`, the network that `module` was edited from, only what the edits
    changed is made up for. With the reference's statistics on the same batches marked r,

        ratio = (variance_now + eps) / (variance_r + eps)
        variance + eps <- (variance + eps) ratio,    mean <- mean_now + (mean - mean_r) sqrt(ratio)

    so what a norm gives has the mean and the deviation that the reference's gives there, and a network that computes
    what the reference does stays as it is. A channel that is constant on the samples by now says nothing of its
    variance, which stays.

    Everything but the batch norms is in eval mode meanwhile; all modes are restored. Without a batch norm that keeps
    running statistics this does nothing, and no batch is read. A batch of one sample has no statistics and is left out.

    Args:
        batches: x: [B, ...] or (x, y).
        reference: norms are matched by name; those it does not have are set as without one, and those of which it has
            another number of channels stay.

    Raises `UsageError` DATA_EMPTY when no batch has two samples.
    """
    norms = _norms(module)
    if not norms:
        return
    used = 0
    with _observed(module, norms) as seen, _observed(reference, _norms(reference)) as known:
        for x in map(inputs_of, batches):
            if len(x) > 1:
                module(x)
                if reference is not None:
                    reference(x)
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
        now, before = seen[name], known.get(name)
        if not now.count:  # a norm that never ran keeps what it had
            continue
        if before is not None and before.count:
            if now.covariance.shape != before.covariance.shape:
                continue
            ratio = (now.covariance + part.eps) / (before.covariance + part.eps)
            variance = (part.running_var + part.eps) * ratio - part.eps
            part.running_mean.copy_(now.mean + (part.running_mean - before.mean) * ratio.sqrt())
            part.running_var.copy_(torch.where(now.covariance > 0, variance.clamp_min(0), part.running_var))
        else:
            part.running_mean.copy_(now.mean)
            part.running_var.copy_(now.products / (now.count - 1))
        part.num_batches_tracked.fill_(used)


def _norms(module: nn.Module | None) -> dict[str, _BatchNorm]:
    parts = module.named_modules() if module is not None else ()
    return {name: part for name, part in parts if isinstance(part, _BatchNorm) and part.running_mean is not None}


@contextmanager
def _observed(module: nn.Module | None, norms: Mapping[str, _BatchNorm]) -> Iterator[dict[str, ChannelMoments]]:
    """Moments of the norms' inputs while they normalise by the batch and leave their running statistics alone."""
    moments = {name: ChannelMoments() for name in norms}
    if module is None:
        yield moments
        return
    with evaluating(module), ExitStack() as restore:
        for name, part in norms.items():
            hook = part.register_forward_pre_hook(
                lambda part, args, seen=moments[name]: seen.add(args[0].movedim(1, 0).flatten(1))
            )
            restore.callback(hook.remove)
            restore.callback(setattr, part, "momentum", part.momentum)
            restore.callback(part.num_batches_tracked.copy_, part.num_batches_tracked.clone())
            part.training, part.momentum = True, 0.0
        yield moments
