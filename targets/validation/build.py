"""Artifacts of the validation networks: built once from their data and kept in the cache, always the same bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy

from targets.cache import cache_root, staged_directory
from targets.probes import flatbuffer
from targets.validation import network as network_module
from targets.validation import onnx, tflite, weights
from targets.validation.network import Network, load_network
from targets.validation.weights import Range

PRECISIONS = ("fp32", "int8")
FORMATS = ("tflite", "onnx")


@dataclass(frozen=True)
class Built:
    """An artifact of a network with one sample for it, ready for `targets.measure`."""

    path: Path
    inputs: Path  # .npz
    format: str


def artifact(name: str, precision: str = "fp32", format: str = "tflite", *, apart: bool = False) -> Built:
    """The network called `name` as an artifact, from the cache or built now.

    Args:
        precision: "fp32" or "int8".
        format: "tflite" or "onnx".
        apart: see `tflite.build`; for TFLite alone.

    Raises:
        UsageError: `NETWORK_UNKNOWN`, `NETWORK_INVALID`.
    """
    network = load_network(name)
    version = hashlib.sha256((network.sha256 + _builder_version()).encode()).hexdigest()[:12]
    folder = cache_root() / "validation" / f"{name}-{precision}{'-apart' if apart else ''}-{format}-{version}"
    if not folder.exists():
        content, sample = contents(network, precision, format, apart=apart)
        with staged_directory(folder) as staging:
            (staging / f"{name}.{format}").write_bytes(content)
            numpy.savez(staging / "input.npz", input=sample)
    return Built(folder / f"{name}.{format}", folder / "input.npz", format)


def contents(network: Network, precision: str, format: str, *, apart: bool = False) -> tuple[bytes, numpy.ndarray]:
    """The artifact's bytes and one input in its layout and type."""
    drawn, sample = weights.draw(network), weights.sample(network)
    scales = None
    if precision == "int8":
        scales = weights.activation_scales(network, ranges(network))
    if format == "onnx":
        return onnx.build(network, drawn, scales), numpy.ascontiguousarray(sample.transpose(0, 3, 1, 2))
    model = tflite.build(network, drawn, scales, apart=apart)
    return model, sample if scales is None else weights.quantise(sample, scales[0])


def ranges(network: Network) -> list[Range]:
    """Least and largest output of each layer on the sample, as the float32 TFLite model gives them on this machine."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=tflite.build(network, weights.draw(network)),
        num_threads=1,
        # The delegate keeps intermediate values to itself.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], weights.sample(network))
    interpreter.invoke()
    tensors = {detail["name"]: detail["index"] for detail in interpreter.get_tensor_details()}
    values = (interpreter.get_tensor(tensors[f"v{index}"]) for index in range(len(network.layers)))
    # Three digits, so that another machine's last bits do not make another artifact.
    return [(float(f"{value.min():.2e}"), float(f"{value.max():.2e}")) for value in values]


def _builder_version() -> str:
    """Changes when the code that builds artifacts does."""
    modules = (flatbuffer, network_module, weights, tflite, onnx)
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in modules)).hexdigest()
