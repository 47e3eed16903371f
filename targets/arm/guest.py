"""Runs inside the emulated ARM64 Python: each job's artifact, with marks for the timing plugin.

usage: guest.py PLAN.json RESULT.json
PLAN: {"mode", "threads", "format", "runtime", "jobs": [{"artifact", "inputs", ...}]}
  mode "time":    job has "label", the first, and "phases": how many, one inference each, after one that is not counted.
  mode "profile": the same with the runtime's profiler on; "between" labels what lies between the phases.
  mode "run":     job has "outputs": .npz to write, every sample one by one.
RESULT: {"jobs": [{} or {"error": text}, with "operators" in mode "profile"]}
"""

import ctypes
import gc
import json
import os
import re
import sys

from artifact import ArtifactError, Samples, open_artifact, write_outputs

MARK, HARNESS, EXPLORE, PRICE, BEGIN, LAP, END = 0x504C4E53, 1, 2, 3, 4, 5, 6  # as in simulator/plugin.c
# Executables of the harness. The runtimes' own Python bindings lie in one library with the runtime and are counted:
# a few thousand instructions an inference, as a Java or C++ caller would spend on its side.
HARNESS_FILES = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ .*/(?:python3[^/]*|_ctypes[^/]*\.so|libffi\.so[^/]*)$"
)
SMALL = 1 << 20  # bytes of an artifact whose first inferences differ by more than the last per mille
prctl = ctypes.CDLL(None).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def tell(command, first=0, second=0):
    prctl(MARK, command, first, second, 0)


class Opened:
    """A job's artifact, fed with its first sample."""

    def __init__(self, job, plan):
        if plan["mode"] == "profile":
            from profiled import open_profiled

            self.artifact = open_profiled(job["artifact"], plan["format"], plan["threads"])
        else:
            self.artifact = open_artifact(job["artifact"], plan["format"], plan["threads"], plan["runtime"])
        self.samples = Samples(job["inputs"], self.artifact)
        self.artifact.feed(self.samples[0])

    def explore(self):
        """What runs the first time is the runtime's set-up; what runs the second time is what will be timed."""
        self.artifact.invoke()
        tell(BEGIN)
        self.artifact.invoke()
        tell(END)

    def time(self, job):
        tell(BEGIN)
        for _ in range(1 if os.path.getsize(job["artifact"]) > SMALL else 3):  # fill caches and branch predictor
            self.artifact.invoke()
        for phase in range(job["phases"]):
            self.artifact.feed(self.samples[phase % self.samples.count])
            tell(LAP, job.get("between", 0))
            self.artifact.invoke()
            tell(LAP, job["label"] + phase)
        tell(END)


def count(plan):
    """Every artifact is run to learn its code, then the code gets its prices, then every artifact is timed."""
    with open("/proc/self/maps") as maps:
        for line in filter(None, map(HARNESS_FILES.match, maps.read().splitlines())):
            tell(HARNESS, int(line[1], 16), int(line[2], 16))
    jobs, results = plan["jobs"], [{} for _ in plan["jobs"]]
    kept = None
    tell(EXPLORE)
    for job, result in zip(jobs, results):
        try:
            kept = Opened(job, plan)
            kept.explore()
        except ArtifactError as error:
            result["error"] = str(error)
        progress("ran", job)
    tell(PRICE)
    for job, result in zip(jobs, results):
        if "error" in result:
            continue
        opened = kept if len(jobs) == 1 else Opened(job, plan)
        opened.time(job)
        if plan["mode"] == "profile":
            result["operators"] = opened.artifact.operators()
        progress("timed", job)
        del opened
        gc.collect()
    return results


def run(plan):
    results = [{} for _ in plan["jobs"]]
    for job, result in zip(plan["jobs"], results):
        try:
            artifact = open_artifact(job["artifact"], plan["format"], plan["threads"], plan["runtime"])
            write_outputs(artifact, Samples(job["inputs"], artifact), job["outputs"])
        except ArtifactError as error:
            result["error"] = str(error)
        progress("ran", job)
    return results


def progress(done, job):
    print(done, job["artifact"], flush=True)


def main(plan_path, result_path):
    with open(plan_path) as stream:
        plan = json.load(stream)
    gc.disable()
    results = run(plan) if plan["mode"] == "run" else count(plan)
    with open(result_path, "w") as stream:
        json.dump({"jobs": results}, stream)


main(*sys.argv[1:])
