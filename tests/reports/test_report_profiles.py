"""Profiles as text: every fact with its source, what stands in is marked, and how far latencies were checked."""

from __future__ import annotations

import dataclasses
import json

import pytest
from rich.console import Console

from reports import profiles
from reports.profiles import (
    STAND_IN,
    Checked,
    cache_facts,
    checked_cases,
    clock_facts,
    core_facts,
    memory_facts,
    profile_json,
    profile_table,
    profile_view,
)
from targets.cost import RelativeError
from targets.profile import list_profiles, load_profile
from targets.validation import validate
from targets.validation.validate import Agreement, Case, Results

CHECKED = Checked(Agreement(12, 0.0614, -0.138, 11), 9, 0.983)
PHONES = [profile for profile in list_profiles() if profile.core]


def text(parts, width: int = 100) -> str:
    console = Console(width=width, no_color=True, markup=False, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()


@pytest.mark.parametrize("profile", PHONES, ids=lambda profile: profile.name)
def test_every_fact_is_shown_with_its_source(profile):
    shown = {field for fact in core_facts(profile.core) for field in fact.fields}
    assert shown == profile.core.sources.keys()
    facts = [*clock_facts(profile), *cache_facts(profile), *memory_facts(profile)]
    assert {field for fact in facts for field in fact.fields} == profile.sources.keys() - {"notes"}
    seen = text(profile_view(profile, None, {}), width=1000)
    for sourced in (profile, profile.core):
        assert all(source in seen for source in sourced.sources.values())
        assert all(reason in seen for reason in sourced.unknown.values())


def test_what_stands_in_is_marked_and_what_is_measured_is_not():
    shown = text(profile_view(load_profile("raspberry-pi-5"), None, {})).splitlines()
    assert not any(STAND_IN in line for line in shown if "DRAM" in line)
    shown = text(profile_view(load_profile("pixel-3a-cpu"), None, {})).splitlines()
    assert all(STAND_IN in line for line in shown if "DRAM bandwidth  " in line and "GB/s" in line)


def test_the_list_names_each_target_once_within_eighty_columns_and_generic_ones_last():
    known = list_profiles()
    lines = [line.split()[0] for line in text([profile_table(known)], width=80).splitlines()[1:] if line.strip()]
    assert sorted(lines) == sorted(profile.name for profile in known), "no line is broken in two"
    generic = [name.startswith("generic-") for name in lines]
    assert lines[0] == "host" and generic == sorted(generic)


def test_numbers_in_names_are_ordered_as_numbers():
    base = load_profile("generic-cortex-a72")
    names = ["generic-cortex-a510", "generic-cortex-x1", "generic-cortex-a78"]
    shown = text([profile_table([dataclasses.replace(base, name=name) for name in names])], width=100)
    assert shown.index("a78") < shown.index("a510") < shown.index("x1")


def case(profile: str, core: str, published: float, emulated: float, comparable: str = "same runtime") -> Case:
    return Case(
        profile=profile, network=f"n{published}", precision="fp32", threads=1, published_ms=published, runtime="r",
        source="s", comparable=comparable, note="", core=core, emulated_ms=emulated,
        emulated_runtime="r 1", profile_version=load_profile(profile).version,
    )  # fmt: skip


def test_published_cases_count_for_the_core_they_are_of(tmp_path, monkeypatch):
    core = load_profile("pixel-4-cpu").core
    for module in (profiles, validate):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    assert checked_cases(core) is None
    cases = [case("raspberry-pi-5", "Cortex-A76", *pair) for pair in ((10, 11), (12, 11.4), (8, 10))]
    cases += [case("pixel-4-cpu", "Cortex-A76", ms, 2 * ms, "other runtime") for ms in (10, 20, 30)]
    cases += [case("pixel-2-cpu", "Cortex-A73", 1, 9)]
    validate.write(Results("planish targets validate", "2025-01-01", {}, tuple(cases)))
    checked = checked_cases(core)
    assert checked.same_runtime.count == 3 and checked.other_cases == 3
    assert (checked.same_runtime.median_error, checked.same_runtime.worst_error) == pytest.approx((0.10, 0.25))
    assert checked.other_correlation == pytest.approx(1)
    assert checked_cases(load_profile("pixel-3a-cpu").core) is None
    assert checked_cases(load_profile("pixel-2-cpu").core).other_correlation is None


def test_a_profile_says_how_far_to_trust_it():
    profile = load_profile("pixel-4-cpu")
    nothing = text(profile_view(profile, None, {"tflite": None}))
    assert "no published latency was checked for this core" in nothing
    assert "no table is shipped; `planish targets cost pixel-4-cpu` builds it" in nothing
    known = text(profile_view(profile, CHECKED, {"tflite": RelativeError(0.031, 0.082)}), width=200)
    assert "12 published cases with this core and runtime: median error 6.1%, worst -13.8%" in known
    assert "9 published cases with this core and another runtime: rank correlation at least 0.983" in known
    assert "median error 3.1 %, nine of ten within 8.2 %" in known


def test_the_json_form_carries_every_field():
    profile = load_profile("pixel-4-cpu")
    record = json.loads(json.dumps(profile_json(profile, CHECKED, {"onnx": None})))
    assert record["l2"] == {"kib": 512, "ways": 8, "latency_ns": profile.l2.latency_ns, "shared": False}
    assert record["sources"] == profile.sources and record["core"]["unknown"] == profile.core.unknown
    assert record["checked"]["same_runtime"]["count"] == 12 and record["cost_errors"] == {"onnx": None}
