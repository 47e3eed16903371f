"""Moments for least squares: one pass gives every smaller kernel and the skip, and they solve what lstsq solves."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import calibration.regression as regression_module
from calibration.regression import Regression, RegressionMoments


@dataclass(frozen=True)
class Case:
    """Maps going in and coming out, [N, C, H, W] and [N, O, H', W'] float64."""

    x: Tensor
    y: Tensor
    kernel: int
    stride: int


@st.composite
def cases(draw: st.DrawFn, *, kept: bool = False) -> Case:
    """Maps of odd and even sides that a strided layer relates; `kept` makes both of one shape."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    channels, height, width = draw(st.integers(1, 3)), draw(st.integers(2, 7)), draw(st.integers(2, 7))
    stride = 1 if kept else draw(st.sampled_from([1, 2, 3]))
    outputs = channels if kept else draw(st.integers(1, 4))
    x = torch.randn(draw(st.integers(2, 5)), channels, height, width, generator=generator, dtype=torch.float64) + 0.5
    y = torch.randn(
        len(x), outputs, -(-height // stride), -(-width // stride), generator=generator, dtype=torch.float64
    )
    return Case(x, y, draw(st.sampled_from([1, 3, 5])), stride)


def collected(case: Case, *, kernel: int | None = None, y: Tensor | None = None, **chosen: int) -> Regression:
    moments = RegressionMoments(kernel or case.kernel, case.stride, **chosen)
    moments.add(case.x, case.y if y is None else y)
    return moments.regression


def unfolded(case: Case) -> tuple[Tensor, Tensor]:
    """Patches [rows, C k k] and outputs [rows, O], as torch unfolds them."""
    patches = F.unfold(case.x, case.kernel, padding=case.kernel // 2, stride=case.stride)
    return patches.transpose(1, 2).flatten(0, 1), case.y.flatten(2).transpose(1, 2).flatten(0, 1)


def assert_same(one: Regression, other: Regression) -> None:
    assert (one.kernel, one.count) == (other.kernel, other.count)
    assert one.energy == pytest.approx(other.energy, rel=1e-10, abs=1e-12)
    for name in ("gram", "cross", "in_mean", "out_mean"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_moments_are_those_of_unfolded_patches(case) -> None:
    found, (rows, out) = collected(case), unfolded(case)
    assert found.count == len(rows) and found.kernel == case.kernel
    rows, out = rows - rows.mean(0), out - out.mean(0)
    torch.testing.assert_close(found.gram, rows.T @ rows / len(rows), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.cross, rows.T @ out / len(rows), rtol=1e-10, atol=1e-12)
    assert found.energy == pytest.approx(out.square().sum(1).mean().item(), rel=1e-10)


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_narrowed_is_what_the_smaller_kernel_collects(case, data) -> None:
    smaller = data.draw(st.sampled_from([k for k in (1, 3, 5) if k <= case.kernel]))
    assert_same(collected(case).narrowed(smaller), collected(case, kernel=smaller))


@settings(max_examples=60, deadline=None)
@given(cases(kept=True))
def test_beside_the_input_is_what_the_difference_collects(case) -> None:
    assert_same(collected(case).beside_input(), collected(case, y=case.y - case.x))


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_positions_of_a_sample_can_be_few_and_are_the_same_ones_everywhere(case, data) -> None:
    """A draw that depended on what was seen before would compare two networks at different places."""
    positions = data.draw(st.integers(1, case.y[0, 0].numel() + 3))
    few = RegressionMoments(case.kernel, case.stride, positions)
    few.add(case.x, case.y)
    assert few.regression.count == len(case.x) * min(positions, case.y[0, 0].numel())
    ramp = torch.arange(case.y[0, 0].numel(), dtype=torch.float64).view(1, 1, *case.y.shape[2:])
    chosen = few.sampled(ramp).long()[0]
    assert len(chosen.unique()) == len(chosen)
    again = RegressionMoments(case.kernel, case.stride, positions)
    assert torch.equal(again.sampled(ramp).long()[0], chosen)

    rows, out = (values.view(len(case.x), -1, values.shape[1])[:, chosen].flatten(0, 1) for values in unfolded(case))
    torch.testing.assert_close(few.sampled(case.y), out.T)
    torch.testing.assert_close(few.regression.in_mean, rows.mean(0), rtol=1e-10, atol=1e-12)
    rows, out = rows - rows.mean(0), out - out.mean(0)
    torch.testing.assert_close(few.regression.cross, rows.T @ out / len(rows), rtol=1e-10, atol=1e-12)


def test_another_seed_looks_elsewhere() -> None:
    ramp = torch.arange(100.0).view(1, 1, 10, 10)
    chosen = [set(RegressionMoments(1, 1, 10, seed).sampled(ramp)[0].tolist()) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_how_samples_are_batched_does_not_matter(case, data) -> None:
    cut = data.draw(st.integers(1, len(case.x) - 1))
    positions = data.draw(st.sampled_from([None, 2]))
    parts = RegressionMoments(case.kernel, case.stride, positions)
    parts.add(case.x[:cut], case.y[:cut])
    parts.add(case.x[cut:], case.y[cut:])
    assert_same(parts.regression, collected(case, positions=positions))


def test_how_patches_are_held_does_not_matter(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    case = Case(torch.randn(4, 2, 6, 6, generator=generator), torch.randn(4, 3, 6, 6, generator=generator), 3, 1)
    whole = collected(case)
    monkeypatch.setattr(regression_module, "CHUNK", 18 * 7)  # seven patches at a time
    assert_same(collected(case), whole)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 10**6))
def test_residual_and_bias_of_any_weight_are_its_mean_squared_error(case, seed) -> None:
    found, (rows, out) = collected(case), unfolded(case)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out.shape[1], rows.shape[1], generator=generator, dtype=torch.float64)
    left = out - rows @ weight.T
    torch.testing.assert_close(found.bias(weight), left.mean(0), rtol=1e-9, atol=1e-10)
    expected = (left - found.bias(weight)).square().sum(1).mean().item()
    assert found.residual(weight) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def layer(case: Case, weight: Tensor, bias: Tensor) -> Tensor:
    kernel = weight.view(len(bias), case.x.shape[1], case.kernel, case.kernel)
    return F.conv2d(case.x, kernel, bias, case.stride, case.kernel // 2)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_normal_equations_give_what_least_squares_on_patches_gives(case) -> None:
    found, (rows, out) = collected(case), unfolded(case)
    # Orthogonal factorisation of the patches themselves, beside the pseudo-inverse of their second moments.
    solution = torch.linalg.lstsq(torch.cat([rows, torch.ones(len(rows), 1).double()], 1), out, driver="gelsd").solution
    best = (out - torch.cat([rows, torch.ones(len(rows), 1).double()], 1) @ solution).square().sum(1).mean().item()
    weight = (torch.linalg.pinv(found.gram, rtol=1e-11, hermitian=True) @ found.cross).T
    assert found.residual(weight) == pytest.approx(best, rel=1e-6, abs=1e-8)
    given_out = layer(case, weight, found.bias(weight))  # a convolution with these weights, borders and all
    assert (given_out - case.y).square().sum(1).mean().item() == pytest.approx(best, rel=1e-6, abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 10**6), st.sampled_from([None, 3]))
def test_a_convolution_leaves_nothing(case, seed, positions) -> None:
    """Patches and outputs belong together at every border, stride and odd side."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, case.x.shape[1] * case.kernel**2, generator=generator, dtype=torch.float64)
    bias = torch.randn(2, generator=generator, dtype=torch.float64)
    found = collected(case, y=layer(case, weight, bias), positions=positions)
    assert found.residual(weight) < 1e-10 * max(found.energy, 1.0)
    torch.testing.assert_close(found.bias(weight), bias, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=0, max_size=1))
def test_tokens_are_observations(seed, between) -> None:
    """[N, T, C] and [N, C]: a row is an observation."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, *between, 3, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, 3, generator=generator).double(), torch.randn(2, generator=generator).double()
    noise = torch.randn(6, *between, 2, generator=generator, dtype=torch.float64)
    moments = RegressionMoments(1, 1, tokens=True)
    moments.add(x[:2], (x @ weight.T + bias + noise)[:2])
    moments.add(x[2:], (x @ weight.T + bias + noise)[2:])
    found = moments.regression
    rows, out = x.reshape(-1, 3), noise.reshape(-1, 2)
    assert found.count == len(rows)
    torch.testing.assert_close(found.gram, torch.cov(rows.T, correction=0), rtol=1e-10, atol=1e-12)
    assert found.residual(weight) == pytest.approx(
        (out - out.mean(0)).square().sum(1).mean().item(), rel=1e-8, abs=1e-10
    )


def test_an_output_past_the_border_sees_zeros() -> None:
    """A layer with more padding than its kernel needs gives more than the input has; its patches end in zeros."""
    x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_same(collected(Case(x, y, 3, 1)), collected(Case(F.pad(x, (0, 1, 0, 1)), y, 3, 1)))
