"""The network's values among an artifact's. The artifacts are made of the network's own values, without a converter."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.small import Small, randomise_norms
from torch import Tensor, fx, nn

from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network
from pipeline.verify.correspondence import EQUAL, Correspondence, distance
from pipeline.verify.parts import effect, part
from pipeline.verify.tapped import Values

SAMPLES = np.random.default_rng(0).standard_normal((3, 3, 12, 12)).astype(np.float32)


def ingested(model: nn.Module) -> Network:
    return from_program(export_program(model.eval(), (torch.from_numpy(SAMPLES[:2]),)))


torch.manual_seed(0)
NETWORK = ingested(randomise_norms(Small()))
WEIGHTED = [name for name, layer in NETWORK.layers().items() if isinstance(layer, nn.Conv2d | nn.Linear)]


class Recorder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.op.startswith("call") and isinstance(value, Tensor):
            self.values[n.name] = value.detach().clone()
        return value


def artifact(network: Network, kept: set[str] | None = None, order: int = 0) -> tuple[Values, list[str]]:
    """What an artifact would give that keeps the values of some nodes and the output, each in some order of axes."""
    generator = np.random.default_rng(order)
    rows = []
    for sample in torch.from_numpy(SAMPLES):
        recorder = Recorder(network.graph)
        with torch.no_grad():
            recorder.run(sample[None])
        rows.append(recorder.values)
    names = list(rows[0])
    names = [name for name in names if kept is None or name in kept or name == names[-1]]
    tensors = []
    for name in names:
        axes = generator.permutation(rows[0][name].ndim) if order else range(rows[0][name].ndim)
        tensors.append(np.stack([row[name].permute(*axes).numpy() for row in rows]))
    return Values(tuple(tensors), (len(tensors) - 1,)), names


def with_noise(layer: str, relative: float) -> Network:
    network = NETWORK.copy()
    weight = network.layer(layer).weight
    with torch.no_grad():
        weight += relative * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return network


def wrong(correspondence: Correspondence) -> list[str]:
    return [found.node.name for found in correspondence.ordered() if found.own > EQUAL]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_every_value_is_found_in_any_layout(order):
    values, names = artifact(NETWORK, order=order)
    correspondence = Correspondence(NETWORK, SAMPLES, values)
    assert [found.node.name for found in correspondence.ordered()] == names
    assert max(found.own for found in correspondence.ordered()) < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    layer=st.sampled_from(WEIGHTED),
    relative=st.sampled_from([1e-3, 0.1, 5.0]),
    order=st.integers(0, 5),
    fused=st.sets(
        st.sampled_from(["norm", "out", "bn1", "bn2", "expand", "project", "conv1", "conv2", "add", "slice"])
    ),
)
def test_the_layer_that_was_changed_is_in_the_first_wrong_part(layer, relative, order, fused):
    """Whatever the artifact fuses away, and however wrong it is."""
    network = with_noise(layer, relative)
    names = {node.name for node in network.graph.graph.nodes}
    kept = {
        name for name in names if not any(name.rpartition("_")[2] == word or name.startswith(word) for word in fused)
    }
    values, _ = artifact(network, kept, order)
    correspondence = Correspondence(NETWORK, SAMPLES, values)
    first = next(found for found in correspondence.ordered() if found.own > EQUAL)
    assert layer in [node.target for node in correspondence.between(first.node)]


def test_only_the_changed_layer_is_wrong_by_itself():
    values, _ = artifact(with_noise("basic.conv1", 5.0))
    correspondence = Correspondence(NETWORK, SAMPLES, values)
    assert wrong(correspondence) == ["basic_conv1"] and len(correspondence.found) == len(values.tensors)


def test_a_relus_result_is_not_taken_for_its_input():
    """Of a convolution, norm and ReLU in one, only what the ReLU gave is there; a ReLU would leave that as it is."""
    network = with_noise("fused.expand", 5.0)
    kept = {node.name for node in network.graph.graph.nodes} - {"fused_expand", "fused_norm"}
    correspondence = Correspondence(NETWORK, SAMPLES, artifact(network, kept)[0])
    assert wrong(correspondence) == ["fused_act"]
    node = next(node for node in correspondence.found if node.name == "fused_act")
    assert [inside.name for inside in correspondence.between(node)] == ["fused_expand", "fused_norm", "fused_act"]


def test_an_output_of_another_size_is_wrong_whatever_it_holds():
    values, _ = artifact(NETWORK)
    cut = Values((*values.tensors[:-1], values.tensors[-1][..., :-1]), values.outputs)
    correspondence = Correspondence(NETWORK, SAMPLES, cut)
    assert wrong(correspondence) == ["head"] and correspondence.ordered()[-1].own == float("inf")


def test_operators_in_place_leave_the_artifacts_values_alone():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(400, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu_(self.conv(x).flatten(1)))

    network = ingested(InPlace())
    values, _ = artifact(network)
    before = copy.deepcopy(values.tensors)
    correspondence = Correspondence(network, SAMPLES, values)
    assert not wrong(correspondence)
    assert all(np.array_equal(now, then) for now, then in zip(values.tensors, before))


def test_a_part_alone_gives_what_is_expected():
    values, _ = artifact(with_noise("fused.project", 0.3))
    correspondence = Correspondence(NETWORK, SAMPLES, values)
    found = next(found for found in correspondence.ordered() if found.own > EQUAL)
    alone, sources = part(NETWORK, correspondence.between(found.node))
    with torch.no_grad():
        rows = [alone(*inputs) for inputs in zip(*map(correspondence.value, sources))]
    torch.testing.assert_close(torch.stack(rows), correspondence.expected(found.node))
    assert found.own > EQUAL and distance(found.taken, torch.stack(rows)) == pytest.approx(found.own)


def test_effect_is_what_the_error_does_to_the_output():
    node = NETWORK.node("head")
    with torch.no_grad():
        outputs = NETWORK(torch.from_numpy(SAMPLES))
    error = 0.01 * outputs[:, None]
    assert effect(NETWORK, SAMPLES, node, error) == pytest.approx(0.01, rel=1e-4)
    assert effect(NETWORK, SAMPLES, NETWORK.node("stem"), torch.zeros(3, 1, 8, 6, 6)) == 0
