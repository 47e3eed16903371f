"""Fitting through the activation behind: where a rectifier reads what a form gives, only what it lets pass counts.

Least squares asks a form g for every value of the target y, also for those that the rectifier r behind cuts to the same
constant. What is asked here is the smallest

    E || h(x) ||^2,    h = g - y where r lets y pass, and where it cuts y only as far as g is not cut the same way

a one-sided squared error, convex in g's weights and no smaller than that of r(g) against r(y). It is found by
majorising: where g is cut as y is, g itself becomes the target, and least squares go again (Hunter & Lange, 2004, for
the principle; Zhang et al., 2015, alternate with auxiliary values behind the rectifier instead). No round makes a dense
form worse. The Gram matrix stays, so that a round costs the cross moments and a solution.

needs: data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.regression import RegressionRows
from pipeline.compress.algebra import LinearOperator
from pipeline.compress.refit import Fit, Fitter, Form, Shape
from pipeline.model.network import Network

ROUNDS = 10


@dataclass(frozen=True)
class Cut:
    """What a rectifier lets pass: values between `low` and `high`; it cuts the others to these."""

    low: float
    high: float

    def target(self, wanted: Tensor, given: Tensor) -> Tensor:
        """What to fit next: `wanted`, but where that is cut, what is given, as far as it is cut the same way."""
        below = torch.where(wanted <= self.low, given.clamp(max=self.low), wanted)
        return torch.where(wanted >= self.high, given.clamp(min=self.high), below)


CUTS = {nn.ReLU: Cut(0.0, math.inf), nn.ReLU6: Cut(0.0, 6.0)}


def cut_behind(network: Network, name: str) -> Cut | None:
    """Of the rectifier that is the only reader of a node's value; None where something else reads it."""
    node = next(node for node in network.graph.graph.nodes if node.name == name)
    readers = list(node.users)
    if len(readers) != 1 or readers[0].op != "call_module":
        return None
    return CUTS.get(type(network.layer(readers[0].target)))


def fit_through(rows: RegressionRows, shape: Shape, form: Form, cut: Cut) -> tuple[LinearOperator, ...]:
    """The layers of a form that is not the identity, fitted to what passes `cut`."""
    fit = Fitter(rows.regression, shape).fit(form)
    for _ in range(ROUNDS):
        fit = Fitter(rows.towards(cut.target(rows.answers, given(fit, form, rows))), shape).fit(form)
    return fit.layers


def given(fit: Fit, form: Form, rows: RegressionRows) -> Tensor:
    """[O, N]: what a fitted form gives where the rows were seen."""
    value = fit.weight.to(rows.inputs) @ rows.central(form.kernel) + fit.bias.to(rows.inputs)[:, None]
    return value + rows.central(1) if form.skip else value
