"""Setting up the GPU path: what is missing or broken is said, with the command that repairs it."""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy
import pytest

from targets import debian
from targets.debian import Pin
from targets.errors import MissingEnvironmentError, PlanishError
from targets.gpu import gpus, mesa, places, process
from targets.gpu.counts import count
from targets.gpu.run import run
from targets.parts import CONTENTS, damage, record_contents, record_versions

DEBIAN = """#!/bin/sh
echo "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release) {base}"
"""


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A mirror on this machine with one package, and an apt-get that names it: (its pin, the mirror's folder)."""
    folder, tree = tmp_path / "mirror", tmp_path / "tree"
    (folder / "pool").mkdir(parents=True)
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "usr/lib/thing").write_text("content")
    subprocess.run(["dpkg-deb", "--build", tree, folder / "pool/thing.deb"], check=True, capture_output=True)
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(debian, "mirror", lambda missing: f"http://127.0.0.1:{server.server_port}/")
        digest = hashlib.sha256((folder / "pool/thing.deb").read_bytes()).hexdigest()
        yield Pin("thing", "1.0", "pool/thing.deb", digest), folder
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing on the console of the tests."""


def unpacked(pin: Pin, into: Path) -> dict[str, str] | None:
    into.mkdir()
    return debian.unpack_pinned([pin], "amd64", into, missing=places.environment_missing, progress=lambda message: None)


def test_a_pinned_package_is_fetched_and_unpacked(archive, tmp_path):
    pin, _ = archive
    assert unpacked(pin, tmp_path / "into") == {"thing": "1.0"}
    assert (tmp_path / "into/usr/lib/thing").read_text() == "content"


def test_a_package_that_is_not_what_was_pinned_is_refused(archive, tmp_path):
    pin, folder = archive
    with open(folder / "pool/thing.deb", "ab") as stream:
        stream.write(b"more")
    with pytest.raises(MissingEnvironmentError) as caught:
        unpacked(pin, tmp_path / "into")
    assert (caught.value.code, caught.value.exit_code) == ("GPU_DRIVER_MISSING", 6)
    assert "checksum mismatch" in caught.value.why and pin.sha256 in caught.value.why
    assert not [*(tmp_path / "into").iterdir()]


def test_a_pinned_package_that_the_mirror_no_longer_has_is_no_error(archive, tmp_path):
    pin, folder = archive
    (folder / "pool/thing.deb").unlink()
    assert unpacked(pin, tmp_path / "into") is None


def test_without_a_network_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "mirror", lambda missing: "http://127.0.0.1:1/")
    with pytest.raises(MissingEnvironmentError) as caught:
        unpacked(Pin("thing", "1.0", "pool/thing.deb", ""), tmp_path / "into")
    assert caught.value.code == "GPU_DRIVER_MISSING"
    assert "the download failed" in caught.value.why and "network" in caught.value.fix


def test_without_a_debian_mirror_in_the_sources_the_error_says_so(tmp_path, monkeypatch):
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'stable https://example.org/not-debian'\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MissingEnvironmentError) as caught:
        debian.mirror(places.environment_missing)
    assert "no mirror of Debian" in caught.value.what and "Debian 12" in caught.value.fix


@pytest.mark.parametrize("base", ["http://mirror.example/debian", "http://mirror.example/debian/"])
def test_the_mirror_is_that_of_the_machines_own_release(tmp_path, monkeypatch, base):
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        pytest.skip("this machine is no Debian")
    (tmp_path / "apt-get").write_text(DEBIAN.format(base=base))
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert debian.mirror(places.environment_missing) == "http://mirror.example/debian/"


@pytest.mark.parametrize(
    ("offered", "source"), [({"sid", "bookworm-backports"}, "sid"), ({"bookworm-backports"}, "bookworm-backports")]
)
def test_when_the_pinned_packages_are_gone_others_are_taken_and_recorded(tmp_path, monkeypatch, offered, source):
    def unpack(packages, architecture, into, *, suites, missing, **settings):
        if suites[-1] not in offered:
            raise missing(f"{suites} has nothing", "", "")
        assert ("mesa-drm-shim" in packages) == (suites[-1] == "sid"), "backports has no compilers of phones' GPUs"
        (into / "usr/share/vulkan").mkdir(parents=True)
        return {"mesa-vulkan-drivers": "27.0"}

    monkeypatch.setattr(mesa, "unpack_pinned", lambda *args, **settings: None)
    monkeypatch.setattr(mesa, "unpack", unpack)
    said = []
    assert mesa._unpack_mesa(debian.host_architecture(), tmp_path, said.append)[-1] == source
    assert json.loads((tmp_path / "versions.json").read_text()) == {"mesa-vulkan-drivers": "27.0", "source": source}
    assert "no longer on the mirror" in said[0]
    named = places.Places(*[tmp_path] * 5)
    assert named.mesa(mali=False) == f"27.0 ({source})"


def test_when_no_source_has_mesa_the_error_is_of_the_first(tmp_path, monkeypatch):
    def unpack(packages, architecture, into, *, suites, missing, **settings):
        raise missing(f"{suites[-1]} has nothing", "", "")

    monkeypatch.setattr(mesa, "unpack_pinned", lambda *args, **settings: None)
    monkeypatch.setattr(mesa, "unpack", unpack)
    with pytest.raises(MissingEnvironmentError, match="sid has nothing"):
        mesa._unpack_mesa("amd64", tmp_path, lambda message: None)


def test_the_pins_are_of_one_mesa_and_whole():
    for architecture in ("amd64", "arm64"):
        pins = places.pins("driver", architecture)
        assert {*places.DRIVER_PACKAGES} <= {pin.package for pin in pins}
        assert all(len(pin.sha256) == 64 and pin.path.startswith("pool/main/") for pin in pins)
        assert len({pin.package for pin in pins}) == len(pins)
    versions = {
        pin.version
        for architecture in ("amd64", "arm64")
        for pin in places.pins("driver", architecture)
        if pin.package.startswith("mesa-")
    }
    assert len(versions) == 1
    assert [pin.package for pin in places.pins("emulator", "amd64")] == [places.EMULATOR]
    assert [pin.package for pin in places.pins("headers", "amd64")] == [places.HEADERS]
    assert places.pins("driver", "riscv64") == (), "not tested there: sid's current ones are taken"


def build_parts(*, mali: bool = False) -> places.Places:
    """Parts with one file each, as whole as the real ones as far as planish can tell."""
    found = places.places()
    for part in found.of(mali=mali):
        part.mkdir(parents=True)
        (part / "file").write_text("content")
        record_versions(part, {"mesa-vulkan-drivers": "1", "source": "pinned"})
        record_contents(part)
    return found


def test_without_set_up_the_error_names_the_command(empty_cache, tmp_path):
    assert not places.is_ready()
    for ask in (
        lambda: run(tmp_path / "a.tflite", tmp_path / "i", tmp_path / "o"),
        lambda: count(tmp_path / "a.tflite"),
    ):
        with pytest.raises(MissingEnvironmentError) as caught:
            ask()
        assert (caught.value.code, caught.value.exit_code) == ("GPU_DRIVER_MISSING", 6)
        assert "`planish targets setup pixel-4-gpu`" in caught.value.fix
        assert str(caught.value).count("\n") == 3
    assert not empty_cache.exists()


def test_with_nothing_on_the_path_the_missing_programs_are_named(empty_cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingEnvironmentError) as caught:
        mesa.ensure()
    assert caught.value.code == "GPU_DRIVER_MISSING"
    assert all(program in caught.value.why for program in ("gcc", "apt-get", "dpkg-deb"))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda part: (part / "file").unlink(), "1 of its 2 files are missing or have another size, file first"),
        (lambda part: (part / "file").write_text("con"), "1 of its 2 files are missing or have another size"),
        (lambda part: (part / CONTENTS).unlink(), "its list of files cannot be read"),
    ],
)
def test_a_damaged_part_is_said_before_anything_runs_and_built_again(empty_cache, monkeypatch, tmp_path, harm, why):
    found = build_parts()
    assert places.require() == found and places.is_ready()
    harm(found.driver)
    with pytest.raises(MissingEnvironmentError) as caught:
        run(tmp_path / "a.tflite", tmp_path / "i", tmp_path / "o")
    assert (caught.value.code, caught.value.exit_code) == ("GPU_DRIVER_DAMAGED", 6)
    assert caught.value.where == str(found.driver) and why in caught.value.why
    assert "`planish targets setup pixel-4-gpu`" in caught.value.fix

    monkeypatch.setattr(mesa, "_build_driver", lambda into, progress: (into / "new").write_text("new"))
    said = []
    assert mesa.ensure(said.append) == found == places.require()
    assert "again" in said[0] and found.driver.name in said[0]
    assert [path.name for path in found.driver.iterdir() if path.name != CONTENTS] == ["new"]
    assert (found.layer / "file").exists(), "what was whole is kept"


def test_a_driver_that_does_not_work_here_is_not_kept(empty_cache, monkeypatch):
    def unpack(architecture, into, progress):
        (into / "usr").mkdir()

    def headers(package, group, architecture, into, suites, progress):
        (into / "usr/include").mkdir(parents=True)

    def fails(gpu, places):
        raise PlanishError("w", where="", why="version `GLIBC_2.99' not found", fix="", code="GPU_RUN_FAILED")

    monkeypatch.setattr(mesa, "_unpack_mesa", unpack)
    monkeypatch.setattr(mesa, "_unpack", headers)
    monkeypatch.setattr(process, "try_out", fails)
    with pytest.raises(MissingEnvironmentError) as caught:
        mesa.ensure()
    assert caught.value.code == "GPU_DRIVER_MISSING" and "GLIBC_2.99" in caught.value.why
    assert [path.name for path in (empty_cache / "gpu").iterdir()] == ["setup.lock"]


def test_a_layer_that_does_not_compile_is_quoted(empty_cache, tmp_path, monkeypatch):
    found = build_parts()
    shutil.rmtree(found.layer)
    gcc = tmp_path / "bin/gcc"
    gcc.parent.mkdir()
    gcc.write_text("#!/bin/sh\necho 'count.c:10:10: fatal error: no such header' >&2; exit 1")
    gcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gcc.parent}:/usr/bin:/bin")
    with pytest.raises(MissingEnvironmentError) as caught:
        mesa.ensure()
    assert caught.value.what == "the counting layer does not compile" and "no such header" in caught.value.why
    assert not found.layer.exists()


def test_a_mesa_without_phones_gpus_says_so(empty_cache):
    found = build_parts()
    loader = found.driver / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"  # where Debian 12 has it
    loader.parent.mkdir(parents=True)
    loader.touch()
    assert gpus.command(gpus.GPUS["software"], found, ["-V"])[0] == str(loader)
    with pytest.raises(MissingEnvironmentError) as caught:
        gpus.command(gpus.GPUS["adreno-630"], found, ["-V"])
    assert caught.value.code == "GPU_DRIVER_MISSING" and "no compilers" in caught.value.what


@pytest.mark.gpu
def test_a_broken_layer_is_said_and_compiled_again(driver, empty_cache, whole):
    """With the real compiler and the real driver."""
    found = places.places()
    found.driver.parent.mkdir(parents=True)
    found.driver.symlink_to(driver.driver.resolve())
    found.webgpu.symlink_to(driver.webgpu.resolve())
    shutil.copytree(driver.layer, found.layer)
    (found.layer / places.LAYER_LIBRARY).write_bytes(b"\x7fELF")
    with pytest.raises(MissingEnvironmentError) as caught:
        count(whole)
    assert caught.value.code == "GPU_DRIVER_DAMAGED" and places.LAYER_LIBRARY in caught.value.why
    mesa.ensure()
    assert count(whole).dispatches > 2


@pytest.mark.gpu
def test_the_driver_as_it_was_set_up_is_whole_and_recorded(driver):
    assert [damage(part) for part in driver.of(mali=False)] == [None] * 3
    assert driver.mesa(mali=False)[:2].isdigit()
    said = []
    assert mesa.ensure(said.append) == driver and said == []


class _Workgroup(ctypes.Structure):
    """`struct workgroup` of spirv.h."""

    _fields_ = [("size", ctypes.c_uint32 * 3), ("constant", ctypes.c_int32 * 3)]


@pytest.fixture(scope="session")
def spirv_workgroup(tmp_path_factory):
    """`spirv_workgroup` of the layer: SPIR-V instructions, as (operation, *operands) -> sizes and constants."""
    library = tmp_path_factory.mktemp("spirv") / "spirv.so"
    subprocess.run(["gcc", *places.LAYER_OPTIONS[:-1], "-o", library, places.LAYER / "spirv.c"], check=True)
    function = ctypes.CDLL(str(library)).spirv_workgroup
    function.restype = _Workgroup

    def read(*instructions: tuple[int, ...]) -> tuple[list[int], list[int]]:
        words = [0x07230203, 0x10600, 0, 64, 0]
        for operation, *operands in instructions:
            words += [(1 + len(operands)) << 16 | operation, *operands]
        array = numpy.array(words, numpy.uint32)
        found = function(array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(words)))
        return [*found.size], [*found.constant]

    return read


def test_the_workgroup_of_a_shader_is_read_from_its_code(spirv_workgroup):
    none = [-1, -1, -1]
    assert spirv_workgroup((16, 1, 17, 8, 4, 2)) == ([8, 4, 2], none), "OpExecutionMode LocalSize"
    constants = [(43, 5, 10, 16), (50, 5, 11, 4), (43, 5, 12, 1), (71, 11, 1, 3)]
    by_id = ([16, 4, 1], [-1, 3, -1])
    assert spirv_workgroup((331, 1, 38, 10, 11, 12), *constants) == by_id, "LocalSizeId, a side of it specialised"
    built_in = [(71, 20, 11, 25), *constants, (51, 6, 20, 10, 11, 12)]
    assert spirv_workgroup((16, 1, 17, 1, 1, 1), *built_in) == by_id, "a constant decorated as WorkgroupSize"
    assert spirv_workgroup() == ([1, 1, 1], none)


def test_code_that_is_cut_short_is_not_read_beyond_its_end(spirv_workgroup):
    assert spirv_workgroup((16, 1, 17)) == ([1, 1, 1], [-1, -1, -1])
