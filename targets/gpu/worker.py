"""Runs an artifact on LiteRT's GPU accelerator. Stands alone: the emulated Python runs it too.

usage: worker.py PLAN.json RESULT.json      PLAN: {"mode", "precision", ...}, RESULT: as below or {"error": text}
  mode "run": "artifact", "inputs" (.npz), "outputs" (.npz to write): {"accelerated", "setup_seconds", "seconds"}
  mode "count": "artifact", "layer", "counts" (.json for the layer to write), "inferences", each a phase of its own,
      on zeros: {"accelerated"}
  mode "ask": "artifacts": {"accelerated": [of each]}; the log has a line "planish: INDEX" before what is said of it
The accelerator reports what it takes in the log, this process's standard error.
"""

import ctypes
import json
import os
import sys
import time

import numpy
from artifact import ArtifactError, Samples, runtime_version, write_outputs


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


def run(plan):
    start = time.perf_counter()
    opened = OnGpu(plan["artifact"], plan["precision"])
    samples = Samples(plan["inputs"], opened)
    opened.feed(samples[0])
    opened.invoke()
    opened.outputs()  # kernels are compiled when they first run
    setup_seconds = time.perf_counter() - start
    timed = Timed(opened)
    write_outputs(timed, samples, plan["outputs"])
    return {"accelerated": opened.accelerated, "setup_seconds": setup_seconds, "seconds": timed.seconds}


def count(plan):
    layer = ctypes.CDLL(plan["layer"])  # the one that Vulkan's loader loads: a library is loaded once
    opened = OnGpu(plan["artifact"], plan["precision"])
    zeros = [numpy.zeros([max(1, size) for size in shape], dtype) for _, shape, dtype in opened.inputs]
    for _ in range(plan["inferences"]):
        layer.planish_phase(b"inference")
        opened.feed(zeros)
        opened.invoke()
        opened.outputs()
    if layer.planish_write(os.fsencode(plan["counts"])):
        raise OSError(f"cannot write {plan['counts']}")
    return {"accelerated": opened.accelerated}


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
