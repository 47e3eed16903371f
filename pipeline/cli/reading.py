"""What commands that check artifacts begin with: the user's network, and samples that fit it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibration.dataset import Samples
    from pipeline.model.network import Network


def network_and_samples(
    model: str, weights: str | None, data: str, mean: Sequence[float], std: Sequence[float], limit: int
) -> tuple[Network, Samples]:
    """The network of one tensor to one tensor, and up to `limit` samples with labels within its classes.

    Raises:
        UsageError: as `ingest`, `require_one_tensor` and `open_samples`.
    """
    from calibration.dataset import open_samples
    from pipeline.model.ingest import ingest, require_one_tensor

    normalisation = {"mean": mean or None, "std": std or None}
    network = ingest(
        model,
        weights=Path(weights) if weights else None,
        example=lambda: next(open_samples(data, **normalisation).take(2).batches(2))[0],
    )
    require_one_tensor(network, model)
    shape, classes = network.input_shape, network.classes
    return network, open_samples(data, input_shape=shape, classes=classes, limit=limit, **normalisation)
