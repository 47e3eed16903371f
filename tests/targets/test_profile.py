"""Target profiles: those planish ships are whole and sourced; a bad file or name says what is wrong."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from targets.errors import UsageError
from targets.profile import PROFILES, Core, list_profiles, load_profile, read_profile

GOOD = (PROFILES / "pixel-4-cpu.toml").read_text(encoding="utf-8")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "phone.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_profile_is_valid_and_every_number_of_a_core_has_a_source():
    profiles = {profile.name: profile for profile in list_profiles()}
    assert {"host", "pixel-4-cpu", "pixel-3a-cpu", "raspberry-pi-4"} <= profiles.keys()
    for profile in profiles.values():
        assert profile == load_profile(profile.name)
        assert (profile.core is None) == (profile.kind == "host")
        if profile.core:
            assert {f"core.{field.name}" for field in fields(Core)} <= profile.sources.keys()


def test_the_facts_of_the_pixel_4():
    profile = load_profile("pixel-4-cpu")
    assert profile.soc == "Snapdragon 855"
    assert (profile.core.name, profile.core.midr_part, profile.core.clock_ghz) == ("Cortex-A76", 0xD0B, 2.84)
    assert profile.core.mca_cpu == "neoverse-n1"
    assert len(profile.version) == 12 and int(profile.version, 16) >= 0


def test_the_version_is_of_the_text(tmp_path):
    assert read_profile(write(tmp_path, GOOD)).version == load_profile("pixel-4-cpu").version
    (tmp_path / "other").mkdir()
    assert read_profile(write(tmp_path / "other", GOOD + "# note\n")).version != load_profile("pixel-4-cpu").version


def test_an_unknown_target_names_the_nearest_and_the_list():
    with pytest.raises(UsageError) as caught:
        load_profile("pixel4-cpu")
    assert caught.value.code == "TARGET_UNKNOWN"
    assert "did you mean 'pixel-4-cpu'?" in caught.value.fix and "planish targets list" in caught.value.fix
    assert str(caught.value).count("\n") == 3


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('kind = "emulator"', 'kind = "gpu"', "kind is one of"),
        ('kind = "emulator"', 'kind = "host"', "a host target has none"),
        ('soc = "Snapdragon 855"', "", "missing: soc"),
        ('soc = "Snapdragon 855"', 'soc = "Snapdragon 855"\nram = 6', "unknown: ram"),
        ("clock_ghz = 2.84", 'clock_ghz = "2.84"', "core.clock_ghz is str, expected float"),
        ("clock_ghz = 2.84", "clock_ghz = 2840.0", "gigahertz"),
        ("midr_part = 0xd0b", "midr_part = true", "core.midr_part is bool, expected int"),
        ('features = ["fp",', "features = [1,", "list of strings"),
        ('"core.clock_ghz" =', '"core.clock" =', "no source is given for core.clock_ghz"),
        ("[core]", "[core", "Expected ']'"),
    ],
)
def test_a_bad_profile_says_why(tmp_path, old, new, why):
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        read_profile(write(tmp_path, GOOD.replace(old, new, 1)))
    assert caught.value.code == "PROFILE_INVALID"
    assert why in caught.value.why
