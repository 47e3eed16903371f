"""Target profiles: those planish ships are whole and sourced; a bad file or name says what is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets import core
from targets.core import CORES, read_core
from targets.errors import UsageError
from targets.facts import leaves
from targets.profile import PROFILES, PROSE, load_profile, read_profile

PIXEL = (PROFILES / "pixel-4-cpu.toml").read_text(encoding="utf-8")
A76 = (CORES / "cortex-a76.toml").read_text(encoding="utf-8")
FILES = sorted([*PROFILES.glob("*.toml"), *CORES.glob("*.toml")])


def write(directory: Path, text: str, name: str = "phone.toml") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path):
    return read_core(path) if path.parent.name == "cores" else read_profile(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_file_is_valid_and_every_fact_has_a_source(path):
    facts = read(path)
    if path.parent.name == "cores":
        assert "name" in facts.sources and "prefetch.lines" in facts.sources
        return
    assert facts == load_profile(path.stem)
    if facts.kind == "host":
        assert facts.core is None and facts.dram is None and facts.gpu is None and not facts.sources
    elif facts.kind == "gpu":
        assert facts.core is None and facts.dram is None
        assert set(leaves({"gpu": facts.gpu})) == facts.sources.keys() >= facts.unknown.keys()
    else:
        hardware = {name: getattr(facts, name) for name in ("core", "clock_ghz", "cores", "l1d", "l2", "l3", "dram")}
        hardware["core"] = facts.core.name
        assert set(leaves(hardware)) <= facts.sources.keys()
        assert facts.unknown.keys() <= facts.sources.keys(), "an unknown fact's source says what rule gave it"


def test_the_facts_of_the_pixel_4():
    profile = load_profile("pixel-4-cpu")
    assert (profile.soc, profile.clock_ghz, profile.cores) == ("Snapdragon 855", 2.84, 1)
    assert (profile.core.name, profile.core.midr_part, profile.core.mca_cpu) == ("Cortex-A76", 0xD0B, "neoverse-n1")
    assert (profile.l1d.kib, profile.l2.kib, profile.l3.kib) == (64, 512, 2048)
    assert len(profile.version) == 12 and int(profile.version, 16) >= 0


def test_the_version_is_of_the_text_and_of_the_core(tmp_path, monkeypatch):
    version = load_profile("pixel-4-cpu").version
    assert read_profile(write(tmp_path / "same", PIXEL)).version == version
    assert read_profile(write(tmp_path / "noted", PIXEL + "# note\n")).version != version
    monkeypatch.setattr(core, "CORES", tmp_path / "cores")
    write(tmp_path / "cores", A76 + "# note\n", "cortex-a76.toml")
    assert read_profile(write(tmp_path / "other", PIXEL)).version != version


def test_an_unknown_target_names_the_nearest_and_the_list():
    with pytest.raises(UsageError) as caught:
        load_profile("pixel4-cpu")
    assert caught.value.code == "TARGET_UNKNOWN"
    assert "did you mean 'pixel-4-cpu'?" in caught.value.fix and "planish targets list" in caught.value.fix
    assert str(caught.value).count("\n") == 3


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('kind = "emulator"', 'kind = "npu"', "kind is one of host, emulator, gpu, not 'npu'"),
        ('kind = "emulator"', 'kind = "gpu"', "missing: gpu"),
        ('kind = "emulator"', 'kind = "host"', "a host target is measured by the clock and has no core"),
        ('soc = "Snapdragon 855"', "", "missing: soc"),
        ('soc = "Snapdragon 855"', 'soc = "Snapdragon 855"\nram = 6', "unknown: ram"),
        ('core = "cortex-a76"', 'core = "cortexa76"', "did you mean 'cortex-a76'?"),
        ('core = "cortex-a76"', "", "missing: core"),
        ('core = "cortex-a76"', "core = 76", "core is the name of a file of cores/"),
        ("clock_ghz = 2.84", 'clock_ghz = "2.84"', "clock_ghz is a number, not '2.84'"),
        ("clock_ghz = 2.84", "clock_ghz = 2840.0", "clock_ghz is 2840; it must lie between 0.1 and 6 GHz"),
        ("clock_ghz = 2.84", "", "missing: clock_ghz"),
        ("cores = 1", "cores = true", "cores is a whole number, not True"),
        ("shared = false", "shared = 0", "l2.shared is true or false, not 0"),
        ("latency_ns = 3.3", "", "missing: l2.latency_ns"),
        ("ways = 4", "ways = 7", "l1d.kib: 64 KiB cannot be split into 7 ways of 64-byte lines"),
        ("kib = 512", "kib = 32", "l2.kib is 32, not above l1d.kib, 64"),
        ("latency_ns = 3.3", "latency_ns = 33", "l3.latency_ns is 18.3, not above l2.latency_ns, 33"),
        ("bandwidth_gb_s", "bandwidth", "missing: dram.bandwidth_gb_s"),
        ("[dram]", "[memory]", "unknown: memory"),
        ("[l3]", "[dram.l3]", "unknown: dram.l3"),
        ('"dram.latency_ns" =', '"dram.latency" =', "come"),
        ("[unknown]", '[unknown]\nslc = "?"', "[unknown] names what is no field of the file: slc"),
        ("[unknown]", "[unknown]\nl2 = 3", "[unknown] is a table of strings"),
        ("[l1d]", "[l1d", "it is not TOML"),
    ],
)
def test_a_bad_profile_says_why(tmp_path, old, new, why):
    assert old in PIXEL
    path = write(tmp_path, PIXEL.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        read_profile(path)
    assert caught.value.code == "PROFILE_INVALID" and caught.value.where == str(path)
    assert why in caught.value.why
    assert str(caught.value).count("\n") == 3


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('kind = "gpu"', 'kind = "emulator"', "a target of kind emulator has no gpu"),
        ('kind = "gpu"', 'kind = "host"', "a target of kind host has no gpu"),
        ('kind = "gpu"', 'kind = "gpu"\nclock_ghz = 2.84', "a gpu target is modelled and has no clock_ghz"),
        ("adreno-6xx", "adreno-9xx", "gpu.architecture is one of adreno-6xx"),
        ("units = 2", "units = 2.5", "gpu.units is a whole number"),
        ("lanes = 768", "lanes = 768000", "gpu.lanes is 768000; it must lie between 8 and 8192"),
        ("clock_mhz = 585", "", "missing: gpu.clock_mhz"),
        ('constants = "adreno-640"', 'constants = "adreno640"', "did you mean 'adreno-640'?"),
        ("[gpu]", "[igpu]", "unknown: igpu"),
    ],
)
def test_a_bad_gpu_says_why(tmp_path, old, new, why):
    text = (PROFILES / "pixel-4-gpu.toml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(UsageError) as caught:
        read_profile(write(tmp_path, text.replace(old, new, 1)))
    assert caught.value.code == "PROFILE_INVALID" and why in caught.value.why


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("in_order = false", "in_order = true", "window is 0 for an in-order core"),
        ("midr_part = 0xd0b", "midr_part = 0xd0b0", "midr_part is 53424; it must lie between 1 and 4095"),
        ('features = ["fp",', "features = [1,", "features is a list of strings"),
        ("lines = ", "line = ", "missing: prefetch.lines"),
        ("mispredict_cycles = ", "mispredict = ", "missing: mispredict_cycles"),
        ("[sources]", '[sources]\nclock_ghz = "?"', "[sources] names what is no field of the file: clock_ghz"),
    ],
)
def test_a_bad_core_says_why(tmp_path, old, new, why):
    assert old in A76
    with pytest.raises(UsageError) as caught:
        read_core(write(tmp_path / "cores", A76.replace(old, new, 1), "cortex-a76.toml"))
    assert caught.value.code == "PROFILE_INVALID" and "'cortex-a76'" in caught.value.what
    assert why in caught.value.why


@settings(deadline=None)
@given(path=st.sampled_from([path for path in FILES if path.stem != "host"]), data=st.data())
def test_no_fact_goes_without_its_source(tmp_path_factory, path, data):
    text = path.read_text(encoding="utf-8")
    field = data.draw(st.sampled_from(sorted(tomllib.loads(text)["sources"].keys() - set(PROSE))))
    line = next(
        line for line in text[text.index("[sources]") :].splitlines() if line.split("=")[0].strip().strip('"') == field
    )
    head, tail = text[: text.index("[sources]")], text[text.index("[sources]") :]
    room = tmp_path_factory.mktemp("files") / path.parent.name
    copy = write(room, head + tail.replace(line + "\n", "", 1), path.name)
    with pytest.raises(UsageError) as caught:
        read(copy)
    assert f"[sources] does not say where the value comes from: {field}" in caught.value.why


@settings(deadline=None)
@given(path=st.sampled_from([path for path in FILES if path.stem != "host"]), data=st.data())
def test_no_number_may_be_absurd(tmp_path_factory, path, data):
    text = path.read_text(encoding="utf-8")
    facts, fields = tomllib.loads(text), []
    for name, value in facts.items():
        inner = value.items() if isinstance(value, dict) and name not in ("sources", "unknown") else [(None, value)]
        fields += [(name, key) for key, number in inner if type(number) in (int, float)]
    table, key = data.draw(st.sampled_from(fields))
    head = text[: text.index("[sources]")]
    begin = head.index(f"[{table}]") if key else 0
    line = next(line for line in head[begin:].splitlines() if line.startswith(f"{key or table} = "))
    absurd = data.draw(st.sampled_from(["-1", "1e7", "10000000", "nan", "inf"]))
    room = tmp_path_factory.mktemp("files") / path.parent.name
    changed = head[begin:].replace(line, f"{key or table} = {absurd}", 1)
    copy = write(room, head[:begin] + changed + text[text.index("[sources]") :], path.name)
    with pytest.raises(UsageError) as caught:
        read(copy)
    assert caught.value.code == "PROFILE_INVALID"
    assert (f"{table}.{key}" if key else table) in caught.value.why


def test_a_file_that_is_no_text_says_so(tmp_path):
    (tmp_path / "phone.toml").write_bytes(b'title = "\xff"')
    with pytest.raises(UsageError, match="cannot be used") as caught:
        read_profile(tmp_path / "phone.toml")
    assert "it is not TOML" in caught.value.why
