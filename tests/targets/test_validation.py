"""Validation networks: their sizes are the published ones, their artifacts compute them, published latencies parse."""

from __future__ import annotations

import json
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert.interpreter import Interpreter

from targets.errors import UsageError
from targets.profile import load_profile
from targets.runners.artifact import Samples, open_artifact
from targets.validation import build, tflite, validate, weights
from targets.validation.network import COLUMNS, load_network, network_names, read_network

# Sums over the operators of XNNPACK's models.
XNNPACK_MACS = {
    "mobilenet-v1": 568_741_376,
    "mobilenet-v2": 300_775_552,
    "mobilenet-v3-large": 216_591_040,
    "mobilenet-v3-small": 56_511_424,
}

# One of every operator, activation and kind of padding.
EVERYTHING = """\
# title: one of everything
# source: this test
op,channels,kernel,stride,groups,activation,padding,size,inputs,name
input,3,,,,,,16,,
conv,12,3,2,,,,8,,stem
hardswish,12,,,,,,8,,
conv,12,5,,12,relu6,,8,,wide
global_pool,12,,,,,,1,,
conv,6,1,,,relu,,1,,
conv,12,1,,,clip01,,1,,gate
mul,12,,,,,,8,wide gate,
conv,12,1,,,,,8,,
add,12,,,,relu,,8,stem wide,block
shuffle,12,,,3,,,8,,
conv,6,1,,3,,,8,,half
avg_pool,12,3,1,,,,8,block,pooled
concat,18,,,,,,8,half pooled,
max_pool,18,2,2,,,valid,4,,
upsample,18,,2,,,,8,,
conv,8,3,2,,,valid,3,,
tokens,8,,,,,,9,,rows
transpose,9,,,,,,8,,
linear,9,,,,,,8,,
transpose,8,,,,,,9,,mixed
add,8,,,,,,9,rows mixed,
linear,16,,,,,,9,,
gelu,16,,,,,,9,,
image,16,,,,,,3,,
flatten,144,,,,,,1,,
linear,10,,,,relu,,1,,
linear,5,,,,,,1,,
"""


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "everything.csv"
    path.write_text(EVERYTHING)
    return read_network(path)


def reference(network, drawn, x):
    """The network in torch, operator by operator; x: [1, height, width, channels]."""
    values = []

    def clip(value, activation):
        bounds = {"": (-math.inf, math.inf), "relu": (0, math.inf), "relu6": (0, 6), "clip01": (0, 1)}[activation]
        return value.clamp(*bounds)

    for index, layer in enumerate(network.layers):
        inputs = [values[source] for source in layer.inputs]
        kernel = bias = None
        if index in drawn:
            kernel, bias = torch.from_numpy(drawn[index].kernel), torch.from_numpy(drawn[index].bias)
        before, after = network.pads(index) if layer.op in ("conv", "max_pool", "avg_pool") else (0, 0)
        padding = (before, after, before, after)
        if layer.op == "input":
            value = torch.from_numpy(x).permute(0, 3, 1, 2)
        elif layer.op == "conv":
            padded = F.pad(inputs[0], padding)
            value = F.conv2d(padded, kernel.permute(0, 3, 1, 2), bias, layer.stride, groups=layer.groups)
        elif layer.op == "linear":
            rows = inputs[0].flatten(1)[None] if inputs[0].ndim == 4 else inputs[0]
            value = F.linear(rows, kernel.flatten(1), bias)
        elif layer.op in ("add", "mul"):
            value = inputs[0] + inputs[1] if layer.op == "add" else inputs[0] * inputs[1]
        elif layer.op == "max_pool":
            value = F.max_pool2d(F.pad(inputs[0], padding, value=-math.inf), layer.kernel, layer.stride)
        elif layer.op == "avg_pool":
            sums, counts = (
                F.avg_pool2d(F.pad(v, padding), layer.kernel, layer.stride, divisor_override=1)
                for v in (inputs[0], torch.ones_like(inputs[0]))
            )
            value = sums / counts
        elif layer.op == "global_pool":
            value = inputs[0].mean((2, 3), keepdim=True)
        elif layer.op == "concat":
            value = torch.cat(inputs, 1)
        elif layer.op == "upsample":
            value = F.interpolate(inputs[0], scale_factor=layer.stride, mode="bilinear", align_corners=False)
        elif layer.op == "shuffle":
            value = F.channel_shuffle(inputs[0], layer.groups)
        elif layer.op == "tokens":
            value = inputs[0].flatten(2).transpose(1, 2)
        elif layer.op == "image":
            value = inputs[0].transpose(1, 2).reshape(1, layer.shape[2], *layer.shape[:2])
        elif layer.op == "flatten":
            value = inputs[0].permute(0, 2, 3, 1).reshape(1, *layer.shape)
        else:
            value = {
                "transpose": lambda v: v.transpose(1, 2),
                "hardswish": F.hardswish,
                "gelu": F.gelu,
            }[layer.op](inputs[0])
        values.append(clip(value, layer.activation))
    return values[-1].numpy()


def outputs(network, precision, format, tmp_path):
    """Of the artifact in its runtime on this machine, as one row, in real units."""
    content, sample = build.contents(network, precision, format)
    (tmp_path / f"net.{format}").write_bytes(content)
    numpy.savez(tmp_path / "in.npz", input=sample)
    artifact = open_artifact(tmp_path / f"net.{format}", format)
    artifact.feed(Samples(tmp_path / "in.npz", artifact)[0])
    artifact.invoke()
    (output,) = artifact.outputs().values()
    if output.dtype == numpy.int8:
        scale = weights.activation_scales(network, build.ranges(network))[-1]
        output = (output.astype(numpy.float32) - scale.zero_point) * scale.scale
    return output.ravel()


@pytest.mark.parametrize("name", network_names())
def test_a_network_has_the_published_size(name):
    network = load_network(name)
    if network.published_macs:
        assert network.macs == pytest.approx(network.published_macs, rel=0.01)
    if network.published_params:
        assert network.params == pytest.approx(network.published_params, rel=0.02)
    assert network.macs == XNNPACK_MACS.get(name, network.macs)


def test_the_operators_are_xnnpacks():
    counts = {name: [layer.op for layer in load_network(name).layers] for name in XNNPACK_MACS}
    assert {name: len(ops) - 1 for name, ops in counts.items()} == dict(zip(XNNPACK_MACS, (29, 64, 113, 99)))
    large = counts["mobilenet-v3-large"]
    kinds = ("conv", "add", "global_pool", "hardswish", "mul")
    assert [large.count(kind) for kind in kinds] == [64, 10, 10, 21, 8]


@pytest.mark.parametrize("format", build.FORMATS)
def test_an_artifact_computes_what_torch_computes(everything, format, tmp_path):
    expected = reference(everything, weights.draw(everything), weights.sample(everything)).ravel()
    assert expected.std() > 0.01
    numpy.testing.assert_allclose(outputs(everything, "fp32", format, tmp_path), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet-20-cifar", "mobilenet-v3-small"])
@pytest.mark.parametrize("format", build.FORMATS)
def test_int8_stays_close_to_float(name, format, tmp_path):
    network = load_network(name)
    exact = outputs(network, "fp32", "tflite", tmp_path)
    rounded = outputs(network, "int8", format, tmp_path)
    assert numpy.corrcoef(exact, rounded)[0, 1] > 0.99
    assert numpy.abs(exact - rounded).max() < 0.1 * numpy.abs(exact).max()


@pytest.mark.parametrize("name, precision", [(name, "fp32") for name in XNNPACK_MACS] + [("mobilenet-v2", "int8")])
def test_xnnpack_takes_the_whole_network(name, precision):
    content, _ = build.contents(load_network(name), precision, "tflite")
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    operators = [operator["op_name"] for operator in interpreter._get_ops_details()]
    assert operators.count("DELEGATE") == 1
    assert len(operators) == 1 + len(load_network(name).layers) - 1


def test_operators_apart_compute_the_same_into_memory_of_their_own(tmp_path):
    network = load_network("mobilenet-v3-small")
    together, apart = (build.contents(network, "fp32", "tflite", apart=apart) for apart in (False, True))
    results = []
    for name, (content, sample) in (("together", together), ("apart", apart)):
        (tmp_path / f"{name}.tflite").write_bytes(content)
        numpy.savez(tmp_path / f"{name}.npz", input=sample)
        artifact = open_artifact(tmp_path / f"{name}.tflite", "tflite")
        artifact.feed(Samples(tmp_path / f"{name}.npz", artifact)[0])
        artifact.invoke()
        results.append(artifact.outputs())
    (expected,), found = results[0].values(), results[1]
    assert len(found) == sum(layer.op not in ("input", "tokens", "flatten", "image") for layer in network.layers)
    numpy.testing.assert_array_equal(list(found.values())[-1].ravel(), expected.ravel())


def test_an_artifact_is_built_once_and_always_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    first = build.artifact("resnet-20-cifar", "int8")
    content = first.path.read_bytes()
    assert content == build.contents(load_network("resnet-20-cifar"), "int8", "tflite")[0]
    monkeypatch.setattr(tflite, "build", lambda *_: pytest.fail("it was built again"))
    assert build.artifact("resnet-20-cifar", "int8") == first


@pytest.mark.parametrize(
    "lines, said",
    [
        ("input,3,,,,,,16,,\nconv,8,3,2,,,,9,,\n", "8x8x8"),
        ("input,3,,,,,,16,,\nconv,8,3,,2,,,16,,\n", "2 groups"),
        ("input,3,,,,,,16,,\ndeconv,8,3,,,,,16,,\n", "'deconv'"),
        ("input,3,,,,,,16,,\nadd,3,,,,,,16,a b,\n", "'a'"),
        ("conv,8,3,,,,,16,,\n", "the first line is the input"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, lines, said):
    (tmp_path / "bad.csv").write_text(f"# title: t\n# source: s\n{','.join(COLUMNS)}\n{lines}")
    with pytest.raises(UsageError) as caught:
        read_network(tmp_path / "bad.csv")
    assert caught.value.code == "NETWORK_INVALID" and said in caught.value.why
    assert caught.value.where.endswith(f":{3 + lines.count(chr(10))}")


def test_every_published_latency_can_be_run():
    rows = validate.published()
    assert len({validate._key(row) for row in rows}) == len(rows) >= 14
    for row in rows:
        assert row.network in network_names() and row.precision in build.PRECISIONS
        assert 1 <= row.threads <= load_profile(row.profile).cores
        assert row.published_ms > 0 and row.source and row.runtime
        assert row.comparable in ("same runtime", "other runtime")


def test_a_choice_without_published_latencies_is_refused():
    assert {row.threads for row in validate.choose(["pixel-3a-cpu"], [2])} == {2}
    with pytest.raises(UsageError) as caught:
        validate.choose(["pixel-3a-cpu"], [7])
    assert caught.value.code == "NOTHING_PUBLISHED"
    with pytest.raises(UsageError) as caught:
        validate.choose(["pixel-3"])
    assert caught.value.code == "TARGET_UNKNOWN"


def case(network="mobilenet-v1", emulated_ms=100.0, published_ms=100.0, version=None, **facts):
    profile = load_profile("pixel-3a-cpu")
    given = {"threads": 1, "precision": "fp32", "runtime": "r", "source": "s", "note": "", "comparable": "same runtime"}
    return validate.Case(
        profile=profile.name,
        network=network,
        published_ms=published_ms,
        core=profile.core.name,
        emulated_ms=emulated_ms,
        emulated_runtime="tflite-runtime 2.14.0",
        profile_version=version or profile.version,
        **{**given, **facts},
    )


def test_agreement_order_and_operations_a_cycle():
    found = validate.agreement([case(emulated_ms=ms) for ms in (90, 102, 130)])
    assert (found.count, found.close) == (3, 2)
    assert found.median_error == pytest.approx(0.1) and found.worst_error == pytest.approx(0.3)
    ordered = validate.order([case(published_ms=p, emulated_ms=e) for p, e in ((10, 20), (20, 44), (30, 54))])
    assert ordered.rank_correlation == pytest.approx(1)
    assert ordered.ratio == pytest.approx(2) and ordered.spread == pytest.approx(2.2 / 1.8)
    flop = 2 * XNNPACK_MACS["mobilenet-v1"] / (100e-3 * load_profile("pixel-3a-cpu").clock_ghz * 1e9)
    assert case().flop_per_cycle(100) == pytest.approx(flop)
    assert case(threads=2).flop_per_cycle(100) == pytest.approx(flop / 2)


def test_new_results_replace_old_ones_and_those_of_a_changed_profile_go(monkeypatch, tmp_path):
    monkeypatch.setattr(validate, "RESULTS", tmp_path / "results.json")
    rows = [row for row in validate.published() if row.profile == "pixel-3a-cpu" and row.threads == 1]
    first, second, third = (
        case(**{name: getattr(row, name) for name in vars(row) if name != "profile"}) for row in rows[:3]
    )
    stale = validate.Case(**{**vars(third), "profile_version": "0" * 12})
    validate.write(validate.Results("c", "d", {}, (first, second, stale)))
    assert validate.read().cases == (first, second)
    record = json.loads(validate.RESULTS.read_text())
    del record["cases"][1]["emulated_runtime"]
    validate.RESULTS.write_text(json.dumps(record))
    assert validate.read().cases == (first,), "a case of an earlier planish says less"
    validate.write(validate.Results("c", "d", {}, (first, second)))
    again = validate.Case(**{**vars(second), "emulated_ms": 1.0})
    merged = validate.merge([again], {"qemu": "1"}, "planish targets validate")
    validate.write(merged)
    assert validate.read() == merged and merged.cases == (first, again)
