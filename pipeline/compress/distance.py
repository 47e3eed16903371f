"""How far outputs are from the original's: what planning measures as damage and what recovery trains away."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distance(reference: Tensor, output: Tensor, classes: bool) -> Tensor:
    """A scalar, differentiable in `output`, zero for equal outputs.

    Args:
        reference, output: [N, ...] of the original and of the edited network.
        classes: the outputs are rows of class scores [N, C]: the mean KL divergence (nats) of the class probabilities.
            Otherwise the mean squared error relative to the reference's variance.
    """
    if classes:
        return F.kl_div(output.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True)
    return (output - reference).square().mean() / reference.var(unbiased=False).clamp_min(1e-12)
