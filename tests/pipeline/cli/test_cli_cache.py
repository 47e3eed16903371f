"""What a finished fit leaves for the next one: all of it, or all that a change does not touch. Real commands."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from commands import MODEL, events_of, finished, stages_of
from safetensors.torch import load_file, save_file

from pipeline.export.artifact import sha256_of
from pipeline.store.mark import MARK, read_mark
from pipeline.store.objects import shared_store
from reports.records import read_run
from targets.arm.parts import is_ready

pytestmark = [
    pytest.mark.slow,
    pytest.mark.export,
    pytest.mark.emulator,
    pytest.mark.skipif(not is_ready(), reason="the ARM64 emulator is not set up: planish targets setup pixel-4-cpu"),
]
JOB = ("--target", "pixel-4-cpu", "--latency", "60%", "--format", "tflite", "--recover-steps", 5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the user's emulator, and a store that the tests of this module share."""
    folder = tmp_path_factory.mktemp("cache")
    for entry in Path(os.environ["PLANISH_CACHE"]).iterdir():
        if entry.name != "store":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def first(cache: Path, user_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("first") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(user_folder)
        patch.setenv("PLANISH_CACHE", str(cache))
        done = finished("fit", *MODEL, *JOB, "-o", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(autouse=True)
def shared(own_store: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_CACHE", str(cache))


def fitted(run: Path, *words: object, model: tuple[object, ...] = MODEL, **settings: Path) -> tuple[set[str], set[str]]:
    """Stages that a fit made, and those that it took from the store."""
    done = finished("fit", *model, *JOB, *words, "-o", run, **settings)
    assert done.returncode == 0, done.stderr
    came = stages_of(run)
    assert set(came.values()) <= {False, "store"}
    return {name for name, where in came.items() if not where}, {name for name, where in came.items() if where}


def asked(first: Path) -> set[str]:
    """Stages of a fit that finds every plan. Its key cannot see what the model's file imports: `base` is made anew."""
    return set(stages_of(first)) - {"base", "statistics", "planning/options"}


def final(run: Path) -> str:
    """The folder of the network that is handed over."""
    return f"candidates/{read_run(run / 'report.json').chosen.index:02d}/"


def test_nothing_changed_and_nothing_but_the_network_is_read(first: Path, in_user_folder: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    made, served = fitted(tmp_path / "run")
    print(f"a full hit took {time.monotonic() - began:.1f} s, most of it the time until torch is loaded")
    assert (made, served) == ({"base"}, asked(first))
    assert sha256_of(tmp_path / "run/bundle/model.tflite") == sha256_of(first / "bundle/model.tflite")
    one, other = read_run(first / "report.json"), read_run(tmp_path / "run/report.json")
    assert (one.headline, one.chosen, len(one.candidates)) == (other.headline, other.chosen, len(other.candidates))


def test_one_weight_changes_everything(first: Path, in_user_folder: Path, tmp_path: Path) -> None:
    weights = load_file("weights.safetensors")
    weights["head.weight"][0, 0] += 1e-3
    save_file(weights, tmp_path / "weights.safetensors")
    made, served = fitted(tmp_path / "run", model=(*MODEL[:2], tmp_path / "weights.safetensors", *MODEL[3:]))
    assert {"base", "statistics", "planning/options", "candidates/00/tflite", "candidates/01/network"} <= made
    assert not served


VERSION = """
import importlib.metadata

known = importlib.metadata.version
importlib.metadata.version = lambda name: "99.0" if name == "litert-torch" else known(name)
"""


def test_a_librarys_version_changes_what_it_takes_part_in(first: Path, in_user_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(VERSION)
    made, served = fitted(tmp_path / "run", customized=tmp_path)
    assert {"plans/01", "candidates/00/network", "candidates/01/network"} <= served
    original = {name for name in stages_of(first) if name.startswith("candidates/00/")} - {"candidates/00/network"}
    assert original <= made, original - made


def test_a_key_of_the_recovery_changes_that_alone(first: Path, in_user_folder: Path, tmp_path: Path) -> None:
    made, served = fitted(tmp_path / "run", "--recover-rate", 0.002)
    assert f"{final(first)}network" in made
    assert all(name.startswith(final(first)) for name in made - {"base"}), made
    assert {name for name in asked(first) if not name.startswith(final(first))} <= served


def test_a_key_of_the_plan_changes_what_comes_after_it(first: Path, in_user_folder: Path, tmp_path: Path) -> None:
    made, served = fitted(tmp_path / "run", "--linearize", 1)
    assert {"planning/options", "plans/01", "candidates/01/network"} <= made
    before = {name for name in stages_of(first) if name.startswith("candidates/00/")}
    assert {"statistics"} | before <= served


@pytest.mark.parametrize("stage", ["candidates/01/network", "candidates/01/tflite"])
def test_what_is_damaged_in_the_store_is_made_again(
    stage: str, first: Path, in_user_folder: Path, tmp_path: Path
) -> None:
    key = read_mark(first / stage).key
    held = shared_store().objects / key
    victim = next(path for path in sorted(held.iterdir()) if path.name != MARK)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.unlink()  # the file of the first run is the same one
    victim.write_bytes(content)
    made, served = fitted(tmp_path / "run")
    assert made == {"base", stage} and served >= asked(first) - made
    (dropped,) = [event for event in events_of(tmp_path / "run") if event["event"] == "dropped"]
    assert (dropped["stage"], dropped["source"]) == (stage, "store") and victim.name in dropped["reason"]
    assert sha256_of(tmp_path / "run/bundle/model.tflite") == sha256_of(first / "bundle/model.tflite")
    assert read_mark(held).key == key and sha256_of(victim) == sha256_of(first / stage / victim.name)
