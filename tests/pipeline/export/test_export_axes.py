"""Query, key and value without a fifth axis: the same bits, four axes at most, and all else as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_networks import CHANNELS, HEIGHT, WIDTH, Transformer, build, save
from networks.vit import ViT
from torch import Tensor, nn

from pipeline.export.axes import without_fifth_axes
from pipeline.export.child import export
from targets.delegation.gpu import on_gpu
from targets.gpu import places

TOKENS, FEATURES, HEADS = 7, 12, 2


class Heads(nn.Module):
    """What networks do to tell query, key and value apart: [N, T, 3 D] to three tensors."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv = how, nn.Linear(FEATURES, 3 * FEATURES)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        count, tokens, _ = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, HEADS, FEATURES // HEADS)
        if self.how == "in place":
            return parts.unbind(2)
        if self.how == "from the end":
            return tuple(one.transpose(1, 2) for one in parts.unbind(-3))
        if self.how == "elsewhere":
            return parts.permute(0, 2, 3, 1, 4).unbind(2)
        front = parts.permute(2, 0, 3, 1, 4)
        if self.how == "some":
            return front[0] + front[-1], front[0]
        if self.how == "whole":
            return *front.unbind(0), front.sum(0)
        return front.unbind(0) if self.how == "unbind" else (front[0], front[1], front[2])


def program_of(network: nn.Module, *shape: int) -> torch.export.ExportedProgram:
    return torch.export.export(network.eval(), (torch.randn(shape, generator=torch.Generator().manual_seed(0)),))


def most_axes(module: torch.fx.GraphModule, *inputs: Tensor) -> int:
    """Of any tensor between the operators, as they are computed."""
    seen = []

    class Ranks(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            found = super().call_function(target, args, kwargs)
            seen.extend(each.ndim for each in (found if isinstance(found, tuple | list) else (found,)))
            return found

    Ranks(module).run(*inputs)
    return max(seen)


@pytest.mark.parametrize("how", ["unbind", "select", "some", "in place", "from the end"])
@pytest.mark.parametrize("count", [1, 2])
def test_parts_are_sliced_off(how: str, count: int) -> None:
    torch.manual_seed(0)
    program, x = program_of(Heads(how), count, TOKENS, FEATURES), torch.randn(count, TOKENS, FEATURES)
    expected = program.module()(x)
    module = without_fifth_axes(program.module())
    assert most_axes(module, x) == 4 < most_axes(program.module(), x)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(module(x), expected, strict=True))


@pytest.mark.parametrize("how", ["whole", "elsewhere"])
def test_what_is_not_taken_apart_there_is_left(how: str) -> None:
    program, x = program_of(Heads(how), 1, TOKENS, FEATURES), torch.randn(1, TOKENS, FEATURES)
    before = program.module()
    module = without_fifth_axes(program.module())
    assert [node.target for node in module.graph.nodes] == [node.target for node in before.graph.nodes]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(module(x), before(x), strict=True))


def test_the_new_operators_are_the_same_modules() -> None:
    module = without_fifth_axes(program_of(ViT(16, 1, 2, size=12, patch=4), 1, 3, 12, 12).module())
    cut = [node for node in module.graph.nodes if node.target is torch.ops.aten.slice.Tensor]
    assert len(cut) == 3
    assert all("blocks.0" in [path for path, _ in node.meta["nn_module_stack"].values()][-1] for node in cut)


def test_samples_of_any_number_stay_that(tmp_path: Path) -> None:
    network = build(Transformer)
    program = torch.export.load(save(network, tmp_path / "network.pt2"))
    module = without_fifth_axes(program.module())
    assert not any(node.target is torch.ops.aten.unbind.int for node in module.graph.nodes)
    for count in (1, 3):
        x = torch.randn(count, CHANNELS, HEIGHT, WIDTH)
        assert torch.equal(module(x), program.module()(x))


@pytest.mark.gpu
@pytest.mark.export
@pytest.mark.slow
def test_a_vision_transformer_runs_on_the_gpu_whole(tmp_path: Path) -> None:
    if not places.is_ready():
        pytest.skip("the software GPU driver is not set up: run `planish targets setup pixel-4-gpu`")
    network = save(build(Transformer), tmp_path / "network.pt2")
    made = export(network, format="tflite", directory=tmp_path, log=tmp_path / "converter.log")
    found = on_gpu(made.path)
    assert not found.refused and len(found.taken) == len(found.kinds) > 50
