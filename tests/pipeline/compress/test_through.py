"""Fitting through a rectifier: what it cuts is not asked for, and what passes comes nearer than by least squares."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pipeline.compress.through as through
from calibration.regression import RegressionRows
from pipeline.compress.refit import Fitter, Form, Shape
from pipeline.compress.through import Cut, cut_behind, fit_through
from pipeline.model.ingest import export_program, from_program

RELU, RELU6 = Cut(0.0, math.inf), Cut(0.0, 6.0)
SHAPE = Shape(3, 3, (6, 6), (6, 6), False, 3)
FORMS = [
    Form("dense", 3),
    Form("dense", 1),
    Form("thin", 3, 2),
    Form("thin", 3, 1, skip=True),
    Form("separable", 3),
    Form("separable", 3, skip=True),
]


def seen(seed: int, scale: float = 1.0) -> tuple[RegressionRows, Tensor, Tensor]:
    """Rows of a block that is not linear, with its input and output [N, 3, 6, 6]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 3, 6, 6, generator=generator)
    weights = torch.randn(2, 3, 3, 3, 3, generator=generator)
    y = scale * (nn.functional.conv2d(nn.functional.conv2d(x, weights[0], padding=1).relu(), weights[1], padding=1) / 4)
    rows = RegressionRows(3, 1)
    for part in (slice(0, 25), slice(25, 40)):
        rows.add(x[part], y[part])
    return rows, x, y


def applied(layers, x: Tensor, form: Form) -> Tensor:
    value = x
    with torch.no_grad():
        for layer in layers:
            value = layer.module().float()(value)
    return value + x if form.skip else value


def asked(cut: Cut, value: Tensor, wanted: Tensor) -> float:
    """The one-sided squared error that is minimised."""
    return (value - cut.target(wanted, value)).square().mean().item()


@pytest.mark.parametrize(
    ("wanted", "given", "target"),
    [(1.0, -2.0, 1.0), (-1.0, -3.0, -3.0), (-1.0, 2.0, 0.0), (7.0, 8.0, 8.0), (7.0, 5.0, 6.0), (6.0, -1.0, 6.0)],
)
def test_only_what_passes_is_asked_for(wanted, given, target):
    assert RELU6.target(torch.tensor(wanted), torch.tensor(given)).item() == target
    if wanted < 6:
        assert RELU.target(torch.tensor(wanted), torch.tensor(given)).item() == target


@pytest.mark.parametrize("cut", [RELU, RELU6], ids=["relu", "relu6"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_passes_comes_nearer_than_by_least_squares(form, cut):
    rows, x, y = seen(0, 4.0)
    least = Fitter(rows.regression, SHAPE).fit(form).layers
    fitted = fit_through(rows, SHAPE, form, cut)
    assert len(fitted) == len(least)

    def error(layers) -> float:
        return (applied(layers, x, form).clamp(cut.low, cut.high) - y.clamp(cut.low, cut.high)).square().mean().item()

    assert error(fitted) < 0.99 * error(least)
    assert asked(cut, applied(fitted, x, form), y) < asked(cut, applied(least, x, form), y)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_no_round_makes_a_dense_form_worse(seed):
    rows, x, y = seen(seed)
    form, before = Form("dense", 3), math.inf
    for rounds in range(5):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(through, "ROUNDS", rounds)
            now = asked(RELU, applied(fit_through(rows, SHAPE, form, RELU), x, form), y)
        assert now <= before * (1 + 1e-4)
        before = now


def test_what_the_layers_give_is_known_without_running_them():
    rows, x, _ = seen(3)
    for form in FORMS:
        fit = Fitter(rows.regression, SHAPE).fit(form)
        expected = applied(fit.layers, x, form).permute(1, 0, 2, 3).flatten(1)
        torch.testing.assert_close(through.given(fit, form, rows), expected, rtol=1e-4, atol=1e-4)


def test_rows_towards_what_they_saw_are_the_same_regression():
    rows, _, _ = seen(5)
    one, other = rows.regression, rows.towards(rows.answers)
    assert one.energy == pytest.approx(other.energy, rel=1e-6)
    for name in ("gram", "cross", "in_mean", "out_mean"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.relu, self.relu6, self.gelu = nn.ReLU(), nn.ReLU6(), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.b(self.relu(self.a(x))))
        x = self.c(x)
        return self.d(self.gelu(x)) + x


def test_a_cut_is_that_of_the_only_reader():
    network = from_program(export_program(Net(), (torch.randn(2, 3, 8, 8),)))
    names = {node.target: node.name for node in network.graph.graph.nodes if node.op == "call_module"}
    assert cut_behind(network, names["a"]) == RELU and cut_behind(network, names["b"]) == RELU6
    assert cut_behind(network, names["c"]) is None, "a sum reads it, too"
    assert cut_behind(network, names["d"]) is None, "no rectifier does"
    assert cut_behind(network, names["relu"]) is None, "a layer does"
