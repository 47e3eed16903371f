"""The first block that an artifact gets wrong: weights changed and operators replaced in the exported file itself."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from export_networks import images, workspace
from networks.mobilenet import InvertedResidual, conv_bn_relu6
from networks.resnet import CifarResNet
from networks.small import randomise_norms
from networks.vit import ViT
from torch import Tensor, nn

from pipeline.export.artifact import Artifact, sha256_of
from pipeline.export.child import export
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network
from pipeline.verify.correspondence import EQUAL
from pipeline.verify.culprit import BlockError, Culprit, search
from pipeline.verify.execute import run_artifact, to_layout
from pipeline.verify.failed import keep_failed
from pipeline.verify.levels import check_host
from pipeline.verify.reference import Reference

pytestmark = [pytest.mark.export, pytest.mark.slow]
SAMPLES = 8


class Chain(nn.Module):
    """Convolutions and ReLUs one after the other, without norms: the file holds the weights as the network does."""

    def __init__(self) -> None:
        super().__init__()
        layers, inputs = [], 3
        for width in (8, 8, 8, 12, 12):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        self.features = nn.Sequential(*layers[:6], nn.MaxPool2d(2), *layers[6:])
        self.classifier = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Mobile(nn.Module):
    """A MobileNetV2 of five blocks, two of them with a skip."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((8, 8, 1, 1), (8, 12, 2, 6), (12, 12, 1, 6), (12, 16, 2, 6), (16, 16, 1, 6))
        self.features = nn.Sequential(
            conv_bn_relu6(3, 8, stride=2),
            *(InvertedResidual(*shape) for shape in shapes),
            conv_bn_relu6(16, 32, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


NETWORKS = {
    "residual": lambda: CifarResNet(2),
    "chain": Chain,
    "mobile": Mobile,
    "transformer": lambda: ViT(32, 3, 2, size=28, patch=4, channels=1, classes=10),
}
BLOCKS = {  # of each network, as a person would name them; layers outside are named themselves
    "residual": [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1)],
    "chain": [],
    "mobile": [f"features.{index}" for index in range(7)],
    "transformer": [f"blocks.{index}" for index in range(3)],
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def samples(name: str) -> np.ndarray:
    pixels = images(SAMPLES)
    return (
        np.ascontiguousarray(np.pad(pixels[:, :1], ((0, 0), (0, 0), (0, 0), (2, 2))))
        if name == "transformer"
        else pixels
    )


@cache
def network(name: str) -> Network:
    torch.manual_seed(0)
    model = randomise_norms(NETWORKS[name]())
    return from_program(export_program(model, (torch.from_numpy(samples(name)[:2]),)))


@cache
def exported(name: str, format: str) -> Artifact:
    saved = workspace() / f"culprit-{name}.pt2"
    if not saved.exists():
        torch.export.save(network(name).exported(), saved)
    return export(saved, format=format, directory=workspace() / f"culprit-{name}", log=workspace() / "culprit.log")


def layers(name: str) -> list[str]:
    """The layers that multiply by weights, in the order of execution."""
    return [path for path, layer in network(name).layers().items() if isinstance(layer, nn.Conv2d | nn.Linear)]


def block(name: str, layer: str) -> str:
    return next((block for block in BLOCKS[name] if layer.startswith(f"{block}.")), layer)


# --- what is done to a file ---------------------------------------------------------------------------------------

Change = Callable[[np.ndarray], np.ndarray]


def changed(artifact: Artifact, content: bytes, folder: Path) -> Artifact:
    path = folder / artifact.path.name
    path.write_bytes(content)
    return dataclasses.replace(artifact, path=path, sha256=sha256_of(path))


def with_weights(artifact: Artifact, index: int, change: Change, folder: Path) -> Artifact:
    """The artifact with the weights of its operator number `index` changed, of those that multiply by weights."""
    return changed(
        artifact, {"onnx": _onnx_with, "tflite": _tflite_with}[artifact.format](artifact, index, change), folder
    )


def _onnx_with(artifact: Artifact, index: int, change: Change) -> bytes:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(artifact.path)
    weights = {weight.name: weight for weight in model.graph.initializer}
    used = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    weight = weights[[name for name in used if name in weights][index]]
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), weight.name))
    return model.SerializeToString()


def _tflite_with(artifact: Artifact, index: int, change: Change) -> bytes:
    from ai_edge_litert.schema_py_generated import BuiltinOperator, ModelT

    model = ModelT.InitFromPackedBuf(artifact.path.read_bytes(), 0)
    graph = model.subgraphs[0]
    kinds = (BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D, BuiltinOperator.FULLY_CONNECTED)
    operators = [
        operator for operator in graph.operators if model.operatorCodes[operator.opcodeIndex].builtinCode in kinds
    ]
    buffers = [model.buffers[graph.tensors[operator.inputs[1]].buffer] for operator in operators]
    buffer = [buffer for buffer in buffers if buffer.data is not None][index]
    weights = change(np.frombuffer(bytes(buffer.data), np.float32))
    buffer.data = np.frombuffer(weights.tobytes(), np.uint8)
    return packed(model)


def packed(model) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def noise(relative: float) -> Change:
    """Gaussian, `relative` to the weights' standard deviation."""

    def change(weights: np.ndarray) -> np.ndarray:
        drawn = np.random.default_rng(1).standard_normal(weights.shape)
        return (weights + relative * weights.std() * drawn).astype(np.float32)

    return change


def output_error(artifact: Artifact, name: str) -> float:
    found = run_artifact(artifact, to_layout(samples(name), artifact.inputs[0]))[0]
    with torch.no_grad():
        expected = network(name)(torch.from_numpy(samples(name))).numpy()
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def just_wrong(artifact: Artifact, name: str, index: int, folder: Path) -> Artifact:
    """Changed by so little that its outputs are off by about twice what parity permits."""
    trial = 0.01
    for _ in range(2):  # of small changes the outputs' error is a multiple
        found = output_error(with_weights(artifact, index, noise(trial), folder), name)
        trial *= 2e-3 / found
    wrong = with_weights(artifact, index, noise(trial), folder)
    assert 1e-3 < output_error(wrong, name) < 4e-3
    return wrong


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["onnx", "tflite"])
@pytest.mark.parametrize("name", NETWORKS)
def test_artifact_as_exported_has_no_culprit(name, format, tmp_path):
    found = search(exported(name, format), network(name), samples(name), folder=tmp_path / "culprit")
    assert found.block is None and found.module is None and found.wrong == () and found.reproducer is None
    assert len(found.blocks) >= len(layers(name)) and max(block.value for block in found.blocks) < 1e-5
    assert not (tmp_path / "culprit").exists()


@pytest.mark.parametrize("size", ["just wrong", "wrong", "all wrong"])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
@pytest.mark.parametrize("name", NETWORKS)
def test_changed_weights_are_found_in_their_block(name, format, size, tmp_path):
    """Each size at every third layer, and the first and the last layer always: all layers are had."""
    artifact, paths = exported(name, format), layers(name)
    start = ["just wrong", "wrong", "all wrong"].index(size)
    for index in sorted({0, *range(start, len(paths), 3), len(paths) - 1}):
        if size == "just wrong":
            wrong = just_wrong(artifact, name, index, tmp_path)
        else:
            wrong = with_weights(artifact, index, noise({"wrong": 0.1, "all wrong": 5.0}[size]), tmp_path)
        found = search(wrong, network(name), samples(name), folder=tmp_path / str(index))
        assert (found.block, found.module) == (block(name, paths[index]), paths[index])
        assert found.wrong == (found.block,)


@pytest.mark.parametrize("format", ["ort", "pte"])
def test_changed_weights_inside_a_fused_file(format, tmp_path):
    """ORT's fused operators and XNNPACK's partitions, whose values no runtime shows by itself."""
    artifact = exported("chain", format)
    assert search(artifact, network("chain"), samples("chain"), folder=tmp_path / "none").block is None
    content = artifact.path.read_bytes()
    for path in layers("chain")[1::2]:
        weight = network("chain").layer(path).weight.detach()
        stored = weight.permute(0, 2, 3, 1) if format == "pte" and weight.ndim == 4 else weight
        stored = stored.contiguous().numpy()
        assert content.count(stored.tobytes()) == 1
        wrong = changed(artifact, content.replace(stored.tobytes(), noise(0.1)(stored).tobytes()), tmp_path)
        found = search(wrong, network("chain"), samples("chain"), folder=tmp_path / path)
        assert (found.block, found.wrong) == (path, (path,))


def test_two_wrong_blocks_are_both_told(tmp_path):
    artifact, paths = exported("residual", "onnx"), layers("residual")
    once = with_weights(artifact, paths.index("layer1.1.conv2"), noise(0.3), tmp_path)
    twice = with_weights(once, paths.index("layer3.0.conv1"), noise(0.3), tmp_path)
    found = search(twice, network("residual"), samples("residual"), folder=tmp_path / "culprit")
    assert found.block == "layer1.1" and found.wrong == ("layer1.1", "layer3.0")


def test_errors_by_depth(tmp_path):
    """Behind the culprit all values are off, but none by itself; before it all are right."""
    paths = layers("residual")
    wrong = with_weights(exported("residual", "onnx"), paths.index("layer2.0.conv2"), noise(0.3), tmp_path)
    found = search(wrong, network("residual"), samples("residual"), folder=tmp_path / "culprit")
    (at,) = [index for index, entry in enumerate(found.blocks) if entry.own > EQUAL]
    assert found.blocks[at].block == "layer2.0"
    assert max(entry.value for entry in found.blocks[:at]) < 1e-5
    # The skip beside the wrong convolution is right, and what parts from it alone is, too.
    behind = [entry for entry in found.blocks[at + 1 :] if entry.module != "layer2.0.pad"]
    assert min(entry.value for entry in behind) > 1e-3 and found.blocks[-1].module == "linear"
    assert found.samples == 4 and "inside the artifact" in found.looked_into


def test_weight_that_is_not_a_number(tmp_path):
    def broken(weights: np.ndarray) -> np.ndarray:
        weights = weights.copy()
        weights.flat[0] = np.nan
        return weights

    paths = layers("residual")
    wrong = with_weights(exported("residual", "onnx"), paths.index("layer2.1.conv1"), broken, tmp_path)
    found = search(wrong, network("residual"), samples("residual"), folder=tmp_path / "culprit")
    assert found.block == "layer2.1"
    assert Culprit.from_json(json.loads(json.dumps(found.to_json(tmp_path), allow_nan=False)), tmp_path) == found


# --- operators ----------------------------------------------------------------------------------------------------


def test_replaced_activation(tmp_path):
    """The third ReLU of the file has become a leaky one."""
    import onnx

    artifact = exported("chain", "onnx")
    model = onnx.load(artifact.path)
    relu = [node for node in model.graph.node if node.op_type == "Relu"][2]
    relu.op_type = "LeakyRelu"
    relu.attribute.append(onnx.helper.make_attribute("alpha", 0.05))
    wrong = changed(artifact, model.SerializeToString(), tmp_path)
    found = search(wrong, network("chain"), samples("chain"), folder=tmp_path / "culprit")
    assert found.block == "features.5" and found.wrong == ("features.5",)


def test_padding_on_the_wrong_side(tmp_path):
    import onnx

    artifact, paths = exported("residual", "onnx"), layers("residual")
    model = onnx.load(artifact.path)
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][paths.index("layer1.1.conv1")]
    pads = next(attribute for attribute in convolution.attribute if attribute.name == "pads")
    assert list(pads.ints) == [1, 1, 1, 1]
    pads.ints[:] = [0, 0, 2, 2]
    wrong = changed(artifact, model.SerializeToString(), tmp_path)
    found = search(wrong, network("residual"), samples("residual"), folder=tmp_path / "culprit")
    assert (found.block, found.module, found.wrong) == ("layer1.1", "layer1.1.conv1", ("layer1.1",))


def test_forgotten_activation_of_a_fused_operator(tmp_path):
    from ai_edge_litert.schema_py_generated import ActivationFunctionType, BuiltinOperator, ModelT

    artifact, paths = exported("mobile", "tflite"), layers("mobile")
    model = ModelT.InitFromPackedBuf(artifact.path.read_bytes(), 0)
    kinds = (BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D)
    operators = model.subgraphs[0].operators
    convolutions = [
        operator for operator in operators if model.operatorCodes[operator.opcodeIndex].builtinCode in kinds
    ]
    options = convolutions[paths.index("features.3.conv.1.0")].builtinOptions
    assert options.fusedActivationFunction == ActivationFunctionType.RELU6
    options.fusedActivationFunction = ActivationFunctionType.NONE
    wrong = changed(artifact, packed(model), tmp_path)
    found = search(wrong, network("mobile"), samples("mobile"), folder=tmp_path / "culprit")
    assert found.block == "features.3" and found.wrong == ("features.3",)


# --- what is left behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layer"), [("residual", "layer2.1.conv2"), ("transformer", "blocks.1.qkv")])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_reproducer_shows_the_error_alone(name, layer, format, tmp_path):
    wrong = with_weights(exported(name, format), layers(name).index(layer), noise(0.3), tmp_path)
    found = search(wrong, network(name), samples(name), folder=tmp_path / "culprit")
    assert found.reproducer == tmp_path / "culprit"
    assert {file.name for file in found.reproducer.iterdir()} == {"README.txt", "block.pt2", "values.npz"}
    values = np.load(found.reproducer / "values.npz")
    part = torch.export.load(found.reproducer / "block.pt2").module()
    inputs = [torch.from_numpy(values[key]) for key in values.files if key.startswith("input_")]
    with torch.no_grad():
        np.testing.assert_allclose(part(*inputs).numpy(), values["expected"], rtol=1e-5, atol=1e-6)
    worst = next(entry.own for entry in found.blocks if entry.own > EQUAL)
    scale = np.sqrt(np.mean(values["expected"] ** 2))
    assert np.sqrt(np.mean((values["given"] - values["expected"]) ** 2)) / scale == pytest.approx(worst, rel=0.5)
    text = (found.reproducer / "README.txt").read_text()
    assert layer in text and wrong.sha256 in text and "torch.export.load" in text
    assert sum(file.stat().st_size for file in found.reproducer.iterdir()) < 1_000_000


def test_culprit_survives_json(tmp_path):
    blocks = (BlockError("a.conv", "a", 1e-7, 0.0), BlockError("b.conv", "b", float("inf"), 0.5))
    for folder, name in itertools.product([None, tmp_path / "run" / "culprit"], [None, "b"]):
        culprit = Culprit(name, name and "b.conv", ("b",), blocks, "12 values inside the artifact", 4, folder)
        data = json.loads(json.dumps(culprit.to_json(tmp_path), allow_nan=False))
        assert Culprit.from_json(data, tmp_path) == culprit


def test_what_is_kept_of_a_failure(tmp_path: Path) -> None:
    broken = with_weights(exported("chain", "onnx"), 2, lambda weights: weights + 0.05, tmp_path)
    reference = Reference.of(network("chain").graph, samples("chain"))
    parity = check_host(broken, reference)
    assert parity.failed
    folder = tmp_path / "failed" / "chain"
    for _ in range(2):  # the second replaces the first
        error = keep_failed(folder, parity, network("chain"), broken, reference)
    assert error.code == "PARITY_FAILED" and "The first block to go wrong is features.4" in error.why
    assert str(folder / "index.html") in error.fix and "features.4" in (folder / "index.html").read_text()
    assert sha256_of(folder / broken.path.name) == broken.sha256
    found = Culprit.from_json(json.loads((folder / "culprit.json").read_text()), folder)
    assert found.block == "features.4" and (found.reproducer / "values.npz").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["chain"]  # nothing half-written beside it
