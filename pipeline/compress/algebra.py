"""Exact algebra of linear layers: composing convolutions, norms and skips into one convolution, in float64.

Cross-correlation convention throughout. For conv1 (kernel k1, stride s1, padding p1) followed by conv2 (k2, s2, p2):

    W[o, i, y] = sum_m sum_a W2[o, m, a] W1[m, i, y - a s1]     kernel k1 + (k2 - 1) s1
    b[o]       = b2[o] + sum_m sum_a W2[o, m, a] b1[m]          stride s1 s2, padding p1 + s1 p2

(LayerMerge, ICML 2024, extended to any stride of the first layer, dilation and aligned groups.) With p2 = 0 the result
equals the chain on the whole map. With p2 > 0 it equals the chain whose padding was moved to the first convolution,
and the original only where the receptive field does not touch the border.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.network import ChannelAffine

Pair = tuple[int, int]


@dataclass(frozen=True)
class LinearOperator:
    """A convolution as a value; a `Linear` is its 1x1 case.

    Attributes:
        weight: [O, I / groups, kh, kw] float64.
        bias: [O] float64.
        tokens: the operator is an `nn.Linear` over the last dimension.
    """

    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    tokens: bool = False

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        return self.weight.shape[0]

    @property
    def kernel(self) -> Pair:
        return tuple(self.weight.shape[2:])

    def module(self) -> nn.Module:
        """The float32 layer: `nn.Linear` or `nn.Conv2d`, with bias."""
        if self.tokens:
            layer: nn.Module = nn.Linear(self.in_channels, self.out_channels)
        else:
            layer = nn.Conv2d(
                self.in_channels, self.out_channels, self.kernel, self.stride, self.padding, self.dilation, self.groups
            )
        with torch.no_grad():
            layer.weight.copy_(self.weight.reshape(layer.weight.shape))
            layer.bias.copy_(self.bias)
        return layer.eval()


def is_layer(module: nn.Module) -> bool:
    """Whether `operator_of` reads the module as a convolution or linear layer."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.padding_mode == "zeros")


def operator_of(module: nn.Module) -> LinearOperator:
    """The value of an `nn.Conv2d` or `nn.Linear`."""
    weight = module.weight.detach().double()
    bias = torch.zeros(weight.shape[0], dtype=torch.float64) if module.bias is None else module.bias.detach().double()
    if isinstance(module, nn.Linear):
        return LinearOperator(weight[:, :, None, None], bias, tokens=True)
    return LinearOperator(weight, bias, module.stride, module.padding, module.dilation, module.groups)


def shape_of(module: nn.Module) -> LinearOperator:
    """`operator_of` without the values (meta tensors): composing and pricing need only shapes."""
    operator = operator_of(module)
    return replace(operator, weight=operator.weight.to("meta"), bias=operator.bias.to("meta"))


def is_scaling(module: nn.Module) -> bool:
    """Whether `scaling_of` reads the module as a per-channel `scale * z + shift` (in eval mode)."""
    return isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, ChannelAffine))


def scaling_of(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift, [C] float64, of a batch norm (running statistics, its own eps) or of a `ChannelAffine`."""
    if isinstance(module, ChannelAffine):
        return module.scale.detach().double(), module.shift.detach().double()
    mean, variance = module.running_mean.double(), module.running_var.double()
    gamma = torch.ones_like(mean) if module.weight is None else module.weight.detach().double()
    beta = torch.zeros_like(mean) if module.bias is None else module.bias.detach().double()
    scale = gamma / torch.sqrt(variance + module.eps)
    return scale, beta - mean * scale


def scaled(operator: LinearOperator, scale: Tensor, shift: Tensor) -> LinearOperator:
    """`operator` followed by a per-channel scale and shift."""
    return replace(operator, weight=operator.weight * scale[:, None, None, None], bias=operator.bias * scale + shift)


def composed(first: LinearOperator, second: LinearOperator) -> LinearOperator:
    """`second` after `first` as one operator; groups are kept where both have the same, else the result is dense."""
    if first.out_channels != second.in_channels:
        raise ValueError(f"{first.out_channels} channels do not feed {second.in_channels}")
    if first.groups != second.groups:
        first, second = _dense(first), _dense(second)
    g, (s1h, s1w) = first.groups, first.stride
    pointwise = second.kernel == (1, 1)
    inner = first.weight if pointwise else _spread(first.weight, first.dilation)
    middle, outer = first.out_channels // g, second.out_channels // g
    blocks = []
    for w1, w2 in zip(inner.split(middle), second.weight.split(outer), strict=True):
        # Input channels are the batch: full convolution of W1 with W2, whose taps stand s1 * d2 apart.
        full = F.conv_transpose2d(
            w1.transpose(0, 1), w2.transpose(0, 1), dilation=(s1h * second.dilation[0], s1w * second.dilation[1])
        )
        blocks.append(full.transpose(0, 1))
    weight = torch.cat(blocks)
    taps = second.weight.sum((2, 3))
    bias = second.bias + torch.einsum("gom,gm->go", taps.view(g, outer, middle), first.bias.view(g, middle)).reshape(-1)
    return LinearOperator(
        weight.contiguous(),
        bias,
        stride=(s1h * second.stride[0], s1w * second.stride[1]),
        padding=(first.padding[0] + s1h * second.padding[0], first.padding[1] + s1w * second.padding[1]),
        dilation=first.dilation if pointwise else (1, 1),
        groups=g,
        tokens=first.tokens and second.tokens,
    )


def takes_skip(operator: LinearOperator) -> bool:
    """Whether `x + operator(x)` is again one operator: same shape in and out, and a kernel with a centre."""
    centred = all(
        k % 2 == 1 and p == d * (k // 2)
        for k, p, d in zip(operator.kernel, operator.padding, operator.dilation, strict=True)
    )
    return centred and operator.stride == (1, 1) and operator.in_channels == operator.out_channels


def with_skip(operator: LinearOperator) -> LinearOperator:
    """`x + operator(x)`: a Dirac at the kernel's centre."""
    if not takes_skip(operator):
        raise ValueError("the operator changes the shape, or its kernel has no centre")
    weight = operator.weight.clone()
    rows = torch.arange(operator.out_channels)
    columns = rows % weight.shape[1]
    weight[rows, columns, operator.kernel[0] // 2, operator.kernel[1] // 2] += 1
    return replace(operator, weight=weight)


def moves_padding(second: LinearOperator) -> bool:
    """Whether composing with `second` changes the function near the border."""
    return second.padding != (0, 0)


def _dense(operator: LinearOperator) -> LinearOperator:
    """The same operator with groups 1: zeros outside the diagonal blocks."""
    if operator.groups == 1:
        return operator
    blocks = operator.weight.split(operator.out_channels // operator.groups)
    per_group = operator.weight.shape[1]
    weight = operator.weight.new_zeros(operator.out_channels, operator.in_channels, *operator.kernel)
    row = 0
    for group, block in enumerate(blocks):
        weight[row : row + len(block), group * per_group : (group + 1) * per_group] = block
        row += len(block)
    return replace(operator, weight=weight, groups=1)


def _spread(weight: Tensor, dilation: Pair) -> Tensor:
    """Zeros between the taps, so that dilation becomes 1."""
    if dilation == (1, 1):
        return weight
    (kh, kw), (dh, dw) = weight.shape[2:], dilation
    wide = weight.new_zeros(*weight.shape[:2], (kh - 1) * dh + 1, (kw - 1) * dw + 1)
    wide[:, :, ::dh, ::dw] = weight
    return wide
