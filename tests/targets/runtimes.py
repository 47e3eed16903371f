"""One real network as the three runtimes take it, in fp32 and int8, by each runtime's own converter and quantiser.

usage: python runtimes.py FOLDER writes FOLDER/<precision>.<format> and FOLDER/<format>.npz with samples in the format's
layout. A program of its own: converters are heavy, print a lot and do not like each other's company.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))

from networks.resnet import CifarResNet  # noqa: E402
from networks.small import randomise_norms  # noqa: E402

SAMPLES = 4


def write_tflite(network: nn.Module, samples: torch.Tensor, folder: Path) -> None:
    """Channels last; the int8 file takes and gives int8."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    nhwc = samples.permute(0, 2, 3, 1).contiguous()
    network = litert_torch.to_channel_last_io(network, args=[0]).eval()
    litert_torch.convert(network, (nhwc[:1],)).export(str(folder / "fp32.tflite"))
    quantiser = quantizer.Quantizer(str(folder / "fp32.tflite"), recipe.static_wi8_ai8())
    calibration = {"serving_default": [{"args_0": sample[None].numpy()} for sample in nhwc]}
    quantiser.quantize(quantiser.calibrate(calibration)).export_model(str(folder / "int8.tflite"), overwrite=True)
    numpy.savez(folder / "tflite.npz", x=nhwc.numpy())


def write_onnx(network: nn.Module, samples: torch.Tensor, folder: Path) -> None:
    """The int8 file holds pairs of QuantizeLinear and DequantizeLinear; it takes and gives float32."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(samples.split(1))

        def get_next(self) -> dict[str, numpy.ndarray] | None:
            sample = next(self.left, None)
            return None if sample is None else {"x": sample.numpy()}

    path = folder / "fp32.onnx"
    torch.onnx.export(network, (samples[:1],), path, input_names=["x"], external_data=False, verbose=False)
    quantize_static(
        path,
        folder / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    numpy.savez(folder / "onnx.npz", x=samples.numpy())


def write_pte(network: nn.Module, samples: torch.Tensor, folder: Path) -> None:
    """Lowered to XNNPACK; the int8 program takes and gives float32."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def lowered(module: nn.Module) -> bytes:
        program = torch.export.export(module, (samples[:1],), strict=True)
        return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer

    (folder / "fp32.pte").write_bytes(lowered(network))
    config = get_symmetric_quantization_config(is_per_channel=True)
    captured = torch.export.export(network, (samples[:1],), strict=True).module()
    prepared = prepare_pt2e(captured, XNNPACKQuantizer().set_global(config))
    for sample in samples.split(1):
        prepared(sample)
    (folder / "int8.pte").write_bytes(lowered(convert_pt2e(prepared)))
    numpy.savez(folder / "pte.npz", x=samples.numpy())


def write_all(folder: Path) -> None:
    torch.manual_seed(0)
    network = randomise_norms(CifarResNet(1))
    samples = torch.randn(SAMPLES, 3, 32, 32)
    for write in (write_tflite, write_onnx, write_pte):
        write(network, samples, folder)
    with torch.no_grad():
        numpy.save(folder / "expected.npy", network(samples).numpy())


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
