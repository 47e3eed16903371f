"""Whose a value is: modules and blocks as the user names them."""

import pytest
import torch
from networks.mobilenet import InvertedResidual, conv_bn_relu6
from networks.resnet import CifarResNet
from networks.small import Small
from networks.vit import small_vit
from torch import nn

from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network
from pipeline.verify.blocks import Blocks, moves


def network(model: nn.Module, *shape: int) -> Network:
    return from_program(export_program(model.eval(), (torch.randn(2, *shape),)))


def blocks_of(network: Network) -> list[str]:
    blocks = Blocks(network)
    return list(dict.fromkeys(blocks.block(node) for node in network.graph.graph.nodes if node.op == "call_module"))


def test_residual_blocks_and_layers_outside():
    stages = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1)]
    assert blocks_of(network(CifarResNet(2), 3, 32, 32)) == ["conv1", "bn1", "relu", *stages, "linear"]


def test_a_blocks_own_numbered_layers_are_no_blocks():
    """`features.2.conv.0` is a convolution with its norm; `features.2` is what a person calls the block."""
    features = nn.Sequential(
        conv_bn_relu6(3, 8, stride=2), *(InvertedResidual(8, 8, 1, 6) for _ in range(3)), conv_bn_relu6(8, 16, 1)
    )
    model = nn.Sequential()
    model.add_module("features", features)
    assert blocks_of(network(model, 3, 16, 16)) == [f"features.{index}" for index in range(5)]


def test_layers_in_a_row_are_each_their_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    assert blocks_of(network(model, 3, 8, 8)) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("saved", [False, True])
def test_operators_outside_layers_belong_to_who_calls_them(saved):
    """Also in a network read back from its file, which has no notes of the callers."""
    given = network(small_vit(), 1, 28, 28)
    if saved:
        given = from_program(given.exported())
    blocks = Blocks(given)
    names = {blocks.module(node): blocks.block(node) for node in given.graph.graph.nodes}
    assert names["blocks.2.add"] == names["blocks.2.add_1"] == "blocks.2"
    assert names["blocks.5.scaled_dot_product_attention"] == "blocks.5" and names["add"] == "add"
    assert sum(name.startswith("blocks.2.add") for name in names) == 2


def test_what_only_moves_numbers():
    graph = network(Small(), 3, 12, 12).graph.graph
    assert {node.name for node in graph.nodes if moves(node)} == {"slice_1", "slice_2", "slice_3", "flatten"}
