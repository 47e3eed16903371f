"""Taking space back: the least recently used goes first, what is in use stays, and the books are right."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.store.collect import Held, Sweep, held, stale, sweep_run, sweep_store
from pipeline.store.locks import take
from pipeline.store.mark import MARK
from pipeline.store.objects import Store
from pipeline.store.run_directory import RunDirectory

SIZE = 1000


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """With stages `s0`, `s1`, `s2` of a thousand bytes each, used in that order."""
    run = RunDirectory.create(tmp_path / "run", "")
    for i in range(3):
        run.stage(f"s{i}", {}, lambda folder: (folder / "file").write_bytes(b"x" * SIZE))
        os.utime(run.store.objects / key_of(run, i) / MARK, (1000.0 * (i + 1),) * 2)
    return run


def key_of(run: RunDirectory, i: int) -> str:
    stages = {path.name for path in run.store.objects.iterdir()}
    return next(key for key in stages if f'"stage": "s{i}"' in (run.store.objects / key / MARK).read_text())


def test_results_are_in_the_order_of_their_use(run: RunDirectory) -> None:
    assert [each.key for each in held(run.store)] == [key_of(run, i) for i in range(3)]
    assert [each.used for each in held(run.store)] == [1000.0, 2000.0, 3000.0]
    assert all(each.bytes > SIZE for each in held(run.store))
    assert held(Store(run.root / "nothing")) == []


def test_a_result_that_another_process_removes_meanwhile_is_passed_over(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = key_of(run, 1)

    def removed_first(directory: Path) -> int:
        if directory.name == gone:
            shutil.rmtree(directory)
        return sum(file.stat().st_size for file in (directory / "file", directory / MARK))

    monkeypatch.setattr("pipeline.store.collect.bytes_of", removed_first)
    assert gone not in [each.key for each in held(run.store)] and len(held(run.store)) == 2


ROWS = [Held("old", 1.0, 10), Held("middle", 2.0, 20), Held("new", 3.0, 30)]


@pytest.mark.parametrize(
    ("before", "most", "going"),
    [
        (None, None, []),
        (2.5, None, ["old", "middle"]),
        (1.0, None, []),
        (None, 60, []),
        (None, 59, ["old"]),
        (None, 30, ["old", "middle"]),
        (None, 0, ["old", "middle", "new"]),
        (1.5, 45, ["old", "middle"]),
    ],
)
def test_age_and_size_say_what_goes(before: float | None, most: float | None, going: list[str]) -> None:
    assert [each.key for each in stale(ROWS, before=before, most_bytes=most)] == going


def test_what_a_run_shares_is_freed_with_its_last_link(run: RunDirectory) -> None:
    first = held(run.store)[:1]
    sweep_store(run.store, first, sweep := Sweep())
    assert sweep.removed == 1 and sweep.bytes == first[0].bytes
    assert sweep.freed_bytes == sweep.bytes - SIZE  # the mark: the file is the run's still
    assert run.stage("s0", {}, lambda folder: pytest.fail("the run has it")) == SIZE
    assert len(held(run.store)) == 2


def test_a_dry_run_says_the_same_and_removes_nothing(run: RunDirectory) -> None:
    before = sorted(path for path in run.store.root.rglob("*"))
    sweeps = []
    for dry_run in (True, False):
        sweeps.append(Sweep(dry_run))
        sweep_store(run.store, held(run.store), sweeps[-1])
        if dry_run:
            assert sorted(path for path in run.store.root.rglob("*")) == before
    dry, wet = sweeps
    assert (dry.removed, dry.bytes, dry.freed_bytes) == (wet.removed, wet.bytes, wet.freed_bytes)
    assert dry.removed == 3 and held(run.store) == []


def test_a_dry_run_over_all_links_of_a_file_counts_it_freed_once(run: RunDirectory) -> None:
    store, runs = Sweep(dry_run=True), None
    sweep_store(run.store, held(run.store), store)
    runs = Sweep(dry_run=True, gone=store.gone)
    sweep_run(run.root, 0, runs)
    assert runs.removed == 3 and runs.freed_bytes == 3 * SIZE


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_is_locked_stays(run: RunDirectory, dry_run: bool) -> None:
    with take(run.store.lock(key_of(run, 1))):
        sweep_store(run.store, held(run.store), sweep := Sweep(dry_run))
        assert (sweep.removed, sweep.busy) == (2, 1)
        assert run.store.lock(key_of(run, 1)).exists()
    assert (run.store.objects / key_of(run, 1) / "file").exists()


def test_leftovers_of_the_killed_go_and_of_the_living_stay(run: RunDirectory) -> None:
    keys = ["a" * 64, "b" * 64]
    for key in keys:
        (run.store.objects / f".{key}.x7y8").mkdir()
        (run.store.objects / f".{key}.x7y8" / "half").write_bytes(b"x" * 10)
    with take(run.store.lock(keys[0])):
        sweep_store(run.store, [], sweep := Sweep())
        assert (sweep.removed, sweep.freed_bytes, sweep.busy) == (1, 10, 1)
    assert [path.name for path in run.store.objects.glob(".*")] == [f".{keys[0]}.x7y8"]


def test_locks_of_what_is_not_there_go(run: RunDirectory) -> None:
    sweep_store(run.store, held(run.store)[:1], Sweep())
    assert {path.name for path in run.store.lock("").glob("*")} == {each.key for each in held(run.store)}


def test_of_a_finished_run_the_winner_and_what_was_measured_stay(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "model = 'x'\n")

    def network(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(b"w" * SIZE)
        (folder / "plan.json").write_text("{}")
        (folder / "model.mlpackage").mkdir()
        (folder / "model.mlpackage" / "Manifest.json").write_text("{}")

    for stage in ("base", "statistics", "candidates/00/network", "candidates/01/network", "candidates/02/network"):
        run.stage(stage, {}, network, shared=False)
    run.stage("candidates/01/host", {}, lambda folder: (folder / "samples.csv").write_text("1"), shared=False)
    (run.root / "bundle").mkdir()
    for kept in ("report.json", "report.html", "bundle/model.tflite", "scratch/checkpoint", ".partial-bundle-1/half"):
        (run.root / kept).parent.mkdir(exist_ok=True)
        (run.root / kept).write_text(kept)
    sweep_run(run.root, 2, sweep := Sweep())
    left = {path.relative_to(run.root).as_posix() for path in run.root.rglob("*") if path.is_file()}
    told = ("plan.json", MARK)
    whole = (*told, "weights.safetensors", "model.mlpackage/Manifest.json")
    assert left == {
        *(f"{stage}/{name}" for stage in ("base", "candidates/02/network") for name in whole),
        *(f"{name}/{file}" for name in ("statistics", *(f"candidates/0{i}/network" for i in (0, 1))) for file in told),
        *(f"candidates/01/host/{name}" for name in ("samples.csv", MARK)),
        *("recipe.toml", ".lock", "events.ndjson", "report.json", "report.html", "bundle/model.tflite"),
    }
    assert sweep.removed == 3 * 2 + 2 and sweep.freed_bytes == sweep.bytes > 3 * SIZE
    made = []
    run.stage("candidates/01/host", {}, made.append, shared=False)
    run.stage("candidates/01/network", {}, made.append, shared=False)  # what was removed is seen, and made again
    assert len(made) == 1
