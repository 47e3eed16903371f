"""Merging is exact: every case of LayerMerge's table against the network whose padding was moved, and more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.compress.algebra import composed, operator_of, scaled, scaling_of, with_skip
from pipeline.model.network import ChannelAffine

TOLERANCE = 1e-5


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = True,
) -> nn.Conv2d:
    padding = kernel // 2 if padding is None else padding
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias)


def norm(channels: int, eps: float = 1e-5) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=eps)
    for tensor, (low, high) in (
        (layer.weight, (0.5, 1.5)),
        (layer.bias, (-0.5, 0.5)),
        (layer.running_mean, (-0.5, 0.5)),
        (layer.running_var, (0.5, 2.0)),
    ):
        nn.init.uniform_(tensor, low, high)
    return layer.eval()


def merged(layers: list[nn.Module], skip: bool = False) -> nn.Module:
    operator = operator_of(layers[0])
    for layer in layers[1:]:
        operator = (
            scaled(operator, *scaling_of(layer))
            if isinstance(layer, (nn.BatchNorm2d, ChannelAffine))
            else composed(operator, operator_of(layer))
        )
    return (with_skip(operator) if skip else operator).module()


def padding_moved(layers: list[nn.Module], x: Tensor) -> Tensor:
    """The chain with all padding applied before its first layer, in float64: what a merge promises to equal."""
    padding, stride = 0, 1
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            padding, stride = padding + stride * layer.padding[0], stride * layer.stride[0]
    y = nn.functional.pad(x.double(), [padding] * 4)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            y = nn.functional.conv2d(
                y,
                layer.weight.double(),
                None if layer.bias is None else layer.bias.double(),
                layer.stride,
                0,
                layer.dilation,
                layer.groups,
            )
        else:
            y = replace_double(layer)(y)
    return y


def replace_double(layer: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(layer).double().eval()


def check(layers: list[nn.Module], channels: int, *, skip: bool = False, size: int = 13, exact: bool = False) -> None:
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        expected = padding_moved(layers, x)
        if skip:
            expected = expected + x.double()
        found = merged(layers, skip)(x)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max().item())
        if exact:
            original = nn.Sequential(*layers)(x)
            assert (found - original).abs().max() <= TOLERANCE * max(1.0, original.abs().max().item())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


CASES = {
    "3x3 -> 3x3 + norm": lambda: ([conv(4, 6, 3), conv(6, 5, 3), norm(5)], 4),
    "1x1 -> 3x3, biases": lambda: ([conv(4, 6, 1), conv(6, 5, 3)], 4),
    "3 x (3x3)": lambda: ([conv(4, 6, 3), conv(6, 6, 3), conv(6, 5, 3)], 4),
    "dw3 -> dw3": lambda: ([conv(6, 6, 3, groups=6), conv(6, 6, 3, groups=6)], 6),
    "1x1 -> dw3 -> 1x1": lambda: (
        [conv(4, 12, 1), norm(12), conv(12, 12, 3, groups=12), norm(12), conv(12, 4, 1), norm(4)],
        4,
    ),
    "3x3 -> 3x3 stride 2": lambda: ([conv(4, 6, 3), conv(6, 5, 3, stride=2)], 4),
    "3x3 stride 2 -> 3x3": lambda: ([conv(4, 6, 3, stride=2), conv(6, 5, 3)], 4),
    "dilated 3x3 -> 3x3": lambda: ([conv(4, 6, 3, dilation=2, padding=2), conv(6, 5, 3)], 4),
    "grouped -> grouped": lambda: ([conv(4, 8, 3, groups=2), conv(8, 6, 3, groups=2)], 4),
}
EXACT = {
    "3x3 -> 1x1 + norm": lambda: ([conv(4, 6, 3), conv(6, 5, 1), norm(5)], 4),
    "3x3 stride 2 -> 1x1": lambda: ([conv(4, 6, 3, stride=2), conv(6, 5, 1)], 4),
    "dw3 stride 2 -> 1x1": lambda: ([conv(6, 6, 3, stride=2, groups=6), conv(6, 5, 1)], 6),
    "norm with eps 1e-3": lambda: ([conv(4, 6, 3, bias=False), norm(6, eps=1e-3), conv(6, 5, 1)], 4),
    "dilated -> 1x1": lambda: ([conv(4, 6, 3, dilation=2, padding=2), conv(6, 5, 1)], 4),
    "affine between": lambda: ([conv(4, 6, 3), ChannelAffine(torch.rand(6), torch.rand(6), 1), conv(6, 5, 1)], 4),
}


@pytest.mark.parametrize("case", CASES)
def test_merge_equals_the_chain_with_its_padding_moved(case: str) -> None:
    check(*CASES[case]())


@pytest.mark.parametrize("case", EXACT)
def test_merge_is_exact_on_the_whole_map_when_only_the_first_layer_pads(case: str) -> None:
    check(*EXACT[case](), exact=True)


def test_skip_of_an_inverted_residual_and_of_a_basic_block() -> None:
    check([conv(4, 12, 1), conv(12, 12, 3, groups=12), conv(12, 4, 1)], 4, skip=True)
    check([conv(4, 4, 3), norm(4), conv(4, 4, 3), norm(4)], 4, skip=True)


def test_skip_around_zero_weights_is_the_identity() -> None:
    layer = conv(4, 4, 3)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    x = torch.randn(2, 4, 7, 7)
    assert torch.equal(merged([layer], skip=True)(x), x)


@pytest.mark.parametrize(
    ("chain", "kernel", "stride", "padding"),
    [
        ([(3, 1), (3, 1), (3, 1)], 7, 1, 3),
        ([(1, 1), (3, 1), (1, 1)], 3, 1, 1),
        ([(3, 2), (1, 1)], 3, 2, 1),
        ([(3, 1), (3, 2)], 5, 2, 2),
        ([(3, 2), (3, 1)], 7, 2, 3),
    ],
)
def test_size_of_the_merged_kernel(chain: list[tuple[int, int]], kernel: int, stride: int, padding: int) -> None:
    layer = merged([conv(2, 2, k, stride=s) for k, s in chain])
    assert (layer.kernel_size, layer.stride, layer.padding) == ((kernel,) * 2, (stride,) * 2, (padding,) * 2)


def test_depthwise_pairs_stay_depthwise_and_mixed_pairs_become_dense() -> None:
    assert merged([conv(6, 6, 3, groups=6), conv(6, 6, 3, groups=6)]).groups == 6
    assert merged([conv(6, 6, 3, groups=6), conv(6, 5, 1)]).groups == 1


def test_linear_layers_merge_and_stay_linear() -> None:
    first, second = nn.Linear(5, 7), nn.Linear(7, 3)
    layer, x = merged([first, second]), torch.randn(4, 5)
    assert isinstance(layer, nn.Linear)
    assert (layer(x) - second(first(x))).abs().max() <= TOLERANCE


def test_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="6 channels do not feed 5"):
        composed(operator_of(conv(4, 6, 3)), operator_of(conv(5, 5, 1)))
    with pytest.raises(ValueError, match="centre"):
        with_skip(replace(operator_of(conv(4, 4, 3)), stride=(2, 2)))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_chain_of_two_convolutions(data: st.DataObject) -> None:
    kernels, strides = st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3])
    k1, k2, s1, s2 = data.draw(kernels), data.draw(kernels), data.draw(strides), data.draw(strides)
    p1, p2 = data.draw(st.integers(0, k1)), data.draw(st.integers(0, k2))
    groups = data.draw(st.sampled_from([(1, 1), (2, 2), (1, 2), (4, 1), (4, 4)]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    check(
        [
            conv(4, 8, k1, stride=s1, padding=p1, groups=groups[0]),
            conv(8, 4, k2, stride=s2, padding=p2, groups=groups[1]),
        ],
        4,
        size=19,
    )
