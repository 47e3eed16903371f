"""Edits: replay is bit-exact, full rank is the identity, an idle activation costs nothing, merges keep the function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks.small import small

from calibration.statistics import collect
from pipeline.compress.algebra import operator_of
from pipeline.compress.linearize import channel_dims, linearize, sites
from pipeline.compress.merge import merge
from pipeline.compress.refit import refit
from pipeline.compress.regions import regions
from pipeline.compress.truncate import factors, truncate
from pipeline.model import edits as edit_log
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program

FUSED = ["fused.expand", "fused.norm", "fused.act", "fused.project", "fused.out"]


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(x):
    return from_program(export_program(small(), (x[:2],)))


@pytest.fixture(scope="module")
def edits(base, x):
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    fit = statistics["fused.act"]
    return [
        linearize("fused.act", fit.slope, fit.intercept, 1),
        merge(FUSED, skip=True),
        truncate("basic.conv2", 6),
        truncate("hidden", 4),
    ]


@torch.no_grad()
def test_replay_gives_the_same_bits_and_leaves_the_base_alone(base, edits, x, tmp_path: Path) -> None:
    before = base.fingerprint()
    edited = replay(base, edits)
    edit_log.save(edited.edits, tmp_path)
    edited.save_weights(tmp_path / "weights.safetensors")
    replayed = replay(base, edit_log.load(tmp_path))
    assert replayed.edits == edited.edits
    assert replayed.fingerprint() == edited.fingerprint()
    assert torch.equal(replayed(x), edited(x))
    assert torch.equal(replayed.with_weights(tmp_path / "weights.safetensors")(x), edited(x))
    assert base.fingerprint() == before


def test_no_edits_still_give_a_network_of_its_own(base) -> None:
    before, copy = base.fingerprint(), replay(base, [])
    copy.layer("fused.norm").running_mean.add_(1)
    assert base.fingerprint() == before


@torch.no_grad()
def test_a_candidate_reads_back_without_the_users_code(base, edits, x, tmp_path: Path) -> None:
    edited = replay(base, edits)
    torch.export.save(edited.exported(), tmp_path / "network.pt2")
    from pipeline.model.ingest import ingest

    assert (ingest(str(tmp_path / "network.pt2"))(x) - edited(x)).abs().max() <= 1e-6


@torch.no_grad()
def test_merging_a_fused_block_with_its_skip_keeps_the_function(base, edits, x) -> None:
    linear, merged = replay(base, edits[:1]), replay(base, edits[:2])
    assert (merged(x) - linear(x)).abs().max() <= 1e-5
    assert "fused.project" not in merged.layers() and merged.layer("fused.expand").kernel_size == (3, 3)


@torch.no_grad()
def test_an_activation_that_is_always_on_or_off_is_replaced_exactly(base) -> None:
    shifted = base.copy()
    norm = shifted.layer("fused.norm")
    norm.bias.copy_(torch.where(torch.arange(24) % 2 == 0, 100.0, -100.0))
    x = torch.randn(8, 3, 12, 12)
    fit = collect(shifted.graph, ["fused.act"], [x])["fused.act"]
    assert fit.entropy() == 0
    edited = replay(shifted, [linearize("fused.act", fit.slope, fit.intercept, 1)])
    assert torch.allclose(edited(x), shifted(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layer", ["fused.expand", "fused.project", "hidden", "basic.conv1"])
def test_full_rank_truncation_is_the_identity(base, x, layer: str) -> None:
    operator = operator_of(base.layer(layer))
    full = min(operator.out_channels, operator.weight[0].numel())
    assert (replay(base, [truncate(layer, full)])(x) - base(x)).abs().max() <= 1e-5


def test_truncation_error_is_the_dropped_spectrum() -> None:
    """|W - W_r|_F = sqrt(sum of the squared singular values that were dropped)."""
    layer = torch.nn.Conv2d(6, 10, 3)
    operator = operator_of(layer)
    values = torch.linalg.svdvals(operator.weight.flatten(1))
    for rank in (2, 5, 9):
        reduce, expand = factors(operator, rank)
        error = (expand.weight.flatten(1) @ reduce.weight.flatten(1) - operator.weight.flatten(1)).norm()
        assert error.item() == pytest.approx(values[rank:].square().sum().sqrt().item(), abs=1e-9)


class Attending(torch.nn.Module):
    """Input [N, 4, 8], output [N, 3]: attention over its own values, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.head = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.wide(x)[:, None].chunk(3, dim=-1)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.head((x + self.narrow(attended)).mean(1))


def test_attention_that_nobody_reads_goes_with_its_layers() -> None:
    network = from_program(export_program(Attending().eval(), (torch.randn(2, 4, 8),)))
    (region,) = (r for r in regions(network) if r.layers == ("wide", "narrow") and r.end.startswith("add"))
    passed = replay(network, [refit(region, ())])
    assert list(passed.layers()) == ["head"]
    assert not any("attention" in str(node.target) for node in passed.graph.graph.nodes)
