"""The child process of the host runner.

usage: python -m targets.runners.host_worker PLAN.json RESULT.json
  mode "time": RESULT {"samples_ms": [one list a job], "rounds": [samples of each turn, one list a job], "cpus"};
  mode "run": writes each job's "outputs" .npz.
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
    """(samples_ms, rounds) of each artifact, taken in interleaved blocks.

    Every artifact gets `least` samples and `budget_s`, or is done with 10 times as many when it is steady.
    With `steady` None they are compared round by round: all stay until the slowest has used its budget, each comes
    first as often as last, and the first inference of a turn, which pays for what the other artifact put into the
    caches, is not timed.
    """
    compared = steady is None
    blocks = []
    for artifact, samples in opened:
        end = time.perf_counter() + warmup_s
        last_ms = timed_ms(artifact, samples[0])
        while time.perf_counter() < end:
            last_ms = timed_ms(artifact, samples[0])
        blocks.append(max(1, min(least, int(BLOCK_S * 1e3 / last_ms))))
    taken, rounds = [[] for _ in opened], [[] for _ in opened]
    spent_ms = [0.0] * len(opened)

    def used(job):
        return spent_ms[job] >= budget_s * 1e3

    def steadied(job):
        return len(taken[job]) >= 10 * least and abs(drift(taken[job])) <= steady

    turns = list(range(len(opened)))
    while turns:
        for job in turns:
            artifact, samples = opened[job]
            if compared:
                timed_ms(artifact, samples[len(taken[job]) % samples.count])
            block = [timed_ms(artifact, samples[(len(taken[job]) + i) % samples.count]) for i in range(blocks[job])]
            taken[job] += block
            rounds[job].append(len(block))
            spent_ms[job] += sum(block)
        short = {job for job in turns if len(taken[job]) < least}
        if compared:
            turns = turns[::-1] if short or not any(map(used, turns)) else []
        else:
            turns = [job for job in turns if job in short or not (used(job) or steadied(job))]
    return taken, rounds


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
        samples_ms, rounds = time_jobs(
            opened, plan["warmup_s"], plan["budget_s"], plan["least_samples"], plan["steady"]
        )
        return {"samples_ms": samples_ms, "rounds": rounds, "cpus": cpus}
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
