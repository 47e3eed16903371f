"""Recovery: outputs come back, labels and blends are used as asked, and a kill makes no difference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks.small import small

import pipeline.compress.descent as descent
from calibration.dataset import Samples, open_samples
from pipeline.compress.analysis import divergence, run
from pipeline.compress.recover import Recovery, recover
from pipeline.compress.truncate import truncate
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network

SETTINGS = Recovery(steps=12, batch=32)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(x: torch.Tensor) -> Network:
    return from_program(export_program(small(), (x[:2],)))


@pytest.fixture(scope="module")
def student(base: Network) -> Network:
    return replay(base, [truncate("fused.expand", 4)])


@pytest.fixture
def samples(x: torch.Tensor, tmp_path: Path) -> Samples:
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.arange(64) % 5)
    return open_samples(tmp_path / "x.npz")


@pytest.fixture
def bare(x: torch.Tensor, tmp_path: Path) -> Samples:
    np.savez(tmp_path / "bare.npz", x=x.numpy())
    return open_samples(tmp_path / "bare.npz")


def test_the_outputs_come_back_without_labels(base, student, bare, x) -> None:
    losses: list[float] = []
    before, teacher = student.fingerprint(), base.fingerprint()
    recovered = recover(
        student, base, bare, Recovery(steps=60, batch=32), progress=lambda step, loss: losses.append(loss)
    )
    reference = run(base, [x])
    assert divergence(reference, run(recovered, [x]), True) < 0.5 * divergence(reference, run(student, [x]), True)
    assert len(losses) == 60 and recovered.edits == student.edits and not recovered.graph.training
    assert (student.fingerprint(), base.fingerprint()) == (before, teacher)


def test_no_steps_leave_the_network_as_it_is(base, student, samples) -> None:
    assert recover(student, base, samples, Recovery(steps=0)) is student


@pytest.mark.parametrize("steps", [1, 7, 12, 400, 9999])
@pytest.mark.parametrize("batch", [1, 7, 24, 1000])
def test_there_are_as_many_steps_as_asked(samples, steps: int, batch: int) -> None:
    assert Recovery(steps=steps, batch=batch).policy(samples).steps(samples) == steps


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, mixup=False, label_weight=0.5, seed=3)])
def test_a_killed_recovery_resumes_to_the_same_bits(settings, base, student, samples, tmp_path, monkeypatch) -> None:
    whole = recover(student, base, samples, settings)
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)

    def die(step: int, loss: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(student, base, samples, settings, checkpoint=tmp_path / "state.pt", progress=die)
    assert torch.load(tmp_path / "state.pt")["step"] == 7
    resumed = recover(student, base, samples, settings, checkpoint=tmp_path / "state.pt")
    assert resumed.fingerprint() == whole.fingerprint()
    assert recover(student, base, samples, replace(settings, seed=1)).fingerprint() != whole.fingerprint()


def test_norm_statistics_stay(base, student, samples) -> None:
    recovered = recover(student, base, samples, SETTINGS)
    for name, value in student.graph.state_dict().items():
        if "running" in name:
            assert torch.equal(recovered.graph.state_dict()[name], value)


def test_labels_are_used_where_there_are_any_and_they_are_asked_for(base, student, samples, bare) -> None:
    asked = replace(SETTINGS, label_weight=0.1)
    taught = recover(student, base, samples, asked)
    without = recover(student, base, bare, asked)
    assert taught.fingerprint() != without.fingerprint()
    deaf = recover(student, base, samples, SETTINGS)
    values = recover(student, base, samples, replace(asked, classes=False))
    assert deaf.fingerprint() == without.fingerprint()
    assert values.fingerprint() == recover(student, base, bare, replace(asked, classes=False)).fingerprint()


def test_samples_are_blended_unless_that_is_turned_off(base, student, bare) -> None:
    assert recover(student, base, bare, SETTINGS).fingerprint() != (
        recover(student, base, bare, replace(SETTINGS, mixup=False)).fingerprint()
    )


@pytest.fixture
def many(tmp_path: Path) -> Samples:
    x = torch.randn(700, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    np.savez(tmp_path / "many.npz", x=x.numpy())
    return open_samples(tmp_path / "many.npz")


def test_a_recovery_that_harms_ends_early_and_leaves_the_best(base, student, many) -> None:
    made: list[int] = []
    wild = Recovery(steps=600, batch=8, rate=10.0)
    recovered = recover(student, base, many, wild, progress=lambda step, loss: made.append(step))
    assert len(made) < 600
    x = many.split(0.1)[1].batches(70)
    held = [next(x)[0]]
    reference = run(base, held)
    assert divergence(reference, run(recovered, held), True) <= divergence(reference, run(student, held), True) + 1e-6


def test_a_watched_recovery_resumes_to_the_same_bits(base, student, many, tmp_path, monkeypatch) -> None:
    settings = Recovery(steps=45, batch=16)
    whole = recover(student, base, many, settings)
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)

    def die(step: int, loss: float) -> None:
        if step == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(student, base, many, settings, checkpoint=tmp_path / "state.pt", progress=die)
    assert torch.load(tmp_path / "state.pt")["watch"]["weights"]
    resumed = recover(student, base, many, settings, checkpoint=tmp_path / "state.pt")
    assert resumed.fingerprint() == whole.fingerprint()


def test_a_resumed_recovery_does_not_look_for_its_rate_again(base, student, many, tmp_path, monkeypatch) -> None:
    settings, state = Recovery(steps=200, batch=16), tmp_path / "state.pt"
    whole = recover(student, base, many, settings)
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    told: list[int] = []

    def die(step: int, loss: float) -> None:
        told.append(step)
        if step == 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(student, base, many, settings, checkpoint=state, progress=die)
    trials = json.loads(state.with_suffix(".rate.json").read_text())["steps"]
    assert 0 < trials < 150
    told.clear()
    resumed = recover(student, base, many, settings, checkpoint=state, progress=lambda step, loss: told.append(step))
    assert told == list(range(150, 201)) and resumed.fingerprint() == whole.fingerprint()


def test_a_rate_that_a_network_does_not_bear_is_lowered(base, student, many) -> None:
    made: list[int] = []
    wild = Recovery(steps=200, batch=16, rate=3.0)
    recovered = recover(student, base, many, wild, progress=lambda step, loss: made.append(step))
    assert made == list(range(1, len(made) + 1)) and len(made) <= 200  # trials count as steps
    held = [next(many.split(0.1)[1].batches(70))[0]]
    reference = run(base, held)
    assert divergence(reference, run(recovered, held), True) < 0.9 * divergence(reference, run(student, held), True)
