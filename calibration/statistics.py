"""What the activations of a network do on samples: on/off counts, entropy, moments, ranges.

The entropy is that of EASIER (Quetu, Liao & Tartaglione 2024): a neuron whose pre-activation z is always positive, or
always negative, has entropy 0, and a layer's score is the mean over its neurons. Unlike the original, counts are whole
numbers pooled over all samples in eval mode, so the result does not depend on the order or the size of the batches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from calibration.moments import PairMoments
from calibration.observe import Batch, observe
from targets.errors import UsageError

Zero = Literal["on", "drop"]
Pool = Literal["space", "none"]
CHUNK_ELEMENTS = 1 << 22  # bounds the float64 copies of one activation to some 100 MB


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """One activation phi and its input z, per neuron. A neuron is a channel, or with `pool="none"` a position.

    All tensors have shape [channels]; counts are int64, the rest float64, variances are divided by the count.

    Attributes:
        site: the activation's name in the module.
        samples: network inputs seen; a neuron pooled over space has several observations a sample.
        on, off, zero: observations with z > 0, z < 0, z == 0.
        saturated: those of `on` at or beyond the upper limit of ReLU6, Hardtanh or Hardsigmoid.
        mean, variance: of z.
        phi_mean, phi_variance: of phi(z).
        covariance: of z and phi(z).
        minimum, maximum: of z.
    """

    site: str
    samples: int
    on: Tensor
    off: Tensor
    zero: Tensor
    saturated: Tensor
    mean: Tensor
    variance: Tensor
    phi_mean: Tensor
    phi_variance: Tensor
    covariance: Tensor
    minimum: Tensor
    maximum: Tensor

    @property
    def channels(self) -> int:
        return len(self.on)

    @property
    def observations(self) -> int:
        """For each neuron: samples times pooled positions."""
        return int(self.on[0] + self.off[0] + self.zero[0])

    @property
    def product_mean(self) -> Tensor:
        """E[z phi(z)]."""
        return self.covariance + self.mean * self.phi_mean

    @property
    def slope(self) -> Tensor:
        """Cov(z, phi) / Var(z) of the least-squares line phi(z) ~ slope z + intercept; 0 where z is constant."""
        varies = self.maximum > self.minimum
        return torch.where(varies, self.covariance / torch.where(varies, self.variance, 1.0), 0.0)

    @property
    def intercept(self) -> Tensor:
        """E[phi] - slope E[z]."""
        return self.phi_mean - self.slope * self.mean

    @property
    def residual_variance(self) -> Tensor:
        """E[(phi(z) - slope z - intercept)^2], what the line leaves unexplained."""
        return (self.phi_variance - self.slope * self.covariance).clamp(min=0)

    def channel_entropy(self, zero: Zero = "on", states: Literal[2, 3] = 2) -> Tensor:
        """Entropy of the state of each neuron, in bits: [channels] float64.

        Args:
            zero: z == 0 counts as "on" (EASIER's code, z >= 0), or is left out ("drop", EASIER's text).
            states: 2 for on and off, in [0, 1]; 3 splits off the saturated part of on, in [0, log2 3].
        """
        on = self.on + self.zero if zero == "on" else self.on
        counts = [on, self.off] if states == 2 else [on - self.saturated, self.off, self.saturated]
        return entropy_bits(torch.stack(counts))

    def entropy(self, zero: Zero = "on", states: Literal[2, 3] = 2) -> float:
        """The site's score: the mean of `channel_entropy`."""
        return float(self.channel_entropy(zero, states).mean())


def entropy_bits(counts: Tensor) -> Tensor:
    """Entropy in bits of counts [states, channels] -> [channels] float64, with 0 log 0 = 0; 0 without counts."""
    share = counts.double() / counts.sum(0).clamp(min=1)
    return torch.where(share > 0, -share * torch.where(share > 0, share, 1.0).log2(), 0.0).sum(0)


@dataclass(frozen=True, eq=False)
class Statistics(Mapping[str, SiteStatistics]):
    """Site name -> what was seen there, in the order the sites were asked for."""

    sites: Mapping[str, SiteStatistics]
    samples: int

    def __getitem__(self, site: str) -> SiteStatistics:
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def save(self, path: str | Path) -> None:
        """One safetensors file; names and sample count are JSON in its header."""
        from safetensors.torch import save_file

        header = {"samples": self.samples, "sites": list(self.sites)}
        tensors = {
            f"{number}.{name}": getattr(site, name).contiguous()
            for number, site in enumerate(self.sites.values())
            for name in _TENSORS
        }
        save_file(tensors, str(path), metadata={"planish.statistics": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Reads what `save` wrote. Raises `UsageError` STATISTICS_FORMAT for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {})["planish.statistics"])
                sites = {
                    name: SiteStatistics(
                        name, header["samples"], **{key: file.get_tensor(f"{number}.{key}") for key in _TENSORS}
                    )
                    for number, name in enumerate(header["sites"])
                }
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise UsageError(
                "the statistics cannot be read",
                where=str(path),
                why=str(error),
                fix="delete the file; it is computed again from the samples",
                code="STATISTICS_FORMAT",
            ) from error
        return cls(sites, header["samples"])


_TENSORS = (
    "on",
    "off",
    "zero",
    "saturated",
    "mean",
    "variance",
    "phi_mean",
    "phi_variance",
    "covariance",
    "minimum",
    "maximum",
)


@dataclass
class _Accumulator:
    """Counts, moments and range of one site while batches arrive."""

    counts: Tensor | int = 0  # [4, neurons]: on, off, zero, saturated
    minimum: Tensor | None = None
    maximum: Tensor | None = None
    moments: PairMoments = field(default_factory=PairMoments)

    def add(self, site: str, z: Tensor, phi: Tensor, upper: float) -> None:
        """z, phi: [neurons, N]."""
        low, high = z.amin(1).double(), z.amax(1).double()
        if not (low.isfinite().all() and high.isfinite().all()):
            raise UsageError(
                f"activation '{site}' receives NaN or infinite values",
                where=site,
                why="the network overflows or divides by zero on these samples",
                fix="check the weights, and the scale of the samples (uint8 becomes [0, 1])",
                code="SITE_NOT_FINITE",
            )
        if self.minimum is not None and len(self.minimum) != len(low):
            raise UsageError(
                f"activation '{site}' changes its width",
                where=site,
                why=f"{len(self.minimum)} neurons in one batch, {len(low)} in another",
                fix="give samples of one size, or name the dimension of the channels",
                code="SITE_SHAPE",
            )
        on, off = (z > 0).sum(1), (z < 0).sum(1)
        saturated = torch.zeros_like(on) if math.isinf(upper) else (z >= upper).sum(1)
        self.counts = self.counts + torch.stack([on, off, z.shape[1] - on - off, saturated])
        self.minimum = low if self.minimum is None else torch.minimum(self.minimum, low)
        self.maximum = high if self.maximum is None else torch.maximum(self.maximum, high)
        self.moments.add(z, phi)

    def result(self, site: str, samples: int) -> SiteStatistics:
        variance, covariance, phi_variance = self.moments.covariance
        mean, phi_mean = self.moments.mean
        on, off, zero, saturated = self.counts
        return SiteStatistics(
            site,
            samples,
            on,
            off,
            zero,
            saturated,
            mean,
            variance,
            phi_mean,
            phi_variance,
            covariance,
            self.minimum,
            self.maximum,
        )


def collect(
    module: nn.Module,
    sites: Sequence[str],
    batches: Iterable[Batch],
    *,
    channel_dims: Mapping[str, int] | None = None,
    pool: Pool = "space",
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Runs `module` on `batches` in eval mode and returns the statistics of the activation modules `sites`.

    Given the same pre-activations, counts and entropies are the same bit for bit however samples are ordered and
    batched, and moments agree to 1e-12. Modes are restored.

    Args:
        sites: names of element-wise activation modules, each run once in a forward pass.
        batches: x: [B, ...] or (x, y).
        channel_dims: site -> dimension of its channels. By default 1, but the last for [B, N, C]; channels-last
            [B, H, W, C] must be named here.
        pool: "space" pools a channel over all positions; "none" makes each position of each channel a neuron.
        progress: called after each batch with the number of samples so far.

    Raises `UsageError`: SITE_UNKNOWN, SITE_SHARED, SITE_UNUSED, SITE_SHAPE, SITE_NOT_FINITE, DATA_EMPTY.
    """
    dims = channel_dims or {}
    seen = {site: _Accumulator() for site in sites}

    def add(site: str, activation: nn.Module, z: Tensor) -> None:
        rows_of = _neurons if pool == "none" else lambda part: _channels(part, dims.get(site))
        for part in z.split(max(1, CHUNK_ELEMENTS // max(1, z[0].numel()))):
            phi = activation.forward(part.clone())  # not __call__: no hooks; a clone: phi may work in place
            seen[site].add(site, rows_of(part), rows_of(phi), _upper_limit(activation))

    samples = observe(module, sites, "input", batches, add, progress)
    return Statistics({site: accumulator.result(site, samples) for site, accumulator in seen.items()}, samples)


def _channels(x: Tensor, dim: int | None) -> Tensor:
    """x with its channels first and everything else in one dimension: [C, B * positions]."""
    return x.movedim((-1 if x.ndim == 3 else 1) if dim is None else dim, 0).flatten(1)


def _neurons(x: Tensor) -> Tensor:
    """[neurons, B]: every position of every channel on its own."""
    return x.flatten(1).T


def _upper_limit(activation: nn.Module) -> float:
    """The z at which the activation stops rising. Hardswish has none: from 3 on it is the identity."""
    if isinstance(activation, nn.Hardtanh):  # ReLU6 is one
        return activation.max_val
    return 3.0 if isinstance(activation, nn.Hardsigmoid) else float("inf")
