"""One exported artifact opened in its own runtime, ready to be run. Stands alone: the emulated Python imports it too.

Needs numpy and the runtime, nothing of planish. Errors are `ArtifactError`, whose text reaches the user.
"""

import importlib.metadata
import os
import zipfile
import zlib

import numpy


class ArtifactError(Exception):
    """The artifact does not load, or the inputs do not fit it."""


def runtime_version(format):
    """Name and version of the runtime that runs `format`, e.g. "ai-edge-litert 2.3.0"."""
    package = {"tflite": "ai-edge-litert", "onnx": "onnxruntime"}[format]
    return f"{package} {importlib.metadata.version(package)}"


def open_artifact(path, format):
    """The artifact at `path`, to run on one thread.

    It has `.inputs` [(name, shape, dtype)] with -1 for a free size, `.feed(arrays)`, `.invoke()` and `.outputs()`.
    """
    if not os.path.exists(path):
        raise ArtifactError("no such file")
    try:
        return {"tflite": TFLite, "onnx": Onnx}[format](path)
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"{runtime_version(format)} cannot load it: {error}") from error


class TFLite:
    """LiteRT's interpreter with its default delegate (XNNPACK)."""

    def __init__(self, path):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(path), num_threads=1)
        self.interpreter.allocate_tensors()
        self._details = self.interpreter.get_input_details()
        self.inputs = [(d["name"], tuple(int(s) for s in d["shape"]), d["dtype"]) for d in self._details]
        self._out = self.interpreter.get_output_details()
        self.invoke = self.interpreter.invoke

    def feed(self, arrays):
        for detail, array in zip(self._details, arrays):
            self.interpreter.set_tensor(detail["index"], array)

    def outputs(self):
        return {d["name"]: self.interpreter.get_tensor(d["index"]) for d in self._out}


class Onnx:
    """ONNX Runtime's CPU execution provider, sequential, all graph optimisations (its default)."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes share no public base
            raise RuntimeError(str(error)) from error
        types = {
            "tensor(float)": numpy.float32,
            "tensor(float16)": numpy.float16,
            "tensor(int8)": numpy.int8,
            "tensor(uint8)": numpy.uint8,
            "tensor(int32)": numpy.int32,
            "tensor(int64)": numpy.int64,
        }
        self.inputs = []
        for node in self.session.get_inputs():
            if node.type not in types:
                raise RuntimeError(f"input '{node.name}' has the unsupported type {node.type}")
            self.inputs.append(
                (node.name, tuple(s if isinstance(s, int) else -1 for s in node.shape), types[node.type])
            )
        self._names = [node.name for node in self.session.get_outputs()]
        # Bound inputs and outputs, as an app does it: no copy in or out inside the timed call.
        self._binding = self.session.io_binding()

    def feed(self, arrays):
        self._kept = [array.copy() for array in arrays]  # the binding points into these
        for (name, _, _), array in zip(self.inputs, self._kept):
            self._binding.bind_cpu_input(name, array)
        for name in self._names:
            self._binding.bind_output(name)

    def invoke(self):
        self.session.run_with_iobinding(self._binding)

    def outputs(self):
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu()))


class Samples:
    """The samples of an .npz, each array with a leading sample axis, checked against an artifact's inputs.

    Arrays are matched to inputs by name when the names agree, else by order. A sample is fed with batch 1.
    """

    def __init__(self, path, artifact):
        try:
            with numpy.load(path) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ArtifactError(f"the samples cannot be read: {error}") from error
        names = [name for name, _, _ in artifact.inputs]
        if len(arrays) != len(names):
            raise ArtifactError(
                f"it has {len(names)} inputs ({', '.join(names)}), the samples have {len(arrays)} arrays"
            )
        self.arrays = [arrays[name] for name in names] if set(names) == set(arrays) else list(arrays.values())
        for (name, shape, dtype), array in zip(artifact.inputs, self.arrays):
            one = (1, *array.shape[1:])
            if len(shape) != array.ndim or any(s not in (o, -1) for s, o in zip(shape, one)) or array.dtype != dtype:
                raise ArtifactError(
                    f"input '{name}' takes {list(shape)} {numpy.dtype(dtype).name}, one sample is "
                    f"{list(one)} {array.dtype.name}"
                )
        self.count = len(self.arrays[0]) if self.arrays else 1
        if any(len(array) != self.count for array in self.arrays) or self.count == 0:
            raise ArtifactError("every input needs the same number of samples, at least one")

    def __getitem__(self, index):
        return [array[index : index + 1] for array in self.arrays]


def write_outputs(artifact, samples, path):
    """Run every sample, one by one, and write one array [samples, ...] an output to the .npz `path`."""
    rows = []
    for index in range(samples.count):
        artifact.feed(samples[index])
        artifact.invoke()
        rows.append(artifact.outputs())
    numpy.savez(path, **{name: numpy.concatenate([row[name] for row in rows]) for name in rows[0]})
