"""Streaming means and covariances in float64, merged part by part.

Two parts with counts n, m, means a, b and sums of centred products P, Q join to (Chan, Golub & LeVeque 1979)

    mean = a + (b - a) m / (n + m),    P + Q + (b - a)(b - a)^T n m / (n + m).

Unlike sums of squares this does not cancel when the mean is large against the deviation, so the result depends on how
the samples were batched only in the last digits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.linalg import vecdot


class Moments(ABC):
    """Count, mean and sum of centred products so far. Subclasses say which products they keep.

    Before the first `add`, mean and products are the number 0.
    """

    def __init__(self) -> None:
        self.count: int = 0
        self.mean: Tensor | float = 0.0
        self.products: Tensor | float = 0.0

    @property
    def covariance(self) -> Tensor:
        """The products divided by the count."""
        return self.products / self.count

    def _join(self, count: int, mean: Tensor, products: Tensor) -> None:
        joint = self.count + count
        delta = mean - self.mean
        self.products = self.products + products + self._outer(delta) * (self.count * count / joint)
        self.mean = self.mean + delta * (count / joint)
        self.count = joint

    @abstractmethod
    def _outer(self, delta: Tensor) -> Tensor:
        """The kept products of a vector with itself."""


class ChannelMoments(Moments):
    """Channels one by one: mean [C], products [C]."""

    def add(self, rows: Tensor) -> None:
        """rows: [C, N], N observations of each channel."""
        rows = rows.double()
        mean = rows.mean(1)
        centred = rows - mean[:, None]
        self._join(rows.shape[1], mean, vecdot(centred, centred))

    def _outer(self, delta: Tensor) -> Tensor:
        return delta * delta


class PairMoments(Moments):
    """A pair (z, phi) in each channel: mean [2, C], products [3, C] of z z, z phi, phi phi."""

    def add(self, z: Tensor, phi: Tensor) -> None:
        """z, phi: [C, N], N observations of each channel."""
        z, phi = z.double(), phi.double()
        mean = torch.stack([z.mean(1), phi.mean(1)])
        z, phi = z - mean[0, :, None], phi - mean[1, :, None]
        self._join(z.shape[1], mean, torch.stack([vecdot(z, z), vecdot(z, phi), vecdot(phi, phi)]))

    def _outer(self, delta: Tensor) -> Tensor:
        dz, dphi = delta
        return torch.stack([dz * dz, dz * dphi, dphi * dphi])


class VectorMoments(Moments):
    """All channels together: mean [C], products [C, C]."""

    def add(self, rows: Tensor) -> None:
        """rows: [C, N], N observations of a vector of length C."""
        rows = rows.double()
        mean = rows.mean(1)
        centred = rows - mean[:, None]
        self._join(rows.shape[1], mean, centred @ centred.T)

    def _outer(self, delta: Tensor) -> Tensor:
        return torch.outer(delta, delta)
