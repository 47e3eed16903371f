"""One exported artifact opened in its own runtime, ready to be run. Stands alone: the emulated Python imports it too.

Needs numpy and the runtime; of planish only the runner of .pte programs. Errors are `ArtifactError`, whose text reaches
the user.
"""

import ctypes
import functools
import importlib
import importlib.metadata
import os
import weakref
import zipfile
import zlib

import numpy

PACKAGES = {"tflite": "ai-edge-litert", "onnx": "onnxruntime", "ort": "onnxruntime", "pte": "executorch"}
PREDECESSOR = "tflite-runtime"  # of ai-edge-litert, under its old name; apps still ship it
EMULATED_RUNNER = "/opt/planish/site/executorch/lib/libplanish_executorch.so"  # in the emulated phone's file system


class ArtifactError(Exception):
    """The artifact does not load, or the inputs do not fit it."""


def runtime_version(format, runtime=None):
    """Name and version of what runs `format`, e.g. "ai-edge-litert 2.3.0"; `runtime` as for `open_artifact`."""
    package = runtime or PACKAGES[format]
    return f"{package} {importlib.metadata.version(package)}"


def open_artifact(path, format, threads=1, runtime=None):
    """The artifact at `path`, to run on `threads` threads, in the format's runtime or, a .tflite, in `PREDECESSOR`.

    It has `.inputs` [(name, shape, dtype)] with -1 for a free size, `.quantization` [(scale, zero point) or None] of
    the inputs, `.feed(arrays)`, `.invoke()` and `.outputs()`.
    """
    if not os.path.exists(path):
        raise ArtifactError("no such file")
    try:
        if runtime == PREDECESSOR:
            return TFLite(path, threads, "tflite_runtime")
        return {"tflite": TFLite, "onnx": Onnx, "ort": Onnx, "pte": ExecuTorch}[format](path, threads)
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"{runtime_version(format, runtime)} cannot load it: {error}") from error


class TFLite:
    """LiteRT's interpreter, or its predecessor's, with its default delegate (XNNPACK)."""

    def __init__(self, path, threads, package="ai_edge_litert"):
        interpreter = importlib.import_module(f"{package}.interpreter")
        self.interpreter = interpreter.Interpreter(model_path=str(path), num_threads=threads)
        self.interpreter.allocate_tensors()
        self._details = self.interpreter.get_input_details()
        self.inputs = [(d["name"], tuple(int(s) for s in d["shape"]), d["dtype"]) for d in self._details]
        self.quantization = [d["quantization"] if d["quantization"][0] else None for d in self._details]
        self._out = self.interpreter.get_output_details()
        self.invoke = self.interpreter.invoke

    def feed(self, arrays):
        for detail, array in zip(self._details, arrays):
            self.interpreter.set_tensor(detail["index"], array)

    def outputs(self):
        return {d["name"]: self.interpreter.get_tensor(d["index"]) for d in self._out}


class Onnx:
    """ONNX Runtime's CPU execution provider, sequential, all graph optimisations (its default); its ORT format, too.

    Args:
        options: `onnxruntime.SessionOptions` to go by in all else.
    """

    def __init__(self, path, threads, options=None):
        import onnxruntime

        options = options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
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
        self.quantization = [None] * len(self.inputs)  # in ONNX quantisation is a node, not a property of an input
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


class ExecuTorch:
    """ExecuTorch's C++ runtime with XNNPACK and its CPU kernels, through `executorch.cpp`."""

    TYPES = {
        0: numpy.uint8,
        1: numpy.int8,
        2: numpy.int16,
        3: numpy.int32,
        4: numpy.int64,
        5: numpy.float16,
        6: numpy.float32,
        7: numpy.float64,
        11: numpy.bool_,
    }

    def __init__(self, path, threads, profiled=False):
        self._runner = _executorch_runner()
        opened = ctypes.c_void_p()
        self._check(self._runner.planish_open(os.fsencode(path), threads, profiled, ctypes.byref(opened)))
        self._opened = opened
        weakref.finalize(self, self._runner.planish_close, opened)
        tensors = [self._tensor(False, index) for index in range(self._runner.planish_inputs(opened))]
        self.inputs = [(f"input_{index}", t.shape, self._type(t)) for index, t in enumerate(tensors)]
        self.quantization = [None] * len(tensors)  # in a program quantisation is an operator
        self._orders = [t.axes for t in tensors]

    def feed(self, arrays):
        for index, (array, order) in enumerate(zip(arrays, self._orders)):
            in_order = numpy.ascontiguousarray(array.transpose(order))
            self._runner.planish_feed(self._opened, index, in_order.ctypes.data_as(ctypes.c_void_p))

    def invoke(self):
        self._check(self._runner.planish_invoke(self._opened))

    def outputs(self):
        return {f"output_{i}": self._output(i) for i in range(self._runner.planish_outputs(self._opened))}

    def _output(self, index):
        tensor = self._tensor(True, index)
        stored = numpy.frombuffer(ctypes.string_at(tensor.data, tensor.bytes), self._type(tensor))
        stored = stored.reshape([tensor.shape[axis] for axis in tensor.axes])
        return stored.transpose(numpy.argsort(tensor.axes))

    def _tensor(self, output, index):
        tensor = _Tensor()
        self._check(self._runner.planish_tensor(self._opened, output, index, ctypes.byref(tensor)))
        return tensor

    def _type(self, tensor):
        if tensor.type not in self.TYPES:
            raise RuntimeError(f"it has a tensor of the unsupported type number {tensor.type}")
        return self.TYPES[tensor.type]

    def _check(self, error):
        if error:
            raise RuntimeError(self._runner.planish_error(error).decode(errors="replace"))


class _Tensor(ctypes.Structure):
    """`PlanishTensor` of executorch.cpp."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("sizes", ctypes.c_int32 * 16),
        ("order", ctypes.c_int32 * 16),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
    ]

    @property
    def shape(self):
        return tuple(self.sizes[: self.rank])

    @property
    def axes(self):
        """The axes as memory holds them, slowest first: (0, 1, 2, 3), or (0, 2, 3, 1) for channels last."""
        return tuple(self.order[: self.rank])


@functools.cache
def _executorch_runner():
    """The library of executorch.cpp: the emulated phone has it in its file system, this machine compiles it."""
    path = EMULATED_RUNNER
    if not os.path.exists(path):
        from targets.runners.executorch import library

        path = library()
    runner = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    for name, result, arguments in (
        ("open", integer, [ctypes.c_char_p, integer, integer, pointer]),
        ("close", None, [pointer]),
        ("inputs", integer, [pointer]),
        ("outputs", integer, [pointer]),
        ("tensor", integer, [pointer, integer, integer, pointer]),
        ("feed", None, [pointer, integer, pointer]),
        ("invoke", integer, [pointer]),
        ("operators", ctypes.c_char_p, [pointer]),
        ("error", ctypes.c_char_p, [integer]),
    ):
        function = getattr(runner, f"planish_{name}")
        function.restype, function.argtypes = result, arguments
    return runner


class Samples:
    """The samples of an .npz, each array with a leading sample axis, checked against an artifact's inputs.

    Arrays are matched to inputs by name when the names agree, else by order. A sample is fed with batch 1. Samples have
    the input's type, with one exception: float32 samples of an integer input whose scale and zero point the artifact
    states are quantised as an app would do it, `clip(round(x / scale) + zero point)`, ties to even. That is the case
    of fully quantised TFLite; quantised ONNX and ExecuTorch files usually take float32 and quantise it themselves.
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
        self.arrays = [
            quantised(array, dtype, *quantization) if quantization and array.dtype == numpy.float32 else array
            for array, (_, _, dtype), quantization in zip(self.arrays, artifact.inputs, artifact.quantization)
        ]
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


def quantised(array, dtype, scale, zero_point):
    """Float `array` in the steps of an integer input."""
    steps = numpy.rint(array / numpy.float32(scale)) + zero_point
    return numpy.clip(steps, numpy.iinfo(dtype).min, numpy.iinfo(dtype).max).astype(dtype)


def write_outputs(artifact, samples, path):
    """Run every sample, one by one, and write one array [samples, ...] an output to the .npz `path`."""
    rows = []
    for index in range(samples.count):
        artifact.feed(samples[index])
        artifact.invoke()
        rows.append(artifact.outputs())
    numpy.savez(path, **{name: numpy.concatenate([row[name] for row in rows]) for name in rows[0]})
