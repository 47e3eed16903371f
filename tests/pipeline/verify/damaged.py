"""Artifacts that went wrong in the ways converters go wrong: ONNX graphs with an operator too many."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from pipeline.export.artifact import Artifact, sha256_of


def added(artifact: Artifact, directory: Path, kind: str, limit: float) -> Artifact:
    """`artifact` with a term added to its first class score, which only some inputs show.

    Args:
        kind: "brightness": as far as a pixel lies above `limit`, an activation folded wrongly; "overflow": NaN where
            the largest pixel lies above it; "darkness": where every pixel lies below it, a bias of the padding.
    """
    model = onnx.load(artifact.path)
    x, out = model.graph.input[0].name, model.graph.output[0].name
    _rename_output(model, out, "scores_before")
    _constants(model, limit=np.float32(limit), nothing=np.float32(0), axis=np.int64([1]), axes=np.int64([1, 2, 3]))
    _constants(model, pick=np.eye(1, model.graph.output[0].type.tensor_type.shape.dim[1].dim_value, dtype=np.float32))
    nodes = {
        "brightness": [
            ("Sub", [x, "limit"], "above"),
            ("Relu", ["above"], "switched"),
            ("ReduceMax", ["switched", "axes"], "term"),
            ("Mul", ["column", "pick"], "added"),
        ],
        "overflow": [
            ("ReduceMax", [x, "axes"], "largest"),
            ("Sub", ["limit", "largest"], "room"),
            ("Sqrt", ["room"], "root"),
            ("Mul", ["root", "nothing"], "term"),
            ("Mul", ["column", "pick"], "added"),
        ],
        "darkness": [
            ("ReduceMax", [x, "axes"], "largest"),
            ("Sub", ["limit", "largest"], "below"),
            ("Relu", ["below"], "term"),
            ("Mul", ["column", "pick"], "added"),
        ],
    }[kind]
    nodes.insert(-1, ("Unsqueeze", ["term", "axis"], "column"))
    nodes.append(("Add", ["scores_before", "added"], out))
    for operator, inputs, output in nodes:
        attributes = {"keepdims": 0} if operator == "ReduceMax" else {}
        model.graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
    return _written(artifact, model, directory)


def with_classes_rotated(artifact: Artifact, directory: Path) -> Artifact:
    """Every score under the next class."""
    model = onnx.load(artifact.path)
    out, count = model.graph.output[0].name, model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    _rename_output(model, out, "scores_before")
    _constants(model, order=np.roll(np.arange(count), 1))
    model.graph.node.append(helper.make_node("Gather", ["scores_before", "order"], [out], axis=1))
    return _written(artifact, model, directory)


def with_nothing_answered(artifact: Artifact, directory: Path) -> Artifact:
    """Zeros, whatever goes in."""
    model = onnx.load(artifact.path)
    out = model.graph.output[0].name
    _rename_output(model, out, "scores_before")
    _constants(model, nothing=np.float32(0))
    model.graph.node.append(helper.make_node("Mul", ["scores_before", "nothing"], [out]))
    return _written(artifact, model, directory)


def with_layout_mistaken(artifact: Artifact, directory: Path) -> Artifact:
    """Reads the memory of its NCHW input as if it were NHWC: every shape is right, every pixel elsewhere."""
    model = onnx.load(artifact.path)
    x = model.graph.input[0]
    _, channels, height, width = (size.dim_value for size in x.type.tensor_type.shape.dim)
    for node in model.graph.node:
        node.input[:] = ["mistaken" if name == x.name else name for name in node.input]
    _constants(model, as_nhwc=np.int64([1, height, width, channels]))
    model.graph.node.insert(0, helper.make_node("Transpose", ["nhwc"], ["mistaken"], perm=(0, 3, 1, 2)))
    model.graph.node.insert(0, helper.make_node("Reshape", [x.name, "as_nhwc"], ["nhwc"]))
    return _written(artifact, model, directory)


def _rename_output(model: ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]


def _constants(model: ModelProto, **arrays: np.ndarray) -> None:
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())


def _written(artifact: Artifact, model: ModelProto, directory: Path) -> Artifact:
    onnx.checker.check_model(model, full_check=True)
    path = directory / artifact.path.name
    onnx.save(model, path)
    return dataclasses.replace(artifact, path=path, sha256=sha256_of(path))
