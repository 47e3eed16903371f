"""From a .tflite file to the delegate's kernels, and what they are modelled to take."""

from __future__ import annotations

from collections import Counter

import pytest

from targets.errors import UsageError
from targets.gpu.fusion import fuse, not_measured
from targets.gpu.graph import Graph, Node, read
from targets.gpu.modelled import measure, modelled
from targets.profile import load_profile
from targets.validation.build import artifact

PUBLISHED_MS = {  # qed-usc/mobile-ml-benchmark@40ba833, tflite_cnn_e2e.csv: mobilenet_w1, v2b_w1, v3_large_w1
    "mobilenet-v1": {"pixel-4-gpu": 6.0038, "galaxy-s10-exynos-gpu": 10.8721},
    "mobilenet-v2": {"pixel-4-gpu": 5.811, "galaxy-s10-exynos-gpu": 10.8692},
    "mobilenet-v3-large": {"pixel-4-gpu": 5.3691, "galaxy-s10-exynos-gpu": 10.2495},
}
NO_WINDOW = ((1, 1), (1, 1), False)


def chain(*nodes: tuple[str, tuple[int, ...], int], shape=(1, 8, 8, 16), outputs=()) -> Graph:
    """Nodes (kind, tensors read, tensor written) on one shape; tensor 100 is a 3x3 weight of 16 channels."""
    made = tuple(
        Node(kind, (*read, 100) if kind == "CONV_2D" else read, read, (out,), *NO_WINDOW, place)
        for place, (kind, read, out) in enumerate(nodes)
    )
    shapes = {tensor: shape for _, read, out in nodes for tensor in (*read, out)} | {100: (16, 3, 3, 16)}
    return Graph(made, shapes, frozenset(outputs))


@pytest.mark.parametrize("network", PUBLISHED_MS)
def test_artifacts_are_near_their_published_latencies(network):
    built = artifact(network)
    for name, published in PUBLISHED_MS[network].items():
        found = modelled(built.path, built.format, load_profile(name))
        assert found.low_ms < published < found.high_ms
        assert not found.not_measured and not found.carried_over
        assert found.milliseconds == pytest.approx(found.fixed_ms + sum(part.milliseconds for part in found.parts))


def test_residual_sums_are_linked_and_squeeze_and_excitation_is_not():
    found = fuse(read(artifact("mobilenet-v2").path), "mali-bifrost")
    kernels = [one.kernel for one in found]
    assert Counter(kernel.choice for kernel in kernels) == {
        "pointwise": 34,
        "depthwise": 17,
        "conv": 1,
        "mean": 1,
        "dense": 1,
    }
    assert sum(kernel.adds for kernel in kernels) == 10
    graph = read(artifact("mobilenet-v3-small").path)
    found = fuse(graph, "mali-bifrost")
    assert sum(one.kernel.moves for one in found) == 9
    assert sorted(place for one in found for place in one.operators) == [
        place for place, node in enumerate(graph.nodes) if node.kind not in ("RESHAPE", "PAD")
    ]


def test_what_two_read_is_not_linked_to():
    alone = chain(("CONV_2D", (0,), 1), ("LOGISTIC", (1,), 2), outputs=(2,))
    assert [one.kernel.choice for one in fuse(alone, "powervr")] == ["conv"]
    swish = chain(("CONV_2D", (0,), 1), ("LOGISTIC", (1,), 2), ("MUL", (1, 2), 3), outputs=(3,))
    kernels = [one.kernel for one in fuse(swish, "powervr")]
    assert [kernel.moves for kernel in kernels] == [False, True] and kernels[1].muls == 1
    output = chain(("CONV_2D", (0,), 1), ("RELU", (1,), 2), outputs=(1, 2))
    assert len(fuse(output, "powervr")) == 2


def test_a_sum_goes_to_the_later_of_its_operands():
    graph = chain(("CONV_2D", (0,), 1), ("CONV_2D", (0,), 2), ("ADD", (1, 2), 3), ("RELU", (3,), 4), outputs=(4,))
    first, second = fuse(graph, "powervr")
    assert (first.operators, second.operators) == ((0,), (1, 2, 3))
    assert (first.kernel.adds, second.kernel.adds) == (0, 1)


def test_a_padding_merges_with_the_convolution_that_alone_reads_it():
    merged = chain(("PAD", (0,), 1), ("CONV_2D", (1,), 2), outputs=(2,))
    assert len(fuse(merged, "powervr")) == 1
    read_twice = chain(("PAD", (0,), 1), ("CONV_2D", (1,), 2), ("CONV_2D", (1,), 3), outputs=(2, 3))
    assert len(fuse(read_twice, "powervr")) == 3


def test_operators_nobody_published_are_told():
    graph = chain(("CONV_2D", (0,), 1), ("SOFTMAX", (1,), 2), outputs=(2,))
    assert not_measured(graph) == ["SOFTMAX"]
    assert [one.kernel.moves for one in fuse(graph, "powervr")] == [False, True, True]


def test_a_modelled_latency_has_the_form_of_a_measurement():
    built, profile = artifact("resnet-20-cifar"), load_profile("mi-11-gpu")
    found = measure(built.path, format="tflite", profile=profile)
    assert (found.runner, found.n, found.profile_version) == ("model", 1, profile.version)
    assert found.runtime.startswith("modelled") and found.state["modelled"] and found.state["carried_over"]
    assert found.low_ms < found.median_ms < found.high_ms
    assert found == type(found).from_json(found.to_json())
    assert found.state["dispatches"] == 23 and found.samples_ms == (found.median_ms,)


def test_what_cannot_be_modelled_says_so(tmp_path):
    profile = load_profile("pixel-4-gpu")
    with pytest.raises(UsageError) as caught:
        modelled(tmp_path / "net.onnx", "onnx", profile)
    assert caught.value.code == "FORMAT_NOT_MODELLED"
    (tmp_path / "net.tflite").write_bytes(b"not a flatbuffer")
    with pytest.raises(UsageError) as caught:
        modelled(tmp_path / "net.tflite", "tflite", profile)
    assert caught.value.code == "ARTIFACT_UNUSABLE"
