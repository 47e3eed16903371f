"""Runs an artifact on a GPU. Stands alone: the emulated Python runs it too.

usage: worker.py PLAN.json RESULT.json      PLAN: {"mode", "precision", ...}, RESULT: as below or {"error": text}
  mode "run": "artifact", "inputs" (.npz), "outputs" (.npz to write):
      {"accelerated", "runtime", "setup_seconds", "seconds"}, of an .onnx also "placed": [[kind, whether on the GPU]]
  mode "count": "artifact", "layer", "counts" (.json for the layer to write), "inferences", each a phase of its own,
      on zeros: {}
  mode "ask": "artifacts": {"accelerated": [of each]}; the log has a line "planish: INDEX" before what is said of it
A .tflite runs on LiteRT's GPU accelerator, which reports what it takes in the log, this process's standard error. An
.onnx runs on ONNX Runtime's WebGPU provider, in the types that it was exported in.
"""

import ctypes
import json
import os
import sys
import time

import numpy
from artifact import ArtifactError, Onnx, Samples, runtime_version, write_outputs

WEBGPU = "WebGpuExecutionProvider"


class OnGpu:
    """An artifact as `artifact.open_artifact` gives it, on the GPU as far as the accelerator takes it.

    Args:
        precision: "fp16", the accelerator's default, or "fp32".
    """

    def __init__(self, path, precision):
        from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, GpuOptions, HardwareAccelerator, Options
        from ai_edge_litert.interpreter import Interpreter

        if not os.path.exists(path):
            raise ArtifactError("no such file")
        try:
            self._model = CompiledModel.from_file(
                path,
                options=Options(
                    hardware_accelerators=HardwareAccelerator.GPU | HardwareAccelerator.CPU,
                    gpu_options=GpuOptions(enforce_f32=precision == "fp32"),
                    cpu_options=CpuOptions(num_threads=1),
                ),
            )
            details = Interpreter(model_path=path).get_input_details()
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"{runtime_version('tflite')} cannot load it: {error}") from error
        signature = next(iter(self._model.get_signature_list()))
        entering = self._tensors(self._model.get_input_tensor_details(signature), signature, "inputs")
        self._leaving = self._tensors(self._model.get_output_tensor_details(signature), signature, "outputs")
        self._in, self._out = self._model.create_input_buffers(0), self._model.create_output_buffers(0)
        # The file's own order of inputs, as LiteRT's interpreter has it, may be another than the signature's.
        self._order = [[d["index"] for d in entering].index(d["index"]) for d in details]
        self.inputs = [(d["name"], tuple(int(s) for s in d["shape"]), d["dtype"]) for d in details]
        self.quantization = [d["quantization"] if d["quantization"][0] else None for d in details]

    def _tensors(self, details, signature, side):
        """In the order of the signature, which is that of the buffers."""
        return [details[name] for name in self._model.get_signature_list()[signature][side]]

    @property
    def accelerated(self):
        return self._model.is_fully_accelerated()

    def feed(self, arrays):
        for at, array in zip(self._order, arrays):
            self._in[at].write(numpy.ascontiguousarray(array))

    def invoke(self):
        self._model.run_by_index(0, self._in, self._out)

    def outputs(self):
        """Waits for the GPU: an invocation only hands the work over."""
        return {
            tensor["name"]: buffer.read(int(numpy.prod(tensor["shape"])), numpy.dtype(tensor["dtype"]).type).reshape(
                tensor["shape"]
            )
            for tensor, buffer in zip(self._leaving, self._out)
        }


class OnWebGpu(Onnx):
    """An .onnx on ONNX Runtime's WebGPU provider, what that does not take on the CPU."""

    def __init__(self, path):
        import onnxruntime

        super().__init__(path, threads=1)  # which tells inputs and outputs
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = os.path.abspath("profile")  # in the folder of this run
        self.session = onnxruntime.InferenceSession(path, options, providers=[WEBGPU, "CPUExecutionProvider"])
        self._binding = self.session.io_binding()

    def __del__(self):
        self.__dict__.pop("_binding", None)  # before its session, or the provider crashes

    def placed(self):
        """[kind, whether it ran on the GPU] of each operator of the optimised graph. Ends the profile."""
        with open(self.session.end_profiling()) as stream:
            events = json.load(stream)
        ran = {e["name"]: e["args"] for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")}
        return [[arguments["op_name"], arguments["provider"] == WEBGPU] for arguments in ran.values()]


class Timed:
    """An artifact, and the seconds from each feed to the outputs being there."""

    def __init__(self, artifact):
        self._artifact = artifact
        self.inputs, self.quantization, self.invoke = artifact.inputs, artifact.quantization, artifact.invoke
        self.seconds = []

    def feed(self, arrays):
        self._start = time.perf_counter()
        self._artifact.feed(arrays)

    def outputs(self):
        found = self._artifact.outputs()
        self.seconds.append(time.perf_counter() - self._start)
        return found


def opened(plan):
    path = plan["artifact"]
    if not path.endswith(".onnx"):
        return OnGpu(path, plan["precision"])
    if not os.path.exists(path):
        raise ArtifactError("no such file")
    try:
        return OnWebGpu(path)
    except Exception as error:  # onnxruntime's own classes share no public base
        raise ArtifactError(f"onnxruntime cannot load it: {error}") from error


def run(plan):
    start = time.perf_counter()
    artifact = opened(plan)
    samples = Samples(plan["inputs"], artifact)
    artifact.feed(samples[0])
    artifact.invoke()
    artifact.outputs()  # kernels are compiled when they first run
    setup_seconds = time.perf_counter() - start
    timed = Timed(artifact)
    write_outputs(timed, samples, plan["outputs"])
    result = {"setup_seconds": setup_seconds, "seconds": timed.seconds}
    if isinstance(artifact, OnGpu):
        return result | {"accelerated": artifact.accelerated, "runtime": runtime_version("tflite")}
    import onnxruntime

    placed = artifact.placed()
    runtime = f"onnxruntime-webgpu {onnxruntime.__version__}"
    return result | {"accelerated": all(on_gpu for _, on_gpu in placed), "runtime": runtime, "placed": placed}


def count(plan):
    layer = ctypes.CDLL(plan["layer"])  # the one that Vulkan's loader loads: a library is loaded once
    artifact = opened(plan)
    zeros = [numpy.zeros([max(1, size) for size in shape], dtype) for _, shape, dtype in artifact.inputs]
    for _ in range(plan["inferences"]):
        layer.planish_phase(b"inference")
        artifact.feed(zeros)
        artifact.invoke()
        artifact.outputs()
    if layer.planish_write(os.fsencode(plan["counts"])):
        raise OSError(f"cannot write {plan['counts']}")
    return {}


def ask(plan):
    accelerated = []
    for index, path in enumerate(plan["artifacts"]):
        os.write(2, b"planish: %d\n" % index)
        accelerated.append(OnGpu(path, plan["precision"]).accelerated)
    return {"accelerated": accelerated}


def main(plan_path, result_path):
    with open(plan_path) as stream:
        plan = json.load(stream)
    try:
        result = {"run": run, "count": count, "ask": ask}[plan["mode"]](plan)
    except ArtifactError as error:
        result = {"error": str(error)}
    with open(result_path, "w") as stream:
        json.dump(result, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
