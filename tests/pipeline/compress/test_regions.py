"""Regions have one way in and one way out, by definition and all of them, on residual, mobile and token networks."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from networks.mobilenet import randomised_mobilenet_v2
from networks.resnet import CifarResNet
from networks.small import small
from torch import Tensor, fx, nn

from pipeline.compress.algebra import is_layer
from pipeline.compress.linearize import RECTIFIERS
from pipeline.compress.merge import ADDITIONS
from pipeline.compress.regions import LONGEST, Region, regions
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network


class Encoder(nn.Module):
    """A block of a vision transformer, norms first, with fused projections and three heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.projection(y.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.behind(x))))


class Transformer(nn.Module):
    """Input [N, 3, 8, 8], output [N, 5]: four patches, positions, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.places = nn.Parameter(torch.zeros(1, 4, 12))
        self.blocks = nn.Sequential(Encoder(12), Encoder(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.blocks(tokens).mean(1))


NETWORKS = {
    "small": (small, 12),
    "resnet": (lambda: CifarResNet(2).eval(), 16),
    "mobilenet": (randomised_mobilenet_v2, 32),
    "transformer": (lambda: Transformer().eval(), 8),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request) -> Network:
    build, side = NETWORKS[request.param]
    return from_program(export_program(build(), (torch.randn(2, 3, side, side),)))


def values_of(node: fx.Node) -> list[fx.Node]:
    """What a node reads, without the network's own constants."""
    return [value for value in node.all_input_nodes if value.op != "get_attr"]


def layers_of(network: Network, nodes: list[fx.Node]) -> tuple[str, ...]:
    return tuple(n.target for n in nodes if n.op == "call_module" and is_layer(network.layer(n.target)))


def test_what_a_region_computes_is_read_at_its_end_alone(network) -> None:
    nodes = {node.name: node for node in network.graph.graph.nodes}
    order = list(nodes)
    found = regions(network)
    assert found
    for region in found:
        inside = [nodes[name] for name in region.nodes]
        read = {source for node in inside for source in values_of(node)} - set(inside)
        assert {node.name for node in read} == {region.source}
        left = {node for node in inside for user in node.users if user not in inside}
        assert left <= {nodes[region.end]}
        assert [node.name for node in inside] == sorted(region.nodes, key=order.index)
        assert region.nodes[-1] == region.end and region.source not in region.nodes
        assert region.span == (order.index(region.nodes[0]), order.index(region.end))
        assert region.layers == layers_of(network, inside)
        assert 1 <= len(region.layers) <= LONGEST and region.site == region.layers[0]
        assert {node.op for node in inside} <= {"call_module", "call_function"}


def test_each_set_of_layers_once_in_the_order_of_the_ends(network) -> None:
    found = regions(network)
    assert len({region.layers for region in found}) == len(found)
    assert [region.span[1] for region in found] == sorted(region.span[1] for region in found)


def test_no_region_begins_at_a_rectifier(network) -> None:
    nodes = {node.name: node for node in network.graph.graph.nodes}
    for region in regions(network):
        first = [nodes[name] for name in region.nodes if nodes[region.source] in values_of(nodes[name])]
        modules = [network.layer(node.target) for node in first if node.op == "call_module"]
        assert modules and not any(isinstance(module, RECTIFIERS) for module in modules)


def by_definition(network: Network) -> dict[tuple[str, ...], tuple[str, str]]:
    """Layers -> (source, end), from every pair of nodes: what the one is computed from and the other is not."""
    nodes = list(network.graph.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    above: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        above[node] = {node}.union(*(above[source] for source in values_of(node)))
    editable = network.editable()
    best: dict[tuple[str, ...], tuple[int, int, str, str]] = {}
    for source, end in itertools.combinations(nodes, 2):
        if source not in above[end] or end.op not in ("call_module", "call_function"):
            continue
        module = network.layer(end.target) if end.op == "call_module" else None
        if not (is_layer(module) or isinstance(module, nn.BatchNorm2d) if module else end.target in ADDITIONS):
            continue
        inside = sorted(above[end] - above[source], key=place.__getitem__)
        layers = layers_of(network, inside)
        first = [n for n in inside if source in values_of(n) and n.op == "call_module"]
        if (
            all(n.op in ("call_module", "call_function") for n in inside)
            and all(reading in inside or reading is source for n in inside for reading in values_of(n))
            and all(user in inside for n in inside if n is not end for user in n.users)
            and 1 <= len(layers) <= LONGEST
            and editable.issuperset(layers)
            and first
            and not any(isinstance(network.layer(n.target), RECTIFIERS) for n in first)
        ):
            row = (place[end], place[inside[0]], source.name, end.name)
            best[layers] = max(best.get(layers, row), row, key=lambda row: row[:2])
    return {layers: row[2:] for layers, row in best.items()}


def test_no_region_is_missed(network) -> None:
    assert {region.layers: (region.source, region.end) for region in regions(network)} == by_definition(network)


def named(network: Network) -> dict[tuple[str, ...], Region]:
    return {region.layers: region for region in regions(network)}


def test_a_residual_block_is_a_region_with_its_skip_and_a_layer_one_with_its_norm() -> None:
    network = from_program(export_program(CifarResNet(1).eval(), (torch.randn(2, 3, 16, 16),)))
    found = named(network)
    assert [layers for layers in found if len(layers) == 2 and layers[0].startswith("layer2.0")] == [
        ("layer2.0.conv1", "layer2.0.conv2")
    ]
    block = found["layer2.0.conv1", "layer2.0.conv2"]
    ends = {node.name: node for node in network.graph.graph.nodes}
    assert ends[block.end].target in ADDITIONS and block.reach == 7  # 3x3 at stride 2, then 3x3 two pixels apart
    branch = found["layer2.0.conv2",]
    assert ends[branch.end].target == "layer2.0.bn2" and branch.reach == 3
    assert isinstance(network.layer(ends[branch.source].target), nn.ReLU)


def test_attention_and_the_mlp_are_regions_with_their_skips() -> None:
    network = from_program(export_program(Transformer().eval(), (torch.randn(2, 3, 8, 8),)))
    found, nodes = named(network), {node.name: node for node in network.graph.graph.nodes}
    for layers in (("blocks.0.qkv", "blocks.0.projection"), ("blocks.1.wide", "blocks.1.narrow")):
        region = found[layers]
        assert nodes[region.end].target in ADDITIONS and nodes[region.source] in nodes[region.end].args
        assert region.reach == 1


class Shared(nn.Module):
    """One convolution is called twice, the weight of another is read elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.read, self.free = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(F.relu(self.twice(x))))
        x = F.relu(self.free(F.relu(self.read(x))))
        return x * self.read.weight.mean()


def test_a_layer_that_something_else_needs_is_in_no_region() -> None:
    network = from_program(export_program(Shared().eval(), (torch.randn(2, 4, 6, 6),)))
    assert set(named(network)) == {("free",)}
