"""The shared store: what was not as it was made is never served, whatever became of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store.mark import MARK, DamagedError, read_mark, require_intact, seal
from pipeline.store.objects import Store

KEY = "k" * 64
CONTENT = {"weights.safetensors": b"0123456789" * 50, "model.mlpackage/Data/model.mlmodel": b"abc", "plan.json": b"{}"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Holds one result, made in a directory that is gone: a file, a package, a record."""
    made = tmp_path / "made"
    for name, content in CONTENT.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    mark = seal(made, key=KEY, stage="stage", seconds=1.5, result={"ms": 8.25, "rows": [None, True, "x"]})
    found = Store(tmp_path / "store")
    found.put(made, mark)
    shutil.rmtree(made)
    return found


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def rewrite(path: Path, content: bytes) -> None:
    """In place, as a program does that may write: the inode stays, the time of change does not."""
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))


def test_what_was_put_is_fetched_with_its_mark(store: Store, into: Path) -> None:
    mark = store.fetch(KEY, into)
    assert (mark.key, mark.stage, mark.seconds) == (KEY, "stage", 1.5)
    assert mark.result == {"ms": 8.25, "rows": [None, True, "x"]}
    assert {name: (into / name).read_bytes() for name in CONTENT} == CONTENT
    assert mark.bytes == sum(map(len, CONTENT.values())) and read_mark(into) == mark
    assert store.fetch("0" * 64, into) is None


def test_files_are_links_that_nobody_can_write_by_accident(store: Store, into: Path) -> None:
    store.fetch(KEY, into)
    for name in CONTENT:
        facts = (into / name).stat()
        assert facts.st_nlink == 2 and facts.st_mode & 0o777 == 0o444
    assert (into / MARK).stat().st_nlink == 1
    shutil.rmtree(into)
    assert store.fetch(KEY, _empty(into)) is not None


def test_another_file_system_gets_copies(store: Store, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    store.fetch(KEY, into)
    assert {name: (into / name).read_bytes() for name in CONTENT} == CONTENT
    assert all((into / name).stat().st_nlink == 1 for name in CONTENT)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a file is cut": lambda held: rewrite(held / "weights.safetensors", b"0123"),
    "a file is longer": lambda held: rewrite(held / "plan.json", b"{}\n"),
    "a byte is another": lambda held: rewrite(held / "weights.safetensors", b"1" + CONTENT["weights.safetensors"][1:]),
    "a byte in a package is another": lambda held: rewrite(held / "model.mlpackage/Data/model.mlmodel", b"abd"),
    "a file is missing": lambda held: (held / "plan.json").unlink(),
    "a package is missing": lambda held: shutil.rmtree(held / "model.mlpackage"),
    "a package is a file": lambda held: (shutil.rmtree(held / "model.mlpackage"), (held / "model.mlpackage").touch()),
    "a file is a package": lambda held: ((held / "plan.json").unlink(), (held / "plan.json").mkdir()),
    "the mark is empty": lambda held: (held / MARK).write_bytes(b""),
    "the mark is cut": lambda held: (held / MARK).write_bytes((held / MARK).read_bytes()[:-20]),
    "the mark is no text": lambda held: (held / MARK).write_bytes(b"\xff\xfe\x00"),
    "the mark is another object": lambda held: (held / MARK).write_text("[]"),
    "the mark lacks a field": lambda held: change_mark(held, lambda mark: mark.pop("files")),
    "the mark's result is another": lambda held: change_mark(held, lambda mark: mark["result"].update(ms=8.26)),
    "the mark forgets a file": lambda held: change_mark(held, lambda mark: mark["files"].pop("plan.json")),
    "there is no mark": lambda held: (held / MARK).unlink(),
    "nothing is there but a directory": lambda held: (shutil.rmtree(held), held.mkdir()),
}


def change_mark(held: Path, change: Callable[[dict], object]) -> None:
    mark = json.loads((held / MARK).read_text())
    change(mark)
    (held / MARK).write_text(json.dumps(mark))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_dropped_and_can_be_put_again(
    store: Store, into: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store.fetch(KEY, into)
    copy = shutil.copytree(into, tmp_path / "copy")
    damage(store.objects / KEY)
    with pytest.raises(DamagedError, match=".+"):
        store.fetch(KEY, _empty(into))
    assert os.listdir(store.objects) == []
    store.put(copy, read_mark(copy))
    assert {name: (_fetched(store, _empty(into)) / name).read_bytes() for name in CONTENT} == CONTENT


def test_a_result_under_the_key_of_another_is_dropped(store: Store, into: Path) -> None:
    (store.objects / KEY).rename(store.objects / ("o" * 64))
    with pytest.raises(DamagedError):
        store.fetch("o" * 64, into)


def test_a_file_that_was_only_touched_is_read_and_served(store: Store, into: Path) -> None:
    os.utime(store.objects / KEY / "plan.json", ns=(1, 1))
    assert store.fetch(KEY, into) is not None


def test_a_change_that_keeps_size_and_time_is_not_seen(store: Store, into: Path) -> None:
    """The price of not reading every file on every use, as with git's index; no program does this by accident."""
    path = store.objects / KEY / "plan.json"
    time_ns = path.stat().st_mtime_ns
    rewrite(path, b"[]")
    os.utime(path, ns=(time_ns, time_ns))
    assert store.fetch(KEY, into) is not None


def test_a_use_is_the_time_of_the_mark(store: Store, into: Path) -> None:
    mark = store.objects / KEY / MARK
    os.utime(mark, (1, 1))
    store.fetch(KEY, into)
    assert mark.stat().st_mtime > 1e9


def test_of_two_that_put_the_same_the_first_stays(store: Store, into: Path, tmp_path: Path) -> None:
    first = (store.objects / KEY / "plan.json").stat().st_ino
    store.fetch(KEY, into)
    again = tmp_path / "again"
    shutil.copytree(into, again)
    store.put(again, read_mark(again))
    assert (store.objects / KEY / "plan.json").stat().st_ino == first
    assert os.listdir(store.objects) == [KEY]


def test_what_else_lies_in_a_directory_is_no_damage(store: Store, into: Path) -> None:
    mark = store.fetch(KEY, into)
    (into / "notes.txt").write_text("mine")
    require_intact(into, mark)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _fetched(store: Store, into: Path) -> Path:
    store.fetch(KEY, into)
    return into
