"""A module as the tests of compression take it."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network


def network_of(module: nn.Module, x: Tensor) -> Network:
    """`module` in eval mode, ingested with the first two of x [N, ...] as its example."""
    return from_program(export_program(module.eval(), (x[:2],)))
