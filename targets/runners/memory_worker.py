"""The child process that watches its own memory while an artifact runs in it.

usage: python -m targets.runners.memory_worker PLAN.json RESULT.json
  mode "prepare": writes the first sample, as the artifact takes it, to the .npz "prepared"; {} or {"error"}.
  mode "watch": {"growth": bytes} by which the resident peak grows from the loaded runtime on; {"unwatched"} says why
  nothing can be known here.
"""

import ctypes
import gc
import importlib
import json
import mmap
import os
import sys

import numpy

from targets.runners.artifact import ArtifactError, Samples, open_artifact

RUNTIMES = {"tflite": "ai_edge_litert.interpreter", "onnx": "onnxruntime", "ort": "onnxruntime"}
INFERENCES = 8  # ONNX Runtime plans its memory in the first and reaches its peak by the fifth
PR_SET_THP_DISABLE = 41  # prctl(2)
ADDR_NO_RANDOMIZE = 0x0040000  # personality(2)
RESET_PEAK = "5"  # written to /proc/self/clear_refs, see proc_pid_clear_refs(5)


def start_over(threads):
    """Execute this program again where every run of it finds the same: CPUs, pages of one size, addresses.

    Where a container does not allow fixed addresses it goes on as it is; they are worth some pages.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # a huge page counts whole, however little of it is used
    # The kernel counts resident pages on each CPU and adds them up now and then: of what moves about it knows less.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    kept = libc.personality(0xFFFFFFFF)
    if not kept & ADDR_NO_RANDOMIZE and libc.personality(kept | ADDR_NO_RANDOMIZE) >= 0:
        os.execv(sys.executable, sys.orig_argv)


def load_runtime(format):
    if format in RUNTIMES:
        importlib.import_module(RUNTIMES[format])
    else:
        from targets.runners.executorch import library

        ctypes.CDLL(str(library()))


def touch_libraries():
    """Bring the code of all loaded libraries in.

    It belongs to the runtime, not the artifact, and how much of it comes in at a first call depends on what the kernel
    reads ahead.
    """
    with open("/proc/self/maps") as maps:
        rows = [line.split(maxsplit=5) for line in maps]
    for span, permissions, *_, path in (row for row in rows if len(row) == 6):
        if permissions.startswith("r-") and ".so" in path:
            start, end = (int(address, 16) for address in span.split("-"))
            for page in range(start, end, mmap.PAGESIZE):
                ctypes.string_at(page, 1)


def bytes_of(field, file):
    """A field of a file of /proc/self, there in KiB."""
    with open(f"/proc/self/{file}") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def resident_bytes():
    return bytes_of("Rss", "smaps_rollup")  # counted page by page, which VmRSS is not in all kernels


def prepare(plan):
    try:
        artifact = open_artifact(plan["artifact"], plan["format"], plan["threads"])
        samples = Samples(plan["inputs"], artifact)
    except ArtifactError as error:
        return {"error": str(error)}
    numpy.savez(plan["prepared"], *samples[0])
    return {}


def watch(plan):
    start_over(plan["threads"])
    load_runtime(plan["format"])
    with numpy.load(plan["prepared"]) as archive:
        sample = [archive[name] for name in archive.files]
    try:
        touch_libraries()
        gc.collect()
        gc.disable()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as references:
            references.write(RESET_PEAK)
        before = resident_bytes()
    except (OSError, AttributeError, StopIteration) as error:
        return {"unwatched": f"{type(error).__name__}: {error}"}
    artifact = open_artifact(plan["artifact"], plan["format"], plan["threads"])
    for _ in range(INFERENCES):
        artifact.feed(sample)
        artifact.invoke()
        artifact.outputs()
    return {"growth": max(bytes_of("VmHWM", "status"), resident_bytes()) - before}


def main(plan_path, result_path):
    with open(plan_path) as stream:
        plan = json.load(stream)
    result = {"prepare": prepare, "watch": watch}[plan["mode"]](plan)
    with open(result_path, "w") as stream:
        json.dump(result, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
