"""Second moments of what goes into a stretch of a network beside what comes out: all that least squares needs.

For maps, an observation is an output position: the k x k patch of the input under it (zeros past the border, as a
convolution sees it) and the output's channels. For tokens it is a token. One pass gives the moments for the widest
kernel; those of every smaller kernel are rows and columns of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calibration.moments import VectorMoments

CHUNK = 1 << 24  # values of patches that are held at a time


@dataclass(frozen=True)
class Regression:
    """Centred second moments, float64, divided by the count.

    Attributes:
        kernel: k of the patches; 1 for tokens.
        gram: [C k k, C k k], of the patches; features run over channels, then rows, then columns, as in a weight.
        cross: [C k k, O], of patches and outputs.
        energy: mean over observations of the squared deviation of the output, all channels together.
        in_mean, out_mean: [C k k] and [O].
        count: observations.
    """

    kernel: int
    gram: Tensor
    cross: Tensor
    energy: float
    in_mean: Tensor
    out_mean: Tensor
    count: int

    def narrowed(self, kernel: int) -> Regression:
        """The same for the central `kernel` x `kernel` of the patches."""
        if kernel == self.kernel:
            return self
        kept = central(len(self.in_mean), self.kernel, kernel)
        return replace(
            self, kernel=kernel, gram=self.gram[kept][:, kept], cross=self.cross[kept], in_mean=self.in_mean[kept]
        )

    def beside_input(self) -> Regression:
        """The same for the output less the input under it, where they have the same shape: what a skip leaves to do."""
        centre = central(len(self.in_mean), self.kernel, 1)
        passed = self.energy - 2 * self.cross[centre].trace() + self.gram[centre][:, centre].trace()
        return replace(
            self,
            cross=self.cross - self.gram[:, centre],
            energy=max(passed.item(), 0.0),
            out_mean=self.out_mean - self.in_mean[centre],
        )

    def residual(self, weight: Tensor) -> float:
        """Mean squared error, all channels together, of `weight` [O, C k k] with the bias that fits it best."""
        explained = 2 * (weight.T * self.cross).sum() - ((weight @ self.gram) * weight).sum()
        return max(self.energy - explained.item(), 0.0)

    def bias(self, weight: Tensor) -> Tensor:
        """[O]: the bias that fits `weight` [O, C k k] best."""
        return self.out_mean - weight @ self.in_mean


def central(features: int, kernel: int, inner: int) -> Tensor:
    """Indices of the features in the central `inner` x `inner` of `kernel` x `kernel` patches."""
    index, edge = torch.arange(features).view(-1, kernel, kernel), (kernel - inner) // 2
    return index[:, edge : edge + inner, edge : edge + inner].reshape(-1)


class RegressionMoments:
    """Collects a `Regression`, batch by batch.

    Args:
        kernel, stride: of the patches; padding is kernel // 2. Tokens take 1 and 1.
        tokens: an observation is a vector along the last dimension.
        positions: at most so many output positions of a sample are looked at, drawn at random; None for all.
        seed: of the draw; the same for every sample, so that two networks are compared at the same places.
    """

    def __init__(
        self, kernel: int, stride: int, positions: int | None = None, seed: int = 0, *, tokens: bool = False
    ) -> None:
        self.kernel, self.stride, self.positions, self.seed, self.tokens = kernel, stride, positions, seed, tokens
        self.moments, self.outputs = VectorMoments(), 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """x, y: [N, C, H, W] and [N, O, H', W'], or [N, ..., C] and [N, ..., O]."""
        self._add(*self._rows(x, y))

    def _rows(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """[C k k, rows] and [O, rows]: the observations in a batch."""
        if self.tokens:
            return x.reshape(-1, x.shape[-1]).T, y.reshape(-1, y.shape[-1]).T
        return self._patches(x, y.shape[2:]), self.sampled(y)

    def _add(self, rows: Tensor, out: Tensor) -> None:
        self.outputs = len(out)
        for part, answers in zip(rows.split(CHUNK // len(rows), 1), out.split(CHUNK // len(rows), 1), strict=True):
            self.moments.add(torch.cat([part, answers]))

    def sampled(self, y: Tensor) -> Tensor:
        """[O, N * positions]: the outputs that `add` looks at."""
        chosen = self._chosen(y.shape[2:])
        return y.flatten(2)[:, :, chosen].transpose(0, 1).flatten(1)

    def _chosen(self, size: tuple[int, int]) -> Tensor:
        count = size[0] * size[1]
        if self.positions is None or count <= self.positions:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(count, generator=generator)[: self.positions].sort().values

    def _patches(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """[C k k, N * positions]."""
        edge, chosen = self.kernel // 2, self._chosen(size)
        # Room for the last patch, where the output is larger than the input's size over the stride.
        reach = [(side - 1) * self.stride + self.kernel - edge - have for side, have in zip(size, x.shape[2:])]
        padded = F.pad(x, (edge, max(reach[1], 0), edge, max(reach[0], 0)))
        taps = torch.arange(self.kernel)
        rows = (chosen // size[1] * self.stride)[:, None, None] + taps[:, None]
        columns = (chosen % size[1] * self.stride)[:, None, None] + taps
        return padded[:, :, rows, columns].permute(1, 3, 4, 0, 2).flatten(0, 2).flatten(1)

    @property
    def regression(self) -> Regression:
        covariance, split = self.moments.covariance, len(self.moments.mean) - self.outputs
        return Regression(
            self.kernel,
            covariance[:split, :split],
            covariance[:split, split:],
            covariance[split:, split:].trace().item(),
            self.moments.mean[:split],
            self.moments.mean[split:],
            self.moments.count,
        )


class RegressionRows(RegressionMoments):
    """`RegressionMoments` that keeps its observations too, so that other answers can stand for those it saw.

    Attributes:
        inputs: [C k k, N].
        answers: [O, N].
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._inputs: list[Tensor] = []
        self._answers: list[Tensor] = []

    def _add(self, rows: Tensor, out: Tensor) -> None:
        super()._add(rows, out)
        self._inputs.append(rows)
        self._answers.append(out)

    @cached_property
    def inputs(self) -> Tensor:
        return torch.cat(self._inputs, 1)

    @cached_property
    def answers(self) -> Tensor:
        return torch.cat(self._answers, 1)

    def central(self, kernel: int) -> Tensor:
        """[C kernel kernel, N]: the inputs in the centre of the patches."""
        return self.inputs[central(len(self.inputs), self.kernel, kernel)]

    def towards(self, answers: Tensor) -> Regression:
        """The regression to `answers` [O, N] in the place of those it saw."""
        mean = answers.double().mean(1)
        centred = answers.double() - mean[:, None]
        parts = zip(self.inputs.split(CHUNK // len(self.inputs), 1), centred.split(CHUNK // len(self.inputs), 1))
        cross = sum(part.double() @ answer.T for part, answer in parts)
        count = answers.shape[1]
        energy = centred.square().sum().item() / count
        return replace(self._seen, cross=cross / count, energy=energy, out_mean=mean)

    @cached_property
    def _seen(self) -> Regression:
        return self.regression
