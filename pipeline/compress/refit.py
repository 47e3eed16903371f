"""Refitting a region in closed form: choose the form that the target is fast at, then fit it.

For a region f and a cheap linear form g_W, on calibration data and without labels or training,

    W* = argmin_W  E || f(x) - g_W(x) ||^2

with an affine g, a small ridge, and the second moments of `calibration.regression` streamed in float64. One set of
moments serves every form of a region:

    k x k         W = B^T (G + ridge)^-1 for Gram matrix G and cross moments B, narrowed to the centre for smaller k
    thin          two thin layers of rank r: with V the leading r eigenvectors of W B, V (V^T W) (reduced-rank
                  regression, Izenman 1975); its residual is W's plus the eigenvalues left out
    separable     depthwise k x k, then pointwise: W[o, c, t] = P[o, c] D[c, t], alternating least squares
    identity      the region goes, its input passes; for regions that keep the shape

Where input and output have the same shape, thin and separable layers may also stand beside a skip, and are fitted to
what it leaves: the moments of y - x follow from those of (x, y).

An exact merge (LayerMerge) is the case of zero residual, and data-aware truncation (Zhang et al. 2015) is the thin form
of one layer. A region that ends with the sum of a residual block takes the skip into the fit.

needs: data. knob: the form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, fx

from calibration.regression import Regression
from pipeline.compress.algebra import LinearOperator
from pipeline.compress.regions import Region
from pipeline.model.edits import Edit, applies
from pipeline.model.network import Network, add_beside, free_name, substitute

RIDGE = 1e-5  # of the mean variance of the features
ROUNDS = 8  # of alternating least squares
KERNELS = (1, 3, 5, 7)
# Input channels times taps that a fit may have, in place of one layer and of several: its Gram matrix is that squared.
MOST_FEATURES, MOST_FEATURES_OF_SEVERAL = 2600, 1300
WIDER = 2  # how much wider than the narrowest value inside a region may its ends be

Kind = Literal["dense", "thin", "separable", "identity"]


@dataclass(frozen=True)
class Form:
    """What a region becomes.

    Attributes:
        kernel: k; 1 for tokens.
        rank: of the thin form.
        skip: the input is added to what the layers give.
    """

    kind: Kind
    kernel: int = 1
    rank: int = 0
    skip: bool = False


@dataclass(frozen=True)
class Shape:
    """Of a region's input and output: channels, and height and width or (tokens, 1).

    Attributes:
        kernel: the widest k that is fitted: no wider than the region looks, and as the moments have room for.
    """

    in_channels: int
    out_channels: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    tokens: bool
    kernel: int

    @property
    def stride(self) -> int:
        return -(-self.in_size[0] // self.out_size[0])

    @property
    def kept(self) -> bool:
        """Whether the output has the shape of the input."""
        return (self.in_channels, self.in_size) == (self.out_channels, self.out_size)

    @property
    def linear(self) -> bool:
        """Whether a strided layer can map the one to the other."""
        if self.tokens:
            return self.in_size == self.out_size
        return all(-(-i // self.stride) == o for i, o in zip(self.in_size, self.out_size, strict=True))


def shape_of(region: Region, shapes: dict[str, tuple[int, ...]]) -> Shape | None:
    """The shape of a region, None where no linear layer can stand for it, or none that could be cheap.

    A stretch is cut where it is narrow: one that begins or ends at a value much wider than those inside takes a layer
    wider than they are.

    Args:
        shapes: name of a graph's node -> shape of its value, with the batch.
    """
    inside, out = shapes[region.source], shapes[region.end]
    maps = len(inside) == len(out) == 4 and region.tokens is False
    if not maps and not (region.tokens and len(inside) == len(out) > 1):
        return None
    channels = 1 if maps else -1
    between = [shapes[name][channels] for name in region.between if len(shapes[name]) == len(out)]
    if between and max(inside[channels], out[channels]) > WIDER * min(between):
        return None
    most = MOST_FEATURES if len(region.layers) == 1 else MOST_FEATURES_OF_SEVERAL
    if max(inside[channels], out[channels]) > most:
        return None
    if maps:
        widest = max(k for k in KERNELS if k == 1 or (k <= region.reach and inside[1] * k * k <= most))
        shape = Shape(inside[1], out[1], tuple(inside[2:]), tuple(out[2:]), False, widest)
    else:
        rows = [math.prod(value[1:-1]) for value in (inside, out)]
        shape = Shape(inside[-1], out[-1], (rows[0], 1), (rows[1], 1), True, 1)
    return shape if shape.linear else None


def forms(shape: Shape, ranks: list[int]) -> Iterator[Form]:
    """Every form that could stand for a region of this shape."""
    kernels = [k for k in KERNELS if k <= shape.kernel]
    for kernel in kernels:
        yield Form("dense", kernel)
        for skip in (False, True)[: 1 + shape.kept]:
            for rank in ranks:
                yield Form("thin", kernel, rank, skip)
            if kernel > 1:
                yield Form("separable", kernel, skip=skip)
    if shape.kept:
        yield Form("identity")


def operators(form: Form, shape: Shape) -> tuple[LinearOperator, ...]:
    """The layers of a form without values: enough to price them."""

    def layer(weight: tuple[int, int, int, int], *, strided: bool, groups: int = 1) -> LinearOperator:
        kernel, stride = weight[2], shape.stride if strided else 1
        return LinearOperator(
            torch.empty(weight, dtype=torch.float64, device="meta"),
            torch.empty(weight[0], dtype=torch.float64, device="meta"),
            (stride, stride),
            (kernel // 2, kernel // 2),
            groups=groups,
            tokens=shape.tokens,
        )

    inside, out, k = shape.in_channels, shape.out_channels, form.kernel
    match form.kind:
        case "dense":
            return (layer((out, inside, k, k), strided=True),)
        case "thin":
            return layer((form.rank, inside, k, k), strided=True), layer((out, form.rank, 1, 1), strided=False)
        case "separable":
            return layer((inside, 1, k, k), strided=True, groups=inside), layer((out, inside, 1, 1), strided=False)
        case "identity":
            return ()


@dataclass(frozen=True)
class Fit:
    """A fitted form.

    Attributes:
        layers: one behind the other.
        residual: the mean squared error that is left, all output channels together.
        weight, bias: [O, C k k] and [O]: what the layers amount to, a skip left out; None for the identity.
    """

    layers: tuple[LinearOperator, ...]
    residual: float
    weight: Tensor | None = None
    bias: Tensor | None = None


class Fitter:
    """Fits forms of one region; what they share is computed once."""

    def __init__(self, regression: Regression, shape: Shape) -> None:
        self.regression, self.shape = regression, shape
        self._solved: dict[tuple[int, bool], _Solved] = {}
        self._fits: dict[Form, Fit] = {}

    def fit(self, form: Form) -> Fit:
        """The best layers of a form."""
        if form not in self._fits:
            self._fits[form] = self._fit(form)
        return self._fits[form]

    def _fit(self, form: Form) -> Fit:
        if form.kind == "identity":
            return Fit((), self._passing())
        solved = self._dense(form)
        regression, weight = solved.regression, solved.weight
        match form.kind:
            case "thin":
                basis = solved.spectrum[0][:, : form.rank]
                factors = [basis.T @ weight, basis]
                weight = basis @ factors[0]
            case "separable":
                factors = list(_separated(regression, weight, self.shape.in_channels))
                weight = (factors[1][:, :, None] * factors[0][None]).flatten(1)
            case _:
                factors = [weight]
        layers = self._filled(form, factors, regression.bias(weight))
        return Fit(layers, regression.residual(weight), weight, regression.bias(weight))

    def residual(self, form: Form) -> float:
        """`fit(form).residual`, without the layers where the spectrum tells."""
        if form.kind != "thin":
            return self.fit(form).residual
        solved = self._dense(form)
        return solved.residual + solved.spectrum[1][form.rank :].sum().item()

    def _dense(self, form: Form) -> _Solved:
        key = form.kernel, form.skip
        if key not in self._solved:
            regression = self.regression.narrowed(form.kernel)
            self._solved[key] = _Solved(regression.beside_input() if form.skip else regression)
        return self._solved[key]

    def _passing(self) -> float:
        """Error of the input in the output's place: no weight fits it, no bias mends it."""
        regression = self.regression.narrowed(1)
        return regression.residual(torch.eye(self.shape.out_channels, dtype=torch.float64)) + (
            (regression.out_mean - regression.in_mean).square().sum().item()
        )

    def _filled(self, form: Form, weights: list[Tensor], bias: Tensor) -> tuple[LinearOperator, ...]:
        blank = operators(form, self.shape)
        biases = [torch.zeros(len(one.bias), dtype=torch.float64) for one in blank[:-1]] + [bias]
        return tuple(
            LinearOperator(
                weight.reshape(one.weight.shape).contiguous(),
                offset,
                one.stride,
                one.padding,
                groups=one.groups,
                tokens=one.tokens,
            )
            for one, weight, offset in zip(blank, weights, biases, strict=True)
        )


class _Solved:
    """The dense solution of a regression, and what is derived from it."""

    def __init__(self, regression: Regression) -> None:
        self.regression = regression
        self.weight = ridge_solution(regression.gram, regression.cross).T
        self.residual = regression.residual(self.weight)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors and eigenvalues of what the dense solution explains, by falling eigenvalue."""
        explained = self.weight @ self.regression.cross
        return _principal((explained + explained.T) / 2)


def _principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors [C, C] of a covariance by falling eigenvalue, with a fixed sign, and the eigenvalues [C]."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    signs = torch.sign(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)))
    return vectors * signs, values


def ridge_solution(gram: Tensor, cross: Tensor) -> Tensor:
    """(G + ridge)^-1 B, [F, O]."""
    return torch.linalg.solve(gram + ridge(gram), cross)


def ridge(gram: Tensor) -> Tensor:
    """What is added to a Gram matrix to invert it."""
    return RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)


def _separated(regression: Regression, weight: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Depthwise taps D [C, k k] and pointwise weights P [O, C], from the best approximation of the dense weight on."""
    taps = weight.view(len(weight), channels, -1)
    _, _, right = torch.linalg.svd(taps.transpose(0, 1), full_matrices=False)  # [C, O, k k]
    depthwise = right[:, 0]
    gram = regression.gram.view(channels, -1, channels, depthwise.shape[1])
    cross = regression.cross.view(channels, -1, len(weight))
    pointwise = weight.new_zeros(len(weight), channels)
    for _ in range(ROUNDS):
        depthwise = depthwise / depthwise.norm(dim=1, keepdim=True).clamp_min(1e-12)
        pointwise = ridge_solution(
            torch.einsum("ct,ctds,ds->cd", depthwise, gram, depthwise), torch.einsum("ct,cto->co", depthwise, cross)
        ).T
        mixed = torch.einsum("cd,ctds->ctds", pointwise.T @ pointwise, gram).flatten(2).flatten(0, 1)
        wanted = torch.einsum("oc,cto->ct", pointwise, cross).reshape(-1, 1)
        depthwise = ridge_solution(mixed, wanted).view_as(depthwise)
    return depthwise, pointwise


def refit(region: Region, layers: tuple[LinearOperator, ...], *, skip: bool = False, source: str | None = None) -> Edit:
    """The edit that puts `layers`, one behind the other, in the place of a region; none let its input pass.

    Args:
        skip: their input is added to what they give.
        source: the node that feeds the region by now, where an earlier edit removed the one it was found with.
    """
    facts = [
        {"stride": list(one.stride), "padding": list(one.padding), "groups": one.groups, "tokens": one.tokens}
        for one in layers
    ]
    tensors = {f"weight{i}": one.weight.float() for i, one in enumerate(layers)}
    tensors |= {f"bias{i}": one.bias.float() for i, one in enumerate(layers)}
    arguments = {"source": source or region.source, "end": region.end, "layers": facts, "skip": skip}
    return Edit("refit", region.site, arguments, tensors)


@applies("refit")
def _apply(network: Network, edit: Edit) -> Network:
    graph = network.copy().graph
    nodes: dict[str, fx.Node] = {node.name: node for node in graph.graph.nodes}
    value = source = nodes[edit.arguments["source"]]
    end = nodes[edit.arguments["end"]]
    for index, facts in enumerate(edit.arguments["layers"]):
        layer = LinearOperator(
            edit.tensors[f"weight{index}"],
            edit.tensors[f"bias{index}"],
            tuple(facts["stride"]),
            tuple(facts["padding"]),
            groups=facts["groups"],
            tokens=facts["tokens"],
        ).module()
        last = index == len(edit.arguments["layers"]) - 1
        if not last:
            layer.bias = None  # zero by construction: the last layer's bias says it all
        name = free_name(graph, f"{edit.site}_refit" if index == 0 else f"{edit.site}_refit_{index}")
        add_beside(graph, name, layer)
        with graph.graph.inserting_before(end):
            value = graph.graph.create_node("call_module", name, (value,))
    if edit.arguments["skip"]:
        with graph.graph.inserting_before(end):
            value = graph.graph.call_function(torch.ops.aten.add.Tensor, (value, source))
    if edit.arguments["layers"]:
        substitute(end, value)
    else:
        end.replace_all_uses_with(value)
    return network.edited(graph, edit)
