"""`planish targets validate`: what it runs, writes and says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import planish

from reports import validation as page
from targets.arm.setup import is_ready
from targets.measure import Measurement
from targets.profile import Profile
from targets.validation import validate


@pytest.fixture
def recorded_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results and page go to the test's folder."""
    monkeypatch.setattr(validate, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(page, "PAGE", tmp_path / "validation.md")
    return tmp_path


def measured(artifacts: list[tuple[Path, str, Path]], *, profile: Profile, threads: int, **_: object) -> list[object]:
    """A millisecond for every letter of the network's name, over the threads."""
    return [
        Measurement(
            artifact_sha256="0" * 64,
            format=format,
            target=profile.name,
            profile_version=profile.version,
            runner="emulator",
            runtime="ai-edge-litert 2.3.0",
            n=1,
            **dict.fromkeys(("median_ms", "p90_ms", "low_ms", "high_ms"), len(path.stem) / threads),
            mad_ms=0.0,
            samples_ms=(1.0,),
            instructions=1,
            cycles=1.0,
            state={"qemu": "7.2", "llvm": "22"},
            threads=threads,
        )
        for path, format, _ in artifacts
    ]


def test_every_chosen_latency_is_run_and_recorded(
    recorded_apart: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(validate, "measure_many", measured)
    done = planish("targets", "validate", "--profile", "pixel-3a-cpu", "--threads", "2", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [case["network"] for case in result["cases"]] == [
        row.network for row in validate.choose(["pixel-3a-cpu"], [2])
    ]
    small = result["cases"][-1]
    assert small["emulated_ms"] == len("mobilenet-v3-small") / 2
    assert small["error"] == pytest.approx(small["emulated_ms"] / small["published_ms"] - 1)
    record = json.loads((recorded_apart / "results.json").read_text())
    assert record["command"] == "planish targets validate --profile pixel-3a-cpu --threads 2"
    assert record["versions"] == {"ai-edge-litert": "2.3.0", "qemu": "7.2", "llvm": "22"}
    assert len(record["cases"]) == 4

    again = planish("targets", "validate", "--profile", "pixel-3a-cpu", "--threads", "1", "-o", tmp_path / "page.md")
    assert again.exit_code == 0 and "page.md written" in again.stdout
    assert len(validate.read().cases) == 8, "cases recorded before stay"
    assert "| pixel-3a-cpu | Cortex-A75 | 2 |" in (tmp_path / "page.md").read_text()


def test_a_choice_that_was_never_published_is_a_usage_error(recorded_apart: Path) -> None:
    done = planish("targets", "validate", "--profile", "pixel-3a-cpu", "--threads", "9")
    assert done.exit_code == 2 and "NOTHING_PUBLISHED" in done.stderr
    assert not (recorded_apart / "results.json").exists()


@pytest.mark.emulator
@pytest.mark.skipif(not is_ready(), reason="the ARM64 emulator is not set up: planish targets setup pixel-4-cpu")
def test_the_lightest_network_is_emulated_within_a_third_of_the_phone(
    recorded_apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light = [row for row in validate.choose(["pixel-3a-cpu"], [1]) if row.network == "mobilenet-v3-small"]
    monkeypatch.setattr(validate, "choose", lambda *_: light)
    done = planish("targets", "validate", "--json")
    assert done.exit_code == 0, done.stderr
    (case,) = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert abs(case["error"]) < 1 / 3
    assert "mobilenet-v3-small" in (recorded_apart / "validation.md").read_text()
