"""The chip as it is sent to the plugin is `struct machine` of the plugin: every fact in its own place, in cycles."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from dataclasses import replace

import pytest

from targets.arm import chip, parts
from targets.profile import Profile, list_profiles, load_profile

HEADER = parts.SIMULATOR / "simulator.h"
STRUCT = re.search(r"struct machine \{(.*?)\n\};", HEADER.read_text(encoding="utf-8"), re.DOTALL)[1]
FIELDS = re.findall(r"\w+(?=[,;])", re.sub(r"/\*.*?\*/", "", STRUCT, flags=re.DOTALL))
PROGRAM = '#include <stdio.h>\n#include <stddef.h>\n#include "simulator.h"\nint main(void) {{ {prints} }}\n'
# Field of the struct -> what decides it, as a path from the profile; its unit in the struct: cycles where in_cycles.
FACTS = {
    "mispredict": "core.mispredict_cycles",
    "line_fills": "core.line_fills",
    "l2_fills": "core.l2_fills",
    "streams": "core.prefetch.streams",
    "ahead": "core.prefetch.lines",
    "crosses_pages": "core.prefetch.crosses_pages",
    "stream_l1": "core.write_streaming.l1_lines",
    "stream_l2": "core.write_streaming.l2_lines",
    "tlb_entries": "core.tlb.entries",
    "l2_tlb_entries": "core.tlb.l2_entries",
    "l2_tlb_latency": "core.tlb.l2_latency_cycles",
    "l1_kib": "l1d.kib",
    "l1_ways": "l1d.ways",
    "l2_kib": "l2.kib",
    "l2_ways": "l2.ways",
    "l2_shared": "l2.shared",
    "l3_kib": "l3.kib",
    "l3_ways": "l3.ways",
}
IN_NS = {"l2_latency": "l2.latency_ns", "l3_latency": "l3.latency_ns", "dram_latency": "dram.latency_ns"}


def fact(profile: Profile, path: str) -> float:
    value: object = profile
    for name in path.split("."):
        value = getattr(value, name)
    return float(value)


def changed(profile: Profile, path: str) -> Profile:
    """The profile with another value of one fact."""
    *outer, name = path.split(".")
    chain: list = [profile]
    for step in outer:
        chain.append(getattr(chain[-1], step))
    value = getattr(chain[-1], name)
    new: object = replace(chain[-1], **{name: not value if isinstance(value, bool) else 2 * value + 1})
    for owner, step in zip(reversed(chain[:-1]), reversed(outer)):
        new = replace(owner, **{step: new})
    return new


def unpacked(profile: Profile, threads: int = 1) -> dict[str, float]:
    return dict(zip(FIELDS, struct.unpack(f"={len(FIELDS)}d", chip.packed(profile, threads)), strict=True))


def test_the_compiler_lays_the_struct_out_as_it_is_packed(tmp_path):
    if not shutil.which("gcc"):
        pytest.skip("needs gcc, as the emulator's set-up does")
    prints = 'printf("%zu\\n", sizeof(struct machine));'
    prints += "".join(f'printf("%zu\\n", offsetof(struct machine, {name}));' for name in FIELDS)
    (tmp_path / "layout.c").write_text(PROGRAM.format(prints=prints))
    command = ["gcc", "-std=c11", f"-I{HEADER.parent}", "-o", tmp_path / "layout", tmp_path / "layout.c"]
    subprocess.run(list(map(str, command)), check=True)
    size, *offsets = map(int, subprocess.run([tmp_path / "layout"], capture_output=True, check=True).stdout.split())
    assert size == len(chip.packed(load_profile("pixel-4-cpu")))
    assert offsets == [8 * index for index in range(len(FIELDS))]


@pytest.mark.parametrize(("name", "path"), [*FACTS.items(), *IN_NS.items(), ("dram_interval", "dram.bandwidth_gb_s")])
def test_a_fact_decides_its_own_field_and_no_other(name, path):
    profile = load_profile("pixel-4-cpu")
    before, after = unpacked(profile), unpacked(changed(profile, path))
    assert {field for field in FIELDS if before[field] != after[field]} == {name}
    if name in FACTS:
        assert before[name] == fact(profile, path)
    elif name in IN_NS:
        assert before[name] == pytest.approx(fact(profile, path) * profile.clock_ghz)


def test_bandwidth_is_the_time_between_two_lines():
    profile = load_profile("raspberry-pi-4")
    cycles = unpacked(profile)["dram_interval"]
    lines_a_second = profile.clock_ghz * 1e9 / cycles
    assert lines_a_second * chip.LINE_BYTES == pytest.approx(profile.dram.bandwidth_gb_s * 1e9)


def test_memory_serves_several_cores_what_was_measured_with_several_cores():
    profile = load_profile("raspberry-pi-4")
    one, two, four = (unpacked(profile, threads)["dram_interval"] for threads in (1, 2, 4))
    assert two == four == pytest.approx(one * profile.dram.bandwidth_gb_s / profile.dram.shared_bandwidth_gb_s)
    unmeasured = load_profile("pixel-4-cpu")
    assert unmeasured.dram.shared_bandwidth_gb_s is None
    assert unpacked(unmeasured, 4) == unpacked(unmeasured)


def test_a_faster_clock_sees_a_slower_memory():
    profile = load_profile("pixel-4-cpu")
    before, after = unpacked(profile), unpacked(replace(profile, clock_ghz=2 * profile.clock_ghz))
    scaled = {field for field in FIELDS if after[field] == pytest.approx(2 * before[field]) and before[field]}
    assert {*IN_NS, "dram_interval"} <= scaled
    assert scaled.isdisjoint(FACTS), "what a core counts in cycles or lines stays"


@pytest.mark.parametrize("profile", [p for p in list_profiles() if p.core], ids=lambda profile: profile.name)
def test_every_profile_fits_the_simulation_s_tables(profile):
    """The plugin's arrays are of fixed size, and a cache has at least one set."""
    limits = {name: int(value) for name, value in re.findall(r"(MAX_\w+) = (\d+)", HEADER.read_text(encoding="utf-8"))}
    packed = unpacked(profile)
    assert profile.cores <= limits["MAX_CORES"]
    assert 1 <= packed["line_fills"] <= limits["MAX_FILLS"] and 1 <= packed["l2_fills"] <= limits["MAX_FILLS"]
    assert 1 <= packed["streams"] <= limits["MAX_STREAMS"]
    assert packed["l2_tlb_entries"] >= 4
    for level in ("l1", "l2") + (("l3",) if profile.l3 else ()):
        assert packed[f"{level}_kib"] * 1024 / chip.LINE_BYTES / packed[f"{level}_ways"] >= 1
    assert all(value >= 0 for value in packed.values())
