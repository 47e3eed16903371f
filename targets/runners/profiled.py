"""One artifact in its own runtime with that runtime's profiler on. Stands alone: the emulated Python imports it.

Needs numpy and the runtime, nothing of planish. What the profilers measure is of no use under emulation; that they read
the clock between operators is: see `targets/arm/records.py`.
"""

import ctypes
import json
import os
import tempfile

import numpy
from artifact import ArtifactError, ExecuTorch, Onnx, runtime_version

STEP, OPERATOR, DELEGATED = 1, 2, 8  # tflite::Profiler::EventType
CPU = 1  # kLiteRtHwAcceleratorCpu
LOCK_READ, LOCK_WRITE = 0, 1  # LiteRtTensorBufferLockMode
PER_TENSOR = 1  # kLiteRtQuantizationPerTensor
# LiteRtElementType, numbered as TfLiteType
ELEMENT_TYPES = {
    1: numpy.float32,
    2: numpy.int32,
    3: numpy.uint8,
    4: numpy.int64,
    6: numpy.bool_,
    7: numpy.int16,
    9: numpy.int8,
    10: numpy.float16,
}


def open_profiled(path, format, threads=1):
    """The artifact at `path`, as `artifact.open_artifact` gives it, but profiled.

    After an invocation `.operators()` says what the runtime ran in it, in order, as
    [{"name", "kind", "first", "in_shapes", "out_shapes"}]. "first": no operator of the same call of XNNPACK ran before
    it. Shapes are ONNX Runtime's alone. `.operators()` ends the profile: no invocation may follow.
    """
    if not os.path.exists(path):
        raise ArtifactError("no such file")
    try:
        return {"tflite": ProfiledTFLite, "onnx": ProfiledOnnx, "pte": ProfiledExecuTorch}[format](path, threads)
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"{runtime_version(format)} cannot load it: {error}") from error


class ProfiledOnnx(Onnx):
    """ONNX Runtime with `SessionOptions.enable_profiling`."""

    def __init__(self, path, threads):
        import onnxruntime

        self._directory = tempfile.TemporaryDirectory(prefix="planish-profile-")
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(self._directory.name, "onnx")
        super().__init__(path, threads, options)

    def operators(self):
        with open(self.session.end_profiling()) as stream:
            events = json.load(stream)
        runs = [index for index, event in enumerate(events) if event["name"] == "model_run"]
        last = events[runs[-2] + 1 if len(runs) > 1 else 0 : runs[-1]]
        if sum(event["name"] == "SequentialExecutor::Execute" for event in last) > 1:
            raise ArtifactError("control flow (If, Loop, Scan) cannot be broken down into operators")
        return [
            {
                "name": event["name"].removesuffix("_kernel_time"),
                "kind": event["args"]["op_name"],
                "first": True,
                "in_shapes": self._shapes(event["args"]["input_type_shape"]),
                "out_shapes": self._shapes(event["args"]["output_type_shape"]),
            }
            for event in last
            if event["cat"] == "Node"
        ]

    @staticmethod
    def _shapes(typed):
        """[{"float": [1, 8]}, ...] without the types."""
        return [shape for entry in typed for shape in entry.values()]


class ProfiledExecuTorch(ExecuTorch):
    """ExecuTorch with the tracer of `executorch.cpp`."""

    def __init__(self, path, threads):
        super().__init__(path, threads, profiled=True)

    def operators(self):
        """The kernels of XNNPACK, which a delegate's call runs several of, and ExecuTorch's own."""
        found, scopes, first = [], [], False
        for line in self._runner.planish_operators(self._opened).decode().splitlines():
            verb, _, name = line.partition(" ")
            if verb == "begin":
                scopes.append(name)
                first = first or name == "DELEGATE_CALL"
            elif verb == "end":
                scopes.pop()
            if verb == "ran" or name.startswith("native_call_"):
                kind = name.rpartition(" #")[0] if verb == "ran" else name.removeprefix("native_call_").split(".")[0]
                is_first = first if verb == "ran" else True
                found.append({"name": kind, "kind": kind, "first": is_first, "in_shapes": [], "out_shapes": []})
                first = False
        return found


class _Memory(ctypes.Structure):
    """tflite::profiling::memory::MemoryUsage"""

    _fields_ = [("resident_kb", ctypes.c_int64), ("allocated", ctypes.c_size_t), ("in_use", ctypes.c_size_t)]


class _Event(ctypes.Structure):
    """ProfiledEventData of LiteRT's litert_profiler_event.h"""

    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("begin_memory", _Memory),
        ("end_memory", _Memory),
        ("metadata1", ctypes.c_uint64),
        ("metadata2", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


class _Quantization(ctypes.Structure):
    """LiteRtQuantizationPerTensor"""

    _fields_ = [("scale", ctypes.c_float), ("zero_point", ctypes.c_int64)]


class ProfiledTFLite:
    """LiteRT's compiled model on the CPU with the runtime option `enable_profiling`, through its C interface.

    The interpreter's Python binding takes no profiler. The compiled model wraps the same interpreter and XNNPACK: its
    operators execute the same instructions.
    """

    def __init__(self, path, threads):
        import ai_edge_litert

        self._library = ctypes.CDLL(os.path.join(os.path.dirname(ai_edge_litert.__file__), "libLiteRt.so"))
        self._environment = self._new("LiteRtCreateEnvironment", 0, None)
        model = self._new("LiteRtCreateModelFromFile", self._environment, os.fsencode(path))
        options = self._new("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, CPU)
        self._add_options(options, b"xnnpack", b"num_threads = %d\n" % threads)
        self._add_options(options, b"runtime_options_string", b"enable_profiling = true\n")
        self._compiled = self._new("LiteRtCreateCompiledModel", self._environment, model, options)
        self._profiler = self._new("LiteRtCompiledModelGetProfiler", self._compiled)
        if not self._profiler:
            raise RuntimeError("it gives no profiler")
        self._signature = self._new("LiteRtGetModelSignature", model, ctypes.c_size_t(0))
        self.inputs, self.quantization, self._in = self._buffers("Input")
        self._outputs, _, self._out = self._buffers("Output")

    def _call(self, name, *arguments):
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} gives status {status}")

    def _new(self, name, *arguments):
        handle = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(handle))
        return handle

    def _add_options(self, options, identifier, toml):
        libc = ctypes.CDLL(None)
        libc.strdup.restype = ctypes.c_void_p
        payload, free = ctypes.c_void_p(libc.strdup(toml)), ctypes.cast(libc.free, ctypes.c_void_p)
        self._call("LiteRtAddOpaqueOptions", options, self._new("LiteRtCreateOpaqueOptions", identifier, payload, free))

    def _buffers(self, side):
        """Of the signature's inputs or outputs: [(name, shape, dtype)], [(scale, zero point) or None], the buffers."""
        count = ctypes.c_size_t()
        self._call(f"LiteRtGetNumSignature{side}s", self._signature, ctypes.byref(count))
        described, quantization, buffers = [], [], (ctypes.c_void_p * count.value)()
        for index in map(ctypes.c_size_t, range(count.value)):
            tensor = self._new(f"LiteRtGetSignature{side}TensorByIndex", self._signature, index)
            name = ctypes.c_char_p()
            self._call(f"LiteRtGetSignature{side}Name", self._signature, index, ctypes.byref(name))
            ranked = (ctypes.c_int32 * 64)()  # LiteRtRankedTensorType: element type, rank in 7 bits, dimensions, ...
            self._call("LiteRtGetRankedTensorType", tensor, ranked)
            kind, shape = ranked[0], tuple(ranked[2 : 2 + (ranked[1] & 0x7F)])
            if kind not in ELEMENT_TYPES:
                raise RuntimeError(f"'{name.value.decode()}' has the unsupported element type {kind}")
            needs = f"LiteRtGetCompiledModel{side}BufferRequirements"
            requirements = self._new(needs, self._compiled, ctypes.c_size_t(0), index)
            create = "LiteRtCreateManagedTensorBufferFromRequirements"
            buffers[index.value] = self._new(create, self._environment, ranked, requirements).value
            described.append((name.value.decode(), shape, ELEMENT_TYPES[kind]))
            quantization.append(self._quantization(tensor))
        return described, quantization, buffers

    def _quantization(self, tensor):
        kind, values = ctypes.c_int(), _Quantization()
        self._call("LiteRtGetQuantizationTypeId", tensor, ctypes.byref(kind))
        if kind.value != PER_TENSOR:
            return None
        self._call("LiteRtGetPerTensorQuantization", tensor, ctypes.byref(values))
        return values.scale, values.zero_point

    def _mapped(self, buffer, mode, copy):
        """`copy(address)` while the tensor buffer is mapped to memory."""
        buffer, address = ctypes.c_void_p(buffer), ctypes.c_void_p()
        self._call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), mode)
        copy(address)
        self._call("LiteRtUnlockTensorBuffer", buffer)

    def feed(self, arrays):
        for buffer, array in zip(self._in, map(numpy.ascontiguousarray, arrays)):
            self._mapped(buffer, LOCK_WRITE, lambda at, of=array: ctypes.memmove(at, of.ctypes.data, of.nbytes))

    def invoke(self):
        self._call("LiteRtResetProfiler", self._profiler)  # stops it, too
        self._call("LiteRtStartProfiler", self._profiler)
        signature, ins, outs = map(ctypes.c_size_t, (0, len(self._in), len(self._out)))
        self._call("LiteRtRunCompiledModel", self._compiled, signature, ins, self._in, outs, self._out)

    def outputs(self):
        found = {}
        for (name, shape, dtype), buffer in zip(self._outputs, self._out):
            array = found[name] = numpy.empty(shape, dtype)
            self._mapped(buffer, LOCK_READ, lambda at, to=array: ctypes.memmove(to.ctypes.data, at, to.nbytes))
        return found

    def operators(self):
        self._call("LiteRtStopProfiler", self._profiler)
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        if sum(event.type == STEP and event.tag == b"Invoke" for event in events) > 1:
            raise ArtifactError("control flow (IF, WHILE) cannot be broken down into operators")
        return [
            {
                "name": event.tag.decode(),
                "kind": event.tag.decode(),
                "first": event.type == OPERATOR or event.metadata1 == 0,
                "in_shapes": [],
                "out_shapes": [],
            }
            for event in events
            if event.type in (OPERATOR, DELEGATED)
        ]
