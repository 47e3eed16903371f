"""A fit killed with SIGKILL at random moments, each time resumed: is what it ends in the same, is finished work kept?

    python tests/benchmarks/kills.py [--times 20] [--a-run 5] [--seed 0] [--runs FOLDER]

The Fashion example runs once to its end. Then it runs again from scratch, with a store and timings of its own, and is
killed `--a-run` times on the way, until `--times` kills have hit a run at work. The moments are uniform over the wall
time of the whole run: so many seconds after a stage was finished, as it was there, whatever was lost before. Every
second kill is of planish alone, as `kill -9` is, which leaves converters and the emulator to notice; the others take
all of its processes at once, as a crash of the machine does. Writes reports/benchmarks/kills.json and .md; exits 1 when
a kill made a difference.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.environment import environment  # noqa: E402
from pipeline.export.artifact import sha256_of  # noqa: E402
from pipeline.store.mark import MARK  # noqa: E402
from pipeline.store.run_directory import EVENTS, RECIPE, STATUS  # noqa: E402
from reports.records import read_run  # noqa: E402
from targets.cache import cache_root  # noqa: E402

JOB = ("examples/fashion/model.py:trained", "--data", "examples/fashion/calibration.npz",
       "--test", "examples/fashion/test.npz", "--target", "pixel-4-cpu", "--latency", "60%", "--format", "tflite",
       "--recover-steps", "60")  # fmt: skip
COMMAND = (sys.executable, "-P", "-c", "from pipeline.cli.main import main; main()")
OUT = ROOT / "reports" / "benchmarks"
LEARNED = ("timings", "profiles")  # of the emulator's cache: what it measured, and not what it is made of
POLL_S, LIMIT_S = 0.02, 1800


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        moment_s: of the run that nothing happens to, in seconds.
        after: the stage that was finished last at that moment; empty before the first.
        whole: its children were killed with it.
        doing: what the run said last.
        kept: stages that were finished.
        again: those of them that were made again, which none should be.
    """

    run: int
    moment_s: float
    after: str
    whole: bool
    doing: str
    kept: int
    again: tuple[str, ...]


@dataclass(frozen=True)
class Moment:
    """So many seconds after the stage `after` was finished, or after the start where that is empty."""

    at_s: float
    after: str
    seconds: float


class Trial:
    """A run from scratch in a folder of its own, with all that it learns."""

    def __init__(self, folder: Path) -> None:
        self.run, self.cache = folder / "run", folder / "cache"
        emulator = self.cache / "arm"
        emulator.mkdir(parents=True)
        for entry in [e for e in cache_root().iterdir() if e.name not in ("store", "arm")]:
            (self.cache / entry.name).symlink_to(entry)
        for entry in [e for e in (cache_root() / "arm").iterdir() if e.name not in LEARNED]:
            (emulator / entry.name).symlink_to(entry)

    def started(self) -> subprocess.Popen[bytes]:
        """The fit, or where there is something to go on with, that."""
        goes_on = (self.run / RECIPE).exists()
        words = ("fit", "--resume", str(self.run)) if goes_on else ("fit", *JOB, "-o", str(self.run))
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PLANISH_CACHE": str(self.cache)}
        return subprocess.Popen([*COMMAND, *words, "-q"], cwd=ROOT, env=variables, stdout=subprocess.DEVNULL)

    def until(self, moment: Moment) -> subprocess.Popen[bytes]:
        """Let it work until that moment, or until it is done."""
        seen, process = len(self.events()), self.started()
        while moment.after and moment.after not in [event.get("stage") for event in self.events()[seen:]]:
            if process.poll() is not None:
                return process
            time.sleep(POLL_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment.seconds)
        return process

    def events(self) -> list[dict[str, Any]]:
        path = self.run / EVENTS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ends(self) -> dict[str, float]:
        """When each stage was finished first, and last the run itself: seconds since it began."""
        events = self.events()
        times = [datetime.fromisoformat(event["time"]) for event in events]
        found: dict[str, float] = {}
        for event, at in zip(events, times):
            if event["event"] in ("stage", "end"):
                found.setdefault(event.get("stage", "end"), (at - times[0]).total_seconds())
        return found

    def moment(self, at_s: float) -> Moment:
        """The same of this run, which nothing happened to, in words that hold for another."""
        before = {"": 0.0, **{stage: end for stage, end in self.ends().items() if end <= at_s}}
        after = max(before, key=before.__getitem__)
        return Moment(at_s, after, at_s - before[after])

    def finished(self) -> set[str]:
        """Its stages that are whole."""
        return {path.parent.relative_to(self.run).as_posix() for path in self.run.rglob(MARK) if not _partial(path)}

    def doing(self) -> str:
        """What the run said last, in one line."""
        with contextlib.suppress(OSError):
            return json.loads((self.run / STATUS).read_text()).get("doing", "reading the recipe")
        return "starting"

    def handed_over(self) -> dict[str, str]:
        """SHA-256 of every file of the bundle, and of the weights that the artifact was made of."""
        final = self.run / f"candidates/{read_run(self.run / 'report.json').chosen.index:02d}"
        files = [*(self.run / "bundle").iterdir(), final / "network" / "weights.safetensors"]
        return {path.name: sha256_of(path) for path in sorted(files)}


def _partial(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parent.parts)


def descendants(process: int) -> list[int]:
    """Ids of the processes that a process started, and of those that they did."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])

    def below(pid: int) -> list[int]:
        return [each for child, parent in parents.items() if parent == pid for each in (child, *below(child))]

    return below(process)


def kill(process: subprocess.Popen[bytes], whole: bool) -> None:
    process.send_signal(signal.SIGSTOP)  # so that it starts nothing between being looked at and being killed
    for each in [process.pid, *(descendants(process.pid) if whole else [])]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.wait()


def killed(number: int, folder: Path, moments: list[Moment], done: int, expected: dict[str, str]) -> dict[str, Any]:
    """A run killed at the given moments, as many as come before its end, and then let go."""
    trial, hits = Trial(folder), []
    for moment in moments:
        process = trial.until(moment)
        if process.poll() is not None:
            break
        whole = (done + len(hits)) % 2 == 0
        kill(process, whole)
        hits.append((moment, whole, trial.doing(), trial.finished(), len(trial.events())))
        print(f"  {moment.at_s:.1f} s: killed {'all' if whole else 'planish'}, {trial.doing()}", flush=True)
    else:
        process = trial.started()
        process.wait(LIMIT_S)
    events = trial.events()
    kills = []
    for moment, whole, doing, kept, seen in hits:
        made = [event["stage"] for event in events[seen:] if event["event"] == "stage" and event["cached"] is False]
        again = tuple(sorted(kept.intersection(made)))
        kills.append(Kill(number, round(moment.at_s, 1), moment.after, whole, doing, len(kept), again))
    return {
        "exit_code": process.returncode,
        "identical": process.returncode == 0 and trial.handed_over() == expected,
        "left_half_made": [str(path.relative_to(trial.run)) for path in trial.run.rglob(".*") if path.is_dir()],
        "kills": [asdict(each) for each in kills],
    }


def table(found: dict[str, Any]) -> str:
    runs = {number: each for number, each in enumerate(found["runs"], 1)}
    lines = [
        "# Killed and resumed",
        "",
        f"The Fashion example at 60 % of its latency on pixel-4-cpu takes {found['whole_s']:.0f} s when nothing "
        f"happens to it. {found['kills']} kills with SIGKILL at random moments of {len(runs)} runs from scratch, each "
        f"resumed: {found['different']} of the runs ended in other bytes (bundle, manifest and weights), and "
        f"{found['again']} of the stages that were finished at a kill were made again.",
        "",
        "| run | at, s | killed | it was | stages kept | made again | the run's artifact |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, run in runs.items():
        same = "identical" if run["identical"] else f"different (exit {run['exit_code']})"
        for each in run["kills"]:
            lines.append(
                f"| {number} | {each['moment_s']:.1f} | {'all' if each['whole'] else 'planish alone'} | "
                f"{each['doing']} | {each['kept']} | {len(each['again'])} | {same} |"
            )
    return "\n".join([*lines, "", f"Reproduce: `{found['command']}`", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--a-run", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="where the runs are (default: a temporary folder)")
    asked = parser.parse_args()
    chance, runs, kills = random.Random(asked.seed), [], 0
    if asked.runs:
        asked.runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="planish-kills-", dir=asked.runs) as folder:
        whole = Trial(Path(folder) / "0")  # a path as long as the others': emulated latencies hang on it
        process = whole.started()
        process.wait(LIMIT_S)
        if process.returncode != 0:
            print(f"the run that nothing happens to ended with exit code {process.returncode}", file=sys.stderr)
            return 1
        expected, stages, whole_s = whole.handed_over(), len(whole.finished()), whole.ends()["end"]
        print(f"uninterrupted: {whole_s:.1f} s, {stages} stages", flush=True)
        while kills < asked.times:
            count = min(asked.a_run, asked.times - kills)
            moments = [whole.moment(each) for each in sorted(chance.uniform(0, whole_s) for _ in range(count))]
            print(f"run {len(runs) + 1}", flush=True)
            # "run" has the name of the whole one: the manifest says it
            runs.append(killed(len(runs) + 1, Path(folder) / f"{len(runs) + 1}", moments, kills, expected))
            kills += len(runs[-1]["kills"])
            print(f"  exit {runs[-1]['exit_code']}, identical: {runs[-1]['identical']}", flush=True)
            if runs[-1]["identical"]:
                shutil.rmtree(Path(folder) / f"{len(runs)}")
        different = [run for run in runs if not run["identical"] or run["left_half_made"]]
        if different and asked.runs:
            shutil.copytree(folder, asked.runs / "kept", symlinks=True)
    found = {
        "command": f"python tests/benchmarks/kills.py --times {asked.times} --seed {asked.seed}",
        "kills": kills,
        "whole_s": round(whole_s, 1),
        "stages": stages,
        "different": len(different),
        "again": sum(len(each["again"]) for run in runs for each in run["kills"]),
        "sha256": expected,
        "runs": runs,
        "environment": environment(),
    }
    (OUT / "kills.json").write_text(json.dumps(found, indent=1) + "\n")
    (OUT / "kills.md").write_text(table(found))
    return int(bool(different or found["again"]))


if __name__ == "__main__":
    sys.exit(main())
