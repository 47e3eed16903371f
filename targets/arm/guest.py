"""Runs inside the emulated ARM64 Python: each job's artifact, divided into the phases that the QEMU plugin counts.

usage: guest.py PLAN.json RESULT.json      PLAN: {"jobs": [{"mode", "artifact", "format", "inputs", ...}]}
  mode "count": "label": the first, "phases": how many, one inference each, "warmups": inferences before them.
  mode "run":   "outputs": .npz to write, every sample one by one.
RESULT: {"maps": the memory map, "jobs": [{} or {"error": text}]}
"""

import ctypes
import gc
import json
import sys

from artifact import ArtifactError, Samples, open_artifact, write_outputs

MARK = 0x504C4E53  # as in blocks.c
prctl = ctypes.CDLL(None).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def mark(label):
    """What ran since the last mark belongs to `label`, or to nothing if that is 0."""
    prctl(MARK, label, 0, 0, 0)


def count(job):
    artifact = open_artifact(job["artifact"], job["format"])
    samples = Samples(job["inputs"], artifact)
    artifact.feed(samples[0])
    for _ in range(job["warmups"]):
        artifact.invoke()
    for phase in range(job["phases"]):
        artifact.feed(samples[phase % samples.count])
        mark(0)
        artifact.invoke()
        mark(job["label"] + phase)


def run(job):
    artifact = open_artifact(job["artifact"], job["format"])
    write_outputs(artifact, Samples(job["inputs"], artifact), job["outputs"])


def main(plan_path, result_path):
    with open(plan_path) as stream:
        jobs = json.load(stream)["jobs"]
    gc.disable()
    results = []
    for job in jobs:
        try:
            {"count": count, "run": run}[job["mode"]](job)
            results.append({})
        except ArtifactError as error:
            results.append({"error": str(error)})
        print(job["artifact"], flush=True)
        gc.collect()
    with open("/proc/self/maps") as maps, open(result_path, "w") as stream:
        json.dump({"maps": maps.read(), "jobs": results}, stream)


main(*sys.argv[1:])
