"""ExecuTorch: a .pte program whose operators are given to XNNPACK, Vulkan or Core ML, as far as each takes them.

Images are NCHW at the border, whatever is asked for. XNNPACK computes NHWC and turns a tensor around where it enters
and leaves a partition; ExecuTorch 1.5 can also take an input whose memory is NHWC already (a "dim order"), and then
the transposes are gone. But Android's Java tensors cannot say so (executorch #11593), and an operator left outside the
partitions may refuse such memory when the app runs (#19139), so that border would be a trap.

The minimum runtime is the release that wrote the file: ExecuTorch promises that newer runtimes load it, of older
ones nothing (runtime/COMPATIBILITY.md). The delegates' precision is float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.export.artifact import TensorSpec, layout_of, sha256_of
from pipeline.export.conversion import Conversion, Phase, Request
from pipeline.export.delegated import facts, with_kernels
from pipeline.export.rewriting import for_delegates

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def convert(program: ExportedProgram, request: Request, phase: Phase) -> Conversion:
    """`program` at batch 1 to ExecuTorch, whose tensors have numbers and no names: `input_0`, … to `output_0`, …."""
    from executorch.exir import to_edge_transform_and_lower

    signature = program.graph_signature
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op != "output"}
    inputs, outputs = ([values[name] for name in names] for names in (signature.user_inputs, signature.user_outputs))
    phase("lowering to ExecuTorch")
    with _PARTITIONERS[request.format]() as partitioner:
        told = program if request.format == "pte-coreml" else for_delegates(program)  # Core ML takes all of it as it is
        edge = to_edge_transform_and_lower(told, partitioner=[partitioner])
    delegation = facts(edge.exported_program())
    phase("planning memory")
    executorch = edge.to_executorch()
    return Conversion(
        executorch.buffer,
        importlib.metadata.version("executorch"),
        _specifications("input", inputs),
        _specifications("output", outputs),
        delegation=with_kernels(delegation, executorch.exported_program()),
    )


def _specifications(kind: str, values: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            f"{kind}_{index}",
            tuple(value.shape),
            str(value.dtype).removeprefix("torch."),
            layout_of(value.ndim, channels_last=False),
        )
        for index, value in enumerate(values)
    )


# --- delegates ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _xnnpack() -> Iterator[Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    yield XnnpackPartitioner()


@contextlib.contextmanager
def _vulkan() -> Iterator[Any]:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    yield VulkanPartitioner()


@contextlib.contextmanager
def _coreml() -> Iterator[Any]:
    """Deployment target and precision are those of `coreml`; so are the packages inside, byte for byte."""
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend, coreml_preprocess
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    from pipeline.export.coreml import settled, target

    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=target(), compute_precision=coremltools.precision.FLOAT32
    )
    plain = CoreMLBackend.preprocess_model

    def preprocess_model(mlmodel: Any, model_type: Any) -> Any:
        """The delegate keeps compiled models by an identifier drawn at random; here their content gives it.

        Nothing fixed will do: two networks of one app must not be taken for each other.
        """
        with tempfile.TemporaryDirectory() as scratch:
            package = Path(scratch) / "model.mlpackage"
            mlmodel.save(str(package))
            identifier = uuid.UUID(bytes=hashlib.sha256(sha256_of(package).encode()).digest()[:16], version=4)
        coreml_preprocess.uuid = SimpleNamespace(uuid4=lambda: identifier)
        try:
            return plain(mlmodel, model_type)
        finally:
            coreml_preprocess.uuid = uuid

    CoreMLBackend.preprocess_model = staticmethod(preprocess_model)
    try:
        with settled():
            yield CoreMLPartitioner(compile_specs=specs)
    finally:
        CoreMLBackend.preprocess_model = staticmethod(plain)


_PARTITIONERS = {"pte": _xnnpack, "pte-vulkan": _vulkan, "pte-coreml": _coreml}
