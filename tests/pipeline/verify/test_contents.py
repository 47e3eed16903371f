"""What is read of real exports when nothing but the file is at hand."""

from __future__ import annotations

import pytest
from export_networks import CHANNELS, CLASSES, HEIGHT, WIDTH, exported

from pipeline.verify.contents import contents_of


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "kind", "shape"),
    [
        ("onnx", "Conv", (1, CHANNELS, HEIGHT, WIDTH)),
        ("ort", "Conv", (1, CHANNELS, HEIGHT, WIDTH)),
        ("tflite", "CONV_2D", (1, HEIGHT, WIDTH, CHANNELS)),
        ("pte", "XNNConv2d", (1, CHANNELS, HEIGHT, WIDTH)),
    ],
)
def test_every_format_tells_its_border_and_its_operators(format, kind, shape):
    artifact = exported("residual", format)
    found = contents_of(artifact.path)
    assert (found.format, found.bytes, found.sha256) == (format, artifact.bytes, artifact.sha256)
    assert [(each.shape, each.dtype) for each in found.inputs] == [(shape, "float32")]
    assert [(each.shape, each.dtype) for each in found.outputs] == [((1, CLASSES), "float32")]
    assert sum(count for name, count in found.operators.items() if "Conv" in name or "CONV" in name) == 6, found
    assert kind in found.operators
