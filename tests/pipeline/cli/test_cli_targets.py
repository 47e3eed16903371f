"""`planish targets list` and `show`: what they print, and what a broken profile says."""

from __future__ import annotations

import json

import pytest
from commands import planish

from targets import profile as profiles
from targets.profile import PROFILES


def test_list_and_show():
    listed = json.loads(planish("targets", "list", "--json").stdout)["targets"]
    assert len(listed) == len(list(PROFILES.glob("*.toml")))
    shown = planish("targets", "show", "raspberry-pi-5")
    assert shown.exit_code == 0
    for said in ("Cortex-A76", "2.4 GHz", "up to 4 threads", "512 KiB, 8-way, one a core", "sbc-bench 8-NK"):
        assert said in shown.stdout
    assert "how far to trust it" in shown.stdout and "no table is shipped" in shown.stdout
    assert planish("targets", "show", "host").exit_code == 0


@pytest.mark.parametrize("missing", ["clock_ghz = 2.84", "latency_ns = 124", "ways = 4"])
def test_a_profile_with_a_missing_number_is_a_clear_error(tmp_path, monkeypatch, missing):
    text = (PROFILES / "pixel-4-cpu.toml").read_text(encoding="utf-8")
    assert text.count(f"{missing}\n") == 1
    (tmp_path / "my-phone.toml").write_text(text.replace(f"{missing}\n", ""), encoding="utf-8")
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    field = {"latency_ns": "dram.latency_ns", "ways": "l1d.ways"}.get(missing.split()[0], "clock_ghz")
    for command in (["show", "my-phone"], ["list"]):
        done = planish("targets", *command)
        assert done.exit_code == 2 and not done.stdout
        assert "error[PROFILE_INVALID]: the description of 'my-phone' cannot be used" in done.stderr
        assert f"missing: {field}" in done.stderr and "my-phone.toml" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 4
