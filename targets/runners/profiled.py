"""One artifact in its own runtime with that runtime's profiler on, and which of its operators ran between which system
calls. Stands alone: the emulated Python imports it too. Needs numpy and the runtime, nothing of planish.

A profiler reads the clock before and after an operator. The guest has no vDSO, so every read is a system call, which the
QEMU plugin sees: it closes a record of what it counts whenever the main thread makes one of the `MARKS`. From the calls
that closed the records (`ends`) and the profiler's own list of operators, `owned` tells whose each record is.

ONNX Runtime: a node is [clock] work [clock] getpid; with a thread pool there are more reads of the clock inside, behind
a getcpu. Between two nodes it formats the record of the first, and part of that happens before the closing read: see
`PROFILER_INSIDE`.
LiteRT: XNNPACK reads the clock once before its first operator and once after each; an operator outside of XNNPACK is
[clock] work [clock]. The runtime's own steps around them read memory statistics, too: [clock, close] ... [clock, close].
"""

import ctypes
import json
import os
import tempfile

import numpy

from artifact import ArtifactError, Onnx, runtime_version

# Numbers of ARM64 Linux's system calls at whose entry a record of the main thread ends.
CLOSE, CLOCK_GETTIME, GETCPU, GETPID = MARKS = (57, 113, 168, 172)
PROFILER_INSIDE = {"onnx": True, "tflite": False}  # whether an operator's records hold some of the profiler's own work

STEP, OPERATOR, INVOKE, DELEGATED = 1, 2, 16, 8  # tflite::Profiler::EventType; TELEMETRY events read no clock
CPU = 1  # kLiteRtHwAcceleratorCpu
LOCK_READ, LOCK_WRITE = 0, 1  # LiteRtTensorBufferLockMode


def open_profiled(path, format, threads=1):
    """The artifact at `path`, as `artifact.open_artifact` gives it, profiled.

    It has `.inputs`, `.feed(arrays)`, `.invoke()`, `.outputs()` and, after an invocation, `.operators()`: what the
    runtime ran in the last one, in order, as [{"name", "kind", "delegated", "in_shapes", "out_shapes"}] (shapes of
    ONNX Runtime only). `.operators()` ends the profile: no invocation may follow it.
    """
    if not os.path.exists(path):
        raise ArtifactError("no such file")
    try:
        return {"tflite": ProfiledTFLite, "onnx": ProfiledOnnx}[format](path, threads)
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"{runtime_version(format)} cannot load it: {error}") from error


def owned(operators, ends, format):
    """Which records of an invocation belong to which operator: [[index of a record]], one list an operator.

    Args:
        operators: of `.operators()`.
        ends: system call that closed each record of the main thread during `.invoke()`.

    Raises:
        ValueError: the runtime did not call as its profiler is known to.
    """
    return {"tflite": _owned_tflite, "onnx": _owned_onnx}[format](operators, ends)


class ProfiledOnnx(Onnx):
    """ONNX Runtime with `SessionOptions.enable_profiling`."""

    def __init__(self, path, threads):
        import onnxruntime

        super().__init__(path, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.enable_profiling = True
        self._directory = tempfile.TemporaryDirectory(prefix="planish-profile-")
        options.profile_file_prefix = os.path.join(self._directory.name, "onnx")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._binding = self.session.io_binding()

    def operators(self):
        with open(self.session.end_profiling()) as stream:
            events = json.load(stream)
        ends = [index for index, event in enumerate(events) if event["name"] == "model_run"]
        last = events[ends[-2] + 1 if len(ends) > 1 else 0 : ends[-1]]
        if sum(event["name"] == "SequentialExecutor::Execute" for event in last) > 1:
            raise ArtifactError("control flow (If, Loop, Scan) cannot be broken down into operators")
        return [
            {
                "name": event["name"].removesuffix("_kernel_time"),
                "kind": event["args"]["op_name"],
                "delegated": True,
                "in_shapes": _shapes(event["args"]["input_type_shape"]),
                "out_shapes": _shapes(event["args"]["output_type_shape"]),
            }
            for event in last
            if event["cat"] == "Node"
        ]


def _shapes(typed):
    return [shape for entry in typed for shape in entry.values()]


def _owned_onnx(operators, ends):
    """Segments between calls of getpid: one a node, and after them one for the executor and one for the whole run."""
    segments, start = [], 0
    for index, call in enumerate(ends):
        if call == GETPID:
            segments.append(range(start, index))
            start = index + 1
    if len(segments) != len(operators) + 2:
        raise ValueError(f"{len(operators)} nodes, {len(segments)} calls of getpid")
    found = []
    for segment in segments[: len(operators)]:
        reads = [index for index in segment if ends[index] == CLOCK_GETTIME]
        pooled = next((index for index in segment if ends[index] == GETCPU), None)
        before = [index for index in reads if pooled is None or index < pooled]
        if len(reads) < 2 or not before:
            raise ValueError(f"{len(reads)} reads of the clock for a node")
        begin = before[-1] if pooled is not None else reads[-2]
        found.append(list(range(begin + 1, reads[-1] + 1)))
    return found


class Memory(ctypes.Structure):
    """tflite::profiling::memory::MemoryUsage"""

    _fields_ = [("resident_kb", ctypes.c_int64), ("allocated", ctypes.c_size_t), ("in_use", ctypes.c_size_t)]


class Event(ctypes.Structure):
    """ProfiledEventData of litert_profiler_event.h"""

    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("begin_memory", Memory),
        ("end_memory", Memory),
        ("metadata1", ctypes.c_uint64),
        ("metadata2", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


class ProfiledTFLite:
    """LiteRT's compiled model on the CPU with the runtime option `enable_profiling`.

    The interpreter's Python binding takes no profiler; the compiled model wraps the same interpreter and XNNPACK.
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
            raise RuntimeError("this release has no profiler")
        self._signature = self._new("LiteRtGetModelSignature", model, ctypes.c_size_t(0))
        self.inputs, self._in = self._buffers("Input")
        self._outputs, self._out = self._buffers("Output")

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
        payload = ctypes.c_void_p(libc.strdup(toml))  # the options own it
        free = ctypes.cast(libc.free, ctypes.c_void_p)
        self._call("LiteRtAddOpaqueOptions", options, self._new("LiteRtCreateOpaqueOptions", identifier, payload, free))

    def _buffers(self, side):
        """[(name, shape, dtype)] of the signature's inputs or outputs, and the array of their tensor buffers."""
        count = ctypes.c_size_t()
        self._call(f"LiteRtGetNumSignature{side}s", self._signature, ctypes.byref(count))
        described, buffers = [], (ctypes.c_void_p * count.value)()
        for index in map(ctypes.c_size_t, range(count.value)):
            tensor = self._new(f"LiteRtGetSignature{side}TensorByIndex", self._signature, index)
            name = ctypes.c_char_p()
            self._call(f"LiteRtGetSignature{side}Name", self._signature, index, ctypes.byref(name))
            ranked = (ctypes.c_int32 * 64)()  # LiteRtRankedTensorType: element type, rank in 7 bits, dimensions
            self._call("LiteRtGetRankedTensorType", tensor, ranked)
            needs = self._new(
                f"LiteRtGetCompiledModel{side}BufferRequirements", self._compiled, ctypes.c_size_t(0), index
            )
            buffers[index.value] = self._new(
                "LiteRtCreateManagedTensorBufferFromRequirements", self._environment, ranked, needs
            )
            if ranked[0] not in ELEMENT_TYPES:
                raise RuntimeError(f"'{name.value.decode()}' has the unsupported element type {ranked[0]}")
            shape = tuple(ranked[2 : 2 + (ranked[1] & 0x7F)])
            described.append((name.value.decode(), shape, ELEMENT_TYPES[ranked[0]]))
        return described, buffers

    def _locked(self, buffer, mode, copy):
        """`copy(address)` while the tensor buffer is mapped."""
        address = ctypes.c_void_p()
        self._call("LiteRtLockTensorBuffer", ctypes.c_void_p(buffer), ctypes.byref(address), mode)
        copy(address)
        self._call("LiteRtUnlockTensorBuffer", ctypes.c_void_p(buffer))

    def feed(self, arrays):
        for buffer, array in zip(self._in, map(numpy.ascontiguousarray, arrays)):
            self._locked(
                buffer, LOCK_WRITE, lambda at, array=array: ctypes.memmove(at, array.ctypes.data, array.nbytes)
            )

    def invoke(self):
        self._call("LiteRtResetProfiler", self._profiler)  # stops it, too
        self._call("LiteRtStartProfiler", self._profiler)
        self._call(
            "LiteRtRunCompiledModel",
            self._compiled,
            ctypes.c_size_t(0),
            ctypes.c_size_t(len(self._in)),
            self._in,
            ctypes.c_size_t(len(self._out)),
            self._out,
        )

    def outputs(self):
        found = {}
        for (name, shape, dtype), buffer in zip(self._outputs, self._out):
            array = numpy.empty(shape, dtype)
            self._locked(buffer, LOCK_READ, lambda at, array=array: ctypes.memmove(array.ctypes.data, at, array.nbytes))
            found[name] = array
        return found

    def operators(self):
        self._call("LiteRtStopProfiler", self._profiler)
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        if sum(event.type == STEP and event.tag == b"Invoke" for event in events) > 1:
            raise ArtifactError("control flow (IF, WHILE) cannot be broken down into operators")
        return [
            {"name": str(event.metadata1), "kind": event.tag.decode(), "delegated": event.type == DELEGATED}
            for event in events
            if event.type in (OPERATOR, DELEGATED)
        ]


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


EDGES = (
    4  # of steps before the first operator: two of "buffer registration", "invoke", "Invoke"; as many after the last
)


def _owned_tflite(operators, ends):
    """A read of the clock followed by a close is the edge of a step; the others are the operators'."""
    reads = []  # [index, whether it is a step's]
    for index, call in enumerate(ends):
        if call == CLOCK_GETTIME:
            reads.append([index, False])
        elif call == CLOSE and reads:
            reads[-1][1] = True
    found, position = [], EDGES
    for operator in operators:
        if (
            not operator["delegated"] or operator["name"] == "0"
        ):  # of one call of XNNPACK only the first has a read before it
            position += 1
        if position < len(reads):
            found.append(list(range(reads[position - 1][0] + 1, reads[position][0] + 1)))
        position += 1
    steps = [index for index, (_, step) in enumerate(reads) if step]
    if steps != [*range(EDGES), *range(position, position + EDGES)] or len(reads) != position + EDGES:
        raise ValueError(f"{len(reads)} reads of the clock for {len(operators)} operators")
    return found
