"""From what converters really say to the user's module, line and a remedy. No converter runs here."""

import json

import pytest
import torch
from refused_networks import HERE, line_of, program

from pipeline.export.failure import Failure, Place, blamed, clean, explain, place, source_of
from pipeline.export.remedies import remedies

MIDDLE = Place("middle", "Middle", f"{HERE}:{line_of('# the user')}")


def onnx_error(node: str, operator: str) -> Exception:
    """As torch's ONNX exporter raises it: three exceptions, the last of which says something."""
    name, overload = operator.rsplit(".", 1)
    try:
        try:
            raise LookupError(
                f"No ONNX function found for <OpOverload(op='{name}', overload='{overload}')>. Failure message: No "
                "decompositions registered for the real-valued input"
            )
        except LookupError as inner:
            raise RuntimeError(
                f"Error when translating node %{node} : [num_users=1] = call_function[target=torch.ops.{operator}]"
                "(args = (%conv2d,), kwargs = {}). See the stack trace for more information."
            ) from inner
    except RuntimeError as middle:
        try:
            raise RuntimeError(
                "Failed to convert the exported program to an ONNX model. \x1b[96mThis is step 3/3\x1b[0m"
            ) from middle
        except RuntimeError as error:
            return error


def litert_error(refused: str, node: str, operator: str) -> Exception:
    """As litert-torch raises it: the operator after its decompositions, then the line that it comes from."""
    return RuntimeError(
        f"Lowering not found: aten.{refused}.default\n\nWhile executing %{refused} : [num_users=1] = call_function["
        f"target=torch.ops.aten.{refused}.default](args = (%clone_4,), kwargs = {{}})\nOriginal traceback:\nFile "
        '"/env/lib/python3.11/site-packages/litert_torch/_convert/to_channel_last_io.py", line 56, in forward\n    '
        'outputs = self.wrapped(*args, **kwargs)\n  File "<eval_with_key>.273", line 10, in forward\n    '
        f"{node} = torch.ops.aten.{operator}.default(conv2d);  conv2d = None\nUse tlparse to see full graph. (https://x.y)"
    )


CORE = (
    "\nOperator torch._ops.aten.i0.default is not in Core ATen opset (https://pytorch.org/docs/compiler_ir.html)."
    '"\nThere are a few things to try:\n1. You can proceed with `to_edge(compile_config=EdgeCompileConfig())`.'
)


@pytest.mark.parametrize(
    ("format", "error", "operator", "sentence"),
    [
        ("onnx", onnx_error("roll", "aten.roll.default"), "aten.roll", "No ONNX function found for aten.roll."),
        ("tflite", litert_error("i0", "special_i0", "special_i0"), "aten.special_i0", "Lowering not found: aten.i0"),
        ("pte", ValueError(CORE), "aten.special_i0", "Operator aten.i0.default is not in Core ATen opset"),
        (
            "coreml",
            NotImplementedError("Unsupported fx node special_i0, kind special_i0"),
            "aten.special_i0",
            "Unsupported fx node special_i0",
        ),
        (
            "tflite",
            ValueError(
                "Didn't find op for builtin opcode 'STABLEHLO_SORT' version '1'. Are you using an old binary?\n"
            ),
            "aten.topk",
            "The runtime has no operator STABLEHLO_SORT.",
        ),
    ],
)
def test_operator_module_and_line_from_the_message(format, error, operator, sentence):
    refusing = {
        "aten.roll": lambda x: torch.roll(x, 1, 2),
        "aten.special_i0": torch.special.i0,
        "aten.topk": lambda x: x.topk(3, -1)[0],
    }
    failure = explain(error, program(refusing[operator]), format, seconds=0)
    assert (failure.operator, failure.places, failure.found) == (operator, (MIDDLE,), "named")
    assert failure.sentence.startswith(sentence)
    assert failure.remedies and not any(noise in failure.sentence for noise in ("\x1b", "\n", "http", "site-packages"))
    lines = str(failure.error("ONNX", network="network.pt2", log="onnx.log")).splitlines()
    assert lines[0] == f"error[EXPORT_FAILED]: The operator {operator} cannot be exported to ONNX."
    assert lines[1].startswith("  where: middle (Middle), ") and lines[1].endswith(
        f"refused_networks.py:{MIDDLE.source.rpartition(':')[2]}"
    )
    assert failure.remedies[0] in lines[3] and "onnx.log" in lines[3] and len(lines) == 4
    assert Failure.from_json(json.loads(json.dumps(failure.to_json()))) == failure


def test_operator_named_only_behind_decompositions():
    """ONNX's exporter names prims.prod, which the user never wrote."""
    network = program(lambda x: x.cumprod(1))
    failure = explain(onnx_error("prod", "prims.prod.default"), network, "onnx", seconds=0)
    assert (failure.operator, failure.places) == ("aten.cumprod", (MIDDLE,))


def test_the_call_that_the_message_names_comes_first():
    """Of two softmaxes the second is named; both are told."""
    network = program(lambda x: (x.softmax(1) + 1).softmax(2))
    last = [node for node in network.graph.nodes if str(node.target) == "aten.softmax.int"][-1]
    error = RuntimeError(
        f"While executing %{last.name} : [num_users=1] = call_function[target=torch.ops.{last.target}]()"
    )
    assert explain(error, network, "onnx", seconds=0).operator == "aten.softmax.int"


def test_nothing_is_made_up():
    """A message about nothing in the network, and a network that was never read."""
    for network in (program(torch.sin), None):
        failure = explain(KeyError("weight"), network, "onnx", seconds=0)
        assert (failure.operator, failure.places, failure.sentence) == ("", (), "KeyError: 'weight'")
        error = failure.error("ONNX", network="net.pt2", log="x.log")
        assert error.what == "The network could not be exported to ONNX." and error.where == "net.pt2"


def test_first_refused_in_place_says_so():
    network = program(torch.sin)
    node = next(node for node in network.graph.nodes if str(node.target) == "aten.sin.default")
    failure = blamed(Failure("tflite", "", (), "Token mismatch.", ()), [node], "in place")
    assert failure.error("TFLite", network="n", log="l").why.endswith("not with it: Token mismatch.")


def test_clean():
    legal = (
        "Failed to run converter passes: <eval_with_key>.39:12:0: error: failed to legalize operation 'tfl.exp' that "
        'was explicitly marked illegal: %14 = "tfl.exp"(%13) : (tensor<1xf64>) -> tensor<1xf64>\n'
    )
    assert clean(ValueError(legal)) == (
        "Failed to run converter passes: failed to legalize operation 'tfl.exp' of tensor<1xf64>"
    )
    assert clean(ValueError("word " * 1000)).endswith("word …") and len(clean(ValueError("word " * 1000))) < 330
    assert clean(AssertionError()) == "AssertionError: no message"


def test_remedies():
    assert remedies("aten.roll.default", "") == remedies("aten.roll", "") != ()
    assert "matrix" in remedies("aten._linalg_svd.default", "")[0]
    assert "PyTorch's own" in remedies("mine.swirl.default", "")[0]
    assert remedies("aten.exp.default", "tensor<1xf64>") == (
        "compute in float32: x.float() in place of x.double() or a half",
    )
    assert "logical_and" in remedies("aten.__and__.Scalar", "")[0]
    assert remedies("aten.relu.default", "out of luck") == ()


def test_places_survive_saving_and_decompositions(tmp_path):
    torch.export.save(program(lambda x: torch.roll(x, 1, 2)), tmp_path / "n.pt2")
    network = torch.export.load(tmp_path / "n.pt2")
    places = {str(node.target): place(node) for node in network.graph.nodes if node.op == "call_function"}
    assert places["aten.roll.default"] == MIDDLE and places["aten.conv2d.default"].module == "body.0"
    derived = network.run_decompositions()
    parts = [node for node in derived.graph.nodes if node.op == "call_function"]
    sources = [source_of(node, network) for node in parts]
    assert None not in sources
    assert {str(source.target) for source in sources} == set(places)
