"""The rewriting for delegates: other operators, the same values, the program itself as it was."""

import torch
from export_networks import CHANNELS, HEIGHT, WIDTH, Residual, Transformer, build
from torch import nn

from pipeline.export.rewriting import for_delegates

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def traced(network: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(network, (torch.zeros(1, CHANNELS, HEIGHT, WIDTH),))


def operators(program: torch.export.ExportedProgram) -> list:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


class Masked(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3)


def same(program: torch.export.ExportedProgram, network: nn.Module) -> bool:
    x = torch.randn(1, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.allclose(for_delegates(program).module()(x), network(x), atol=1e-5)


def test_attention_without_a_mask_is_two_products_and_a_softmax():
    network = build(Transformer)
    program = traced(network)
    before, after = operators(program), operators(for_delegates(program))
    assert ATTENTION in before and ATTENTION not in after and operators(program) == before
    assert after.count(torch.ops.aten.bmm.default) == 2 and torch.ops.aten.where.self not in after
    assert same(program, network)
    modules = [node.meta.get("nn_module_stack") for node in for_delegates(program).graph.nodes]
    assert any(stack and list(stack.values())[-1][0] == "project" for stack in modules)


def test_attention_with_a_mask_is_torchs_own():
    network = Masked()
    assert {ATTENTION, torch.ops.aten.where.self} & set(operators(for_delegates(traced(network))))
    assert same(traced(network), network)


def test_a_global_pooling_keeps_its_dimensions():
    network = build(Residual)
    program = traced(network)
    rewritten = for_delegates(program)
    (mean,) = [node for node in rewritten.graph.nodes if node.target is torch.ops.aten.mean.dim]
    assert mean.args[2] is True and mean.meta["val"].shape == (1, 16, 1, 1)
    (flat,) = mean.users
    assert flat.meta["val"].shape == (1, 16) and same(program, network)
    (plain,) = [node for node in program.graph.nodes if node.target is torch.ops.aten.mean.dim]
    assert len(plain.args) == 2


class Pooled(nn.Module):
    """Means that no delegate is the better for: over channels, and one that is the output itself."""

    def forward(self, x):
        return x.mean(1).sum((1, 2)) + 0, x.mean((2, 3))


def test_other_means_are_left():
    rewritten = for_delegates(traced(Pooled()))
    means = [node for node in rewritten.graph.nodes if node.target is torch.ops.aten.mean.dim]
    assert [node.args[1] for node in means] == [[1], [2, 3]] and all(len(node.args) == 2 for node in means)
