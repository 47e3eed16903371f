"""What the TFLite GPU delegate dispatches: one kernel with the operators it has linked to it.

Sizes are of one sample; channels lie in slices of four, as in the delegate's tensors. Which kernel the delegate takes
for a convolution follows its own rules (tensorflow v2.10, lite/delegates/gpu/common: selectors/operation_selector.cc,
selectors/default/convolution_selector.cc, tasks/conv_constants.cc, tasks/special/depthwise_conv_plus_1x1_conv.cc); that
they hold on the published rows is a test of `targets.gpu.published`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

SLICE = 4  # channels
HALF = 2  # bytes
WINOGRAD_TILE = 4  # output pixels on a side; 36 products take the place of 144
CONSTANT_BYTES = 3584  # weights that an Adreno 6xx or 7xx reads from constant memory
CONSTANT_SLICES = 8  # output slices that fit a thread's registers
SEPARABLE_CHANNELS = 16  # on both sides of a depthwise convolution that takes the pointwise one behind it along

Choice = Literal[
    "pointwise", "conv", "constant", "winograd", "depthwise", "separable", "dense", "mean", "pool", "concat"
]


def slices(channels: int) -> int:
    return -(-channels // SLICE)


@dataclass(frozen=True)
class Kernel:
    """One dispatch (a Winograd convolution is three).

    Choices:
        pointwise: 1x1 of stride 1. conv: every other convolution, grouped ones too. constant: a convolution whose
            weights lie in constant memory. winograd: 3x3 of stride 1 as F(4x4, 3x3). separable: a depthwise convolution
            and the pointwise one behind it.
        dense: one pixel. mean: over the whole input. pool: average or largest.
        concat: concatenation of channels, a thread for each pixel. What else reads and writes values and hardly
            computes, as element-wise operators by themselves, is `moved`.

    Attributes:
        in_size, out_size: (height, width) without padding.
        adds, muls: linked element-wise operators that read another tensor or a constant.
        curves: linked activations that take more than a comparison, as hard swish and sigmoid.
        inputs: tensors read.
    """

    choice: Choice
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    in_channels: int
    out_channels: int
    taps: tuple[int, int] = (1, 1)
    stride: int = 1
    groups: int = 1
    adds: int = 0
    muls: int = 0
    curves: int = 0
    inputs: int = 1

    @property
    def dispatches(self) -> int:
        return 3 if self.choice == "winograd" else 1

    @property
    def window(self) -> int:
        return self.taps[0] * self.taps[1]

    @property
    def pixels(self) -> int:
        return self.out_size[0] * self.out_size[1]

    @property
    def in_slices(self) -> int:
        """Slices of input channels that an output channel depends on."""
        return slices(self.in_channels // self.groups)

    @property
    def out_slices(self) -> int:
        return slices(self.out_channels)

    @property
    def bytes(self) -> int:
        """Activations read and written, in half precision."""
        read = self.in_size[0] * self.in_size[1] * slices(self.in_channels)
        return (read + self.pixels * self.out_slices) * SLICE * HALF

    @property
    def moves(self) -> bool:
        """Whether it is one of `moved`."""
        return self.choice == "depthwise" and self.window == 1

    @property
    def flops(self) -> int:
        """Two a multiply-accumulate; 0 for what does not accumulate products."""
        if self.choice in ("mean", "pool", "concat") or self.moves:
            return 0
        depthwise = 2 * self.pixels * self.in_channels * self.window
        if self.choice == "depthwise":
            return depthwise
        if self.choice == "separable":
            return depthwise + 2 * self.pixels * self.in_channels * self.out_channels
        return 2 * self.pixels * self.window * (self.in_channels // self.groups) * self.out_channels


def convolution(
    architecture: str,
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    in_channels: int,
    out_channels: int,
    taps: tuple[int, int],
    stride: int,
    groups: int = 1,
) -> Kernel:
    """The kernel the delegate takes for a convolution that is not depthwise, on a GPU of this architecture."""
    kernel = Kernel("conv", in_size, out_size, in_channels, out_channels, taps, stride, groups)
    if out_size == (1, 1) and in_size == (1, 1) and taps == (1, 1) and groups == 1:
        return replace(kernel, choice="dense")
    if _winograd(architecture, kernel):
        return replace(kernel, choice="winograd")
    if architecture.startswith("adreno") and _constant(kernel):
        return replace(kernel, choice="constant")
    if taps == (1, 1) and stride == 1 and groups == 1:
        return replace(kernel, choice="pointwise")
    return kernel


def separable(architecture: str, depthwise: Kernel, behind: Kernel) -> Kernel | None:
    """The one kernel of a depthwise convolution and the pointwise one behind it; None where there is none."""
    narrow = max(depthwise.in_channels, behind.out_channels) <= SEPARABLE_CHANNELS
    pointwise = behind.taps == (1, 1) and behind.stride == 1 and behind.groups == 1 and behind.pixels > 1
    window = depthwise.stride == 1 and not depthwise.moves
    if not (architecture.startswith("apple") and narrow and pointwise and window):
        return None
    return replace(
        depthwise,
        choice="separable",
        out_channels=behind.out_channels,
        adds=behind.adds,
        muls=behind.muls,
        curves=behind.curves,
    )


def moved(size: tuple[int, int], channels: int) -> Kernel:
    """What reads and writes each value once: a depthwise convolution of one tap, a thread for each slice of a pixel.

    Kernels of this kind are in no published row; whole networks that have many agree with it better than with a
    concatenation of as many values.
    """
    return Kernel("depthwise", size, size, channels, channels, groups=channels)


def _winograd(architecture: str, kernel: Kernel) -> bool:
    if kernel.taps != (3, 3) or kernel.stride != 1 or kernel.groups != 1:
        return False
    tiles = -(-kernel.out_size[0] // WINOGRAD_TILE) * -(-kernel.out_size[1] // WINOGRAD_TILE)
    adreno = architecture.startswith("adreno")
    depth, least = (32, 128 if architecture == "adreno-6xx" else 64) if adreno else (16, 32)
    return min(kernel.in_slices, kernel.out_slices) >= depth and tiles >= least


def _constant(kernel: Kernel) -> bool:
    held = kernel.in_channels * kernel.out_slices * SLICE * kernel.window * HALF
    return kernel.groups == 1 and kernel.out_slices <= CONSTANT_SLICES and held <= CONSTANT_BYTES


def parts(kernel: Kernel) -> tuple[Kernel, ...]:
    """The kernels that do the same, for a GPU on which nobody measured this choice.

    Of a Winograd convolution: the transform of the input, one product of tiles and channels for each of the 36 places,
    and the transform back.
    """
    if kernel.choice == "separable":
        depthwise = replace(kernel, choice="depthwise", out_channels=kernel.in_channels, adds=0, muls=0, curves=0)
        return depthwise, replace(kernel, choice="pointwise", taps=(1, 1), groups=1)
    if kernel.choice != "winograd":
        return (replace(kernel, choice="conv"),)
    tiles = -(-kernel.out_size[0] // WINOGRAD_TILE) * -(-kernel.out_size[1] // WINOGRAD_TILE)
    places = (36, tiles)
    return (
        moved(places, kernel.in_channels),
        Kernel("pointwise", places, places, kernel.in_channels, kernel.out_channels),
        replace(moved(places, kernel.out_channels), adds=kernel.adds),
    )
