"""Core ML: an ML program in an .mlpackage, by coremltools.

Weights and arithmetic are float32, as the network's are: what rounding to float16 costs is another question than
whether the export is right. The deployment target is iOS 16 (macOS 13): it is the oldest that ExecuTorch's Core ML
delegate runs on, so that both ways to Core ML ask the same of an app's users, and every iPhone since the 8 has it.

Two conversions give the same bytes: what coremltools draws at random or reads from the clock is taken out in `settle`.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.export.artifact import TensorSpec, layout_of
from pipeline.export.contract import KEY, Contract
from pipeline.export.conversion import Conversion, Phase, Request

if TYPE_CHECKING:
    from torch.export import ExportedProgram

RUNTIME_MINIMUM = "iOS 16"
MODEL, MANIFEST, DATA = "Data/com.apple.CoreML/model.mlmodel", "Manifest.json", "Data"
_TYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "DOUBLE": np.float64}


def convert(program: ExportedProgram, request: Request, phase: Phase) -> Conversion:
    """`program` at batch 1 to Core ML. Inputs keep the network's argument names, outputs are `output_0`, …; NCHW."""
    import coremltools

    phase("converting to Core ML")
    outputs = len(program.graph_signature.user_outputs)
    with settled():
        model = coremltools.convert(
            program.run_decompositions({}),
            convert_to="mlprogram",
            outputs=[coremltools.TensorType(name=f"output_{index}") for index in range(outputs)],
            compute_precision=coremltools.precision.FLOAT32,
            minimum_deployment_target=target(),
            skip_model_load=True,  # Core ML, which would load it, is on Apple's systems alone
        )
        phase("checking")
        with tempfile.TemporaryDirectory() as scratch:
            package = Path(scratch) / "model.mlpackage"
            model.save(str(package))
            files = {file.relative_to(package).as_posix(): file for file in package.rglob("*") if file.is_file()}
            content = {name: files[name].read_bytes() for name in sorted(files) if _belongs(name)}
    description = model.get_spec().description
    inputs, outputs = (tuple(map(_specification, features)) for features in (description.input, description.output))
    content[MODEL] = _with_contract(content[MODEL], request.contract, inputs, outputs)
    return Conversion(content, RUNTIME_MINIMUM, inputs, outputs)


def _with_contract(
    content: bytes, contract: Contract, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> bytes:
    """The model with the contract in its metadata, and in words at each feature, where Xcode shows it."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model.FromString(content)
    model.description.metadata.userDefined[KEY] = contract.told(inputs, outputs)
    features = (*model.description.input, *model.description.output)
    for feature, spec in zip(features, (*contract.of_inputs(inputs), *contract.of_outputs(outputs))):
        feature.shortDescription = spec.description
    return model.SerializeToString(deterministic=True)


def target() -> Any:
    """coremltools' name of the deployment target."""
    import coremltools

    return coremltools.target.iOS16


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Every package that coremltools saves inside is `settle`d, also those that others have it save."""
    from coremltools.models import MLModel

    save = MLModel.save

    def and_settle(model: MLModel, path: str) -> None:
        save(model, path)
        settle(Path(path))

    MLModel.save = and_settle
    try:
        yield
    finally:
        MLModel.save = save


def settle(package: Path) -> None:
    """Takes out of a package what differs from one conversion to the next.

    The manifest names its items by random UUIDs; they become those of their paths. The model's metadata has the day of
    the conversion and versions of tools; it is emptied. Maps in it are written in the order of their keys.
    """
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model.FromString((package / MODEL).read_bytes())
    model.description.metadata.ClearField("userDefined")
    (package / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    manifest = json.loads((package / MANIFEST).read_text())
    names = {
        name: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])) for name, entry in manifest["itemInfoEntries"].items()
    }
    manifest["itemInfoEntries"] = {names[name]: entry for name, entry in manifest["itemInfoEntries"].items()}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    (package / MANIFEST).write_text(json.dumps(manifest, indent=4, sort_keys=True))


def _belongs(name: str) -> bool:
    """Whether Core ML reads the file; coremltools adds ExecuTorch's debug handles where that is installed."""
    return name == MANIFEST or name.startswith(f"{DATA}/")


def _specification(feature: Any) -> TensorSpec:
    """From a FeatureDescription."""
    array = feature.type.multiArrayType
    shape = tuple(map(int, array.shape))
    dtype = _TYPES[array.ArrayDataType.Name(array.dataType)]
    return TensorSpec(feature.name, shape, np.dtype(dtype).name, layout_of(len(shape), channels_last=False))
