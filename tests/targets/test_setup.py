"""Setting up the emulator: what is missing is said, with the command or the step that helps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from targets import debian
from targets.arm import parts, qemu, setup
from targets.cache import cache_root, staged_directory, write_atomic
from targets.errors import MissingEnvironmentError
from targets.measure import measure, measure_many
from targets.parts import CONTENTS, damage, record_contents
from targets.profile import load_profile
from targets.runners import executorch

APT = """#!/bin/sh
case "$*" in *install*) echo "{install}"; exit 100;; *) echo "{update}"; exit 0;; esac
"""


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_programs(folder: Path, monkeypatch, update: str, install: str) -> None:
    """A PATH on which apt-get says what it is told to."""
    folder.mkdir()
    programs = {
        "apt-get": APT.format(update=update, install=install),
        "gcc": "#!/bin/sh\n",
        "dpkg-deb": "#!/bin/sh\n",
        "dpkg": "#!/bin/sh\necho amd64\n",
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin")


def test_without_set_up_the_error_names_the_command(empty_cache, small):
    assert not setup.is_ready()
    with pytest.raises(MissingEnvironmentError) as caught:
        measure(small["tflite"][0], format="tflite", profile=load_profile("pixel-4-cpu"), inputs=small["tflite"][1])
    assert (caught.value.code, caught.value.exit_code) == ("EMULATOR_MISSING", 6)
    assert "`planish targets setup pixel-4-cpu`" in caught.value.fix
    assert str(caught.value).count("\n") == 3
    assert not empty_cache.exists()


def test_with_nothing_on_the_path_the_missing_programs_are_named(empty_cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingEnvironmentError) as caught:
        setup.ensure()
    assert caught.value.code == "EMULATOR_MISSING"
    assert all(program in caught.value.why for program in ("gcc", "apt-get", "dpkg-deb"))
    assert "Debian" in caught.value.fix


@pytest.mark.parametrize(
    ("update", "install", "why", "fix"),
    [
        (
            "Reading",
            "E: Unable to locate package python3.11-minimal",
            "sources do not offer it",
            "Ubuntu keeps arm64 on",
        ),
        (
            "W: Failed to fetch InRelease Could not resolve",
            "E: Unable to locate package x",
            "not be fetched",
            "network",
        ),
        ("Reading", "E: Failed to fetch x.deb Connection timed out", "the download failed", "network"),
        ("Reading", "E: You don't have enough free space in y/", "the disk is full", "PLANISH_CACHE"),
        ("Reading", "E: Something else", "E: Something else", "apt-get update"),
    ],
)
def test_what_apt_says_becomes_what_to_do(empty_cache, tmp_path, monkeypatch, update, install, why, fix):
    fake_programs(tmp_path / "bin", monkeypatch, update, install)
    with pytest.raises(MissingEnvironmentError) as caught:
        setup.ensure()
    assert caught.value.code == "EMULATOR_MISSING"
    assert why in caught.value.why and fix in caught.value.fix
    left = [path.name for path in (empty_cache / "arm").iterdir()]
    assert left == ["setup.lock"], "a failed set-up leaves nothing behind"


def test_an_unwritable_cache_is_named(monkeypatch):
    monkeypatch.setenv("PLANISH_CACHE", "/dev/null/cache")
    monkeypatch.setattr(setup, "require_programs", lambda *args: None)
    with pytest.raises(MissingEnvironmentError) as caught:
        setup.ensure()
    assert "/dev/null/cache" in caught.value.why and "PLANISH_CACHE" in caught.value.fix


def test_too_little_disk_is_said_before_anything_is_fetched(empty_cache, monkeypatch):
    monkeypatch.setattr(setup, "DISK_BYTES", 1 << 62)
    monkeypatch.setattr(setup, "require_programs", lambda *args: None)
    with pytest.raises(MissingEnvironmentError) as caught:
        setup.ensure()
    assert "MB are needed" in caught.value.why


def test_a_runtime_of_another_version_is_another_sysroot(empty_cache, monkeypatch):
    before = parts.emulator()
    monkeypatch.setattr(parts, "wheels", lambda: ["onnxruntime==0.0"])
    after = parts.emulator()
    assert before.sysroot != after.sysroot and before.pycache != after.pycache
    assert (before.tools, before.plugin) == (after.tools, after.plugin)


@pytest.mark.emulator
def test_set_up_is_repeatable_and_quick_when_done(emulator):
    said = []
    assert setup.ensure(said.append) == setup.require()  # the fixture's own, which lies behind another link by now
    assert said == []


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    monkeypatch.delenv("PLANISH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "planish"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "planish"


def test_a_staged_directory_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / "part"
    with pytest.raises(RuntimeError), staged_directory(final) as staging:
        (staging / "file").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with staged_directory(final) as staging:
        (staging / "file").touch()
        assert not final.exists()
    assert (final / "file").exists() and list(tmp_path.iterdir()) == [final]


def test_of_two_builders_of_a_directory_the_first_wins(tmp_path):
    final = tmp_path / "part"
    with staged_directory(final) as late:
        (late / "late").touch()
        with staged_directory(final) as early:
            (early / "early").touch()
    assert [path.name for path in final.iterdir()] == ["early"] and list(tmp_path.iterdir()) == [final]


def test_what_a_killed_set_up_left_is_removed(empty_cache, tmp_path, monkeypatch):
    (empty_cache / "arm" / ".sysroot-0.x").mkdir(parents=True)
    fake_programs(tmp_path / "bin", monkeypatch, "Reading", "E: Something else")
    with pytest.raises(MissingEnvironmentError):
        setup.ensure()
    assert [path.name for path in (empty_cache / "arm").iterdir()] == ["setup.lock"]


def test_an_atomic_write_leaves_one_file(tmp_path):
    for text in ("old", "new"):
        write_atomic(tmp_path / "a" / "b.txt", text)
    assert (tmp_path / "a" / "b.txt").read_text() == "new"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_unpacking_needs_no_root_and_no_system_state(tmp_path):
    conf = debian.APT_CONF.format(architecture="arm64", state=tmp_path)
    assert all(
        setting in conf
        for setting in (
            f'Dir::State "{tmp_path}"',
            f'Dir::Cache "{tmp_path}/cache"',
            f'Dir::State::status "{tmp_path}/status"',
        )
    )
    assert "AllowUnauthenticated" not in conf


def build_parts(*names: str) -> parts.Emulator:
    """Parts with one file each, as whole as the real ones as far as planish can tell."""
    places = parts.emulator()
    for name in names or vars(places):
        part = getattr(places, name)
        part.mkdir(parents=True)
        (part / "file").write_text("content")
        record_contents(part)
    return places


def only_lock_and(*kept: Path) -> set[str]:
    return {"setup.lock", *(path.name for path in kept)}


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda part: (part / "file").unlink(), "1 of its 1 files are missing or have another size, file first"),
        (lambda part: (part / "file").write_text("con"), "1 of its 1 files are missing or have another size"),
        (lambda part: (part / CONTENTS).unlink(), "its list of files cannot be read"),
        (lambda part: (part / CONTENTS).write_text('{"fi'), "its list of files cannot be read"),
    ],
)
def test_a_damaged_part_is_said_before_anything_runs_and_built_again(empty_cache, monkeypatch, small, harm, why):
    places = build_parts()
    assert parts.require() == places and setup.is_ready()
    harm(places.sysroot)
    assert not setup.is_ready()
    with pytest.raises(MissingEnvironmentError) as caught:
        measure(small["tflite"][0], format="tflite", profile=load_profile("pixel-4-cpu"), inputs=small["tflite"][1])
    assert (caught.value.code, caught.value.where) == ("EMULATOR_DAMAGED", str(places.sysroot))
    assert why in caught.value.why and "`planish targets setup pixel-4-cpu`" in caught.value.fix
    assert str(caught.value).count("\n") == 3

    monkeypatch.setattr(setup, "require_programs", lambda *args: None)
    for build in ("_build_sysroot", "_build_predecessor"):
        monkeypatch.setattr(setup, build, lambda into, progress: (into / "new").write_text("new"))
    said = []
    assert setup.ensure(said.append) == places == parts.require()
    assert "again" in said[0] and places.sysroot.name in said[0]
    assert [path.name for path in places.sysroot.iterdir() if path.name != CONTENTS] == ["new"]
    assert (places.tools / "file").exists(), "what was whole is kept"


def test_without_the_runtime_of_older_apps_all_else_is_set_up(empty_cache, monkeypatch, small):
    def refuse(into, progress):
        (into / "half").write_text("of it")
        raise parts.environment_missing("no wheel", "the index does not have it", "look elsewhere")

    places = build_parts()
    monkeypatch.setattr(setup, "_build_predecessor", refuse)
    said = []
    assert setup.ensure(said.append) == places and "going on without tflite-runtime" in said[-1]
    assert not parts.predecessor().exists()
    with pytest.raises(MissingEnvironmentError) as caught:
        measure_many(
            [(small["tflite"][0], "tflite", small["tflite"][1])],
            profile=load_profile("pixel-4-cpu"),
            runtime="tflite-runtime",
        )
    assert caught.value.code == "EMULATOR_MISSING" and "tflite-runtime==2.14.0" in caught.value.what
    assert "`planish targets setup pixel-4-cpu`" in caught.value.fix
    monkeypatch.setattr(setup, "_build_predecessor", lambda into, progress: (into / "new").write_text("new"))
    setup.ensure()
    assert (parts.predecessor() / "new").exists()


@pytest.mark.emulator
def test_what_is_made_through_a_link_to_the_cache_outlives_the_link(emulator, empty_cache):
    """A phone's description links to the sysroot, and stays when the way it was found by is gone."""
    profile = replace(load_profile("pixel-4-cpu"), soc=f"of process {os.getpid()}")
    empty_cache.mkdir()
    (empty_cache / "arm").symlink_to(emulator.sysroot.parent)
    tree = qemu.tree(parts.emulator(), profile)
    (empty_cache / "arm").unlink()
    try:
        assert (tree / "usr/bin/python3.11").exists()
    finally:
        shutil.rmtree(tree)


def test_set_up_removes_what_links_to_where_the_cache_was(emulator, tmp_path):
    gone = emulator.sysroot.parent / f"tree-{os.getpid()}"
    gone.mkdir()
    (gone / "usr").symlink_to(tmp_path / "moved")
    setup.ensure()
    assert not gone.exists()


def test_the_emulator_as_it_was_set_up_is_whole(emulator):
    assert [damage(part) for part in vars(emulator).values()] == [None] * 4


def test_a_timing_plugin_that_does_not_compile_is_quoted(empty_cache, tmp_path, monkeypatch):
    fake_programs(tmp_path / "bin", monkeypatch, "", "")
    (tmp_path / "bin/gcc").write_text(
        "#!/bin/sh\necho 'In file: note' >&2; echo 'x.c:3:1: error: no stdio.h' >&2; exit 1"
    )
    places = build_parts("tools", "sysroot")
    with pytest.raises(MissingEnvironmentError) as caught:
        setup.ensure()
    assert caught.value.code == "EMULATOR_MISSING" and caught.value.what == "the timing plugin does not compile"
    assert caught.value.why == "x.c:3:1: error: no stdio.h" and "apt-get install" in caught.value.fix
    assert {path.name for path in places.plugin.parent.iterdir()} == only_lock_and(places.tools, places.sysroot)


def test_a_runtime_that_does_not_start_is_said_with_how_it_ended(empty_cache, monkeypatch):
    places = build_parts("tools", "sysroot", "plugin")
    monkeypatch.setattr(setup, "require_programs", lambda *args: None)
    ended = subprocess.CompletedProcess([], -signal.SIGILL, stdout="", stderr="qemu: uncaught target signal 4")
    monkeypatch.setattr(setup, "run_python", lambda *args, **options: ended)
    with pytest.raises(MissingEnvironmentError) as caught:
        setup.ensure()
    assert "SIGILL" in caught.value.what and caught.value.why == "qemu: uncaught target signal 4"
    assert not places.pycache.exists()


def test_a_runner_that_does_not_compile_for_the_phone_leaves_no_sysroot(tmp_path, monkeypatch):
    def compiler(packages, architecture, into, **options):
        gxx = into / "usr/bin/aarch64-linux-gnu-g++"
        gxx.parent.mkdir(parents=True)
        gxx.write_text("#!/bin/sh\necho 'executorch.cpp:8:10: fatal error: no such header' >&2; exit 1")
        gxx.chmod(0o755)

    monkeypatch.setattr(setup, "unpack", compiler)
    package = tmp_path / "executorch"
    package.mkdir()
    with pytest.raises(MissingEnvironmentError) as caught:
        setup._build_executorch_runner(package, tmp_path, lambda message: None)
    assert "no such header" in caught.value.why and "pip install" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["executorch"], "the compiler is gone"


def test_the_runner_of_this_machine_is_compiled_once(empty_cache):
    first = executorch.library()
    before = first.stat().st_mtime_ns
    assert executorch.library() == first and first.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("gxx", "why", "fix"),
    [
        (None, "not found on the PATH: g++", "apt-get install g++"),
        ("echo 'executorch.cpp:8:10: fatal error: no such header' >&2; exit 1", "no such header", "GCC"),
    ],
)
def test_without_a_working_compiler_a_program_cannot_be_run_here(empty_cache, tmp_path, monkeypatch, gxx, why, fix):
    (tmp_path / "bin").mkdir()
    if gxx:
        (tmp_path / "bin/g++").write_text(f"#!/bin/sh\n{gxx}")
        (tmp_path / "bin/g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    program = tmp_path / "model.pte"
    program.write_bytes(b"")
    numpy.savez(tmp_path / "model.npz", x=numpy.zeros(1))
    with pytest.raises(MissingEnvironmentError) as caught:
        measure(program, format="pte", profile=load_profile("host"), inputs=tmp_path / "model.npz")
    assert (caught.value.code, caught.value.exit_code) == ("EXECUTORCH_RUNNER_MISSING", 6)
    assert why in caught.value.why and fix in caught.value.fix
    assert str(caught.value).count("\n") == 3
    assert not [*empty_cache.rglob("*.so")] and not [*empty_cache.glob("executorch/*")]
