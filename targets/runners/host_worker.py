"""The child process of the host runner.

usage: python -m targets.runners.host_worker PLAN.json RESULT.json
  mode "time": RESULT {"samples_ms": [one list a job], "cpus"}; mode "run": writes each job's "outputs" .npz.
  A job that does not fit its runtime gives {"artifact", "error"}.
"""

import gc
import json
import os
import sys
import time

from targets.runners.artifact import ArtifactError, Samples, open_artifact, write_outputs
from targets.statistics import drift

BLOCK_S = 0.1  # inferences of one artifact in a row, before the next artifact's turn


def timed_ms(artifact, sample):
    artifact.feed(sample)
    start = time.perf_counter_ns()
    artifact.invoke()
    return (time.perf_counter_ns() - start) / 1e6


def time_jobs(opened, warmup_s, budget_s, least, steady):
    """Interleaved blocks until every artifact has `least` samples and is steady, or has used its budget."""
    blocks = []
    for artifact, samples in opened:
        end = time.perf_counter() + warmup_s
        last_ms = timed_ms(artifact, samples[0])
        while time.perf_counter() < end:
            last_ms = timed_ms(artifact, samples[0])
        blocks.append(max(1, min(least, int(BLOCK_S * 1e3 / last_ms))))
    taken = [[] for _ in opened]
    open_jobs = set(range(len(opened)))
    while open_jobs:
        for job in sorted(open_jobs):
            artifact, samples = opened[job]
            taken[job] += [timed_ms(artifact, samples[len(taken[job]) % samples.count]) for _ in range(blocks[job])]
            spent = sum(taken[job]) / 1e3
            if len(taken[job]) >= least and (
                spent >= budget_s or len(taken[job]) >= 10 * least and abs(drift(taken[job])) <= steady
            ):
                open_jobs.discard(job)
    return taken


def work(plan):
    cpus = sorted(os.sched_getaffinity(0))[-plan["threads"] :]
    if plan["mode"] == "time":
        os.sched_setaffinity(0, cpus)
        gc.disable()
    opened = []
    for job in plan["jobs"]:
        try:
            artifact = open_artifact(job["artifact"], plan["format"], plan["threads"])
            opened.append((artifact, Samples(job["inputs"], artifact)))
        except ArtifactError as error:
            return {"artifact": job["artifact"], "error": str(error)}
    if plan["mode"] == "time":
        samples_ms = time_jobs(opened, plan["warmup_s"], plan["budget_s"], plan["least_samples"], plan["steady"])
        return {"samples_ms": samples_ms, "cpus": cpus}
    for job, (artifact, samples) in zip(plan["jobs"], opened):
        write_outputs(artifact, samples, job["outputs"])
    return {}


def main(plan_path, result_path):
    with open(plan_path) as stream:
        plan = json.load(stream)
    result = work(plan)
    with open(result_path, "w") as stream:
        json.dump(result, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
