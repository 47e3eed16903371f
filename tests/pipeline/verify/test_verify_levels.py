"""Parity of real exports at each level, healthy and damaged, on real images."""

from __future__ import annotations

import dataclasses
import json
from functools import cache

import numpy as np
import pytest
from damaged import added, with_classes_rotated, with_layout_mistaken, with_nothing_answered
from export_networks import NETWORKS, Contrast, build, eager, exported, images, noise, save, saved
from torch import Tensor, nn

from pipeline.export.artifact import sha256_of
from pipeline.export.child import export
from pipeline.verify.edge_cases import OWN, Group
from pipeline.verify.from_file import artifact_at
from pipeline.verify.levels import check_emulator, check_host, check_program
from pipeline.verify.parity import Parity, failure
from pipeline.verify.reference import Case, Reference
from pipeline.verify.tolerance import FP16, INT8
from targets.arm.setup import is_ready
from targets.errors import VerificationError
from targets.profile import load_profile

pytestmark = [pytest.mark.export, pytest.mark.slow]
FORMATS = ("onnx", "ort", "tflite", "pte")
SAMPLES = 64
emulated = [
    pytest.mark.emulator,
    pytest.mark.skipif(not is_ready(), reason="the ARM64 emulator is not set up: planish targets setup pixel-4-cpu"),
]


class Pairs(nn.Module):
    """Adds every second sample to the one before it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).reshape(-1, 2, x[0].numel()).sum(1).repeat_interleave(2, 0)


@cache
def reference(name: str) -> Reference:
    samples = images(SAMPLES)
    labels = eager(build(NETWORKS[name]), samples)[0].argmax(1)
    labels[:16] = (labels[:16] + 1) % 10
    return Reference.of(build(NETWORKS[name]), samples, labels)


def of_samples(network, samples: np.ndarray) -> Reference:
    """Those samples and no edge cases: what a check on noise alone looks at."""
    return Reference((Case(Group(OWN, samples), tuple(eager(network, samples))),))


def failed_groups(parity: Parity) -> list[str]:
    return [group.name for group in parity.groups if group.verdict == "failed"]


@pytest.mark.parametrize(
    ("name", "format"),
    [(name, "pt2") for name in NETWORKS]
    + [("residual", format) for format in FORMATS]
    + [("mobile", "onnx"), ("transformer", "tflite"), ("transformer", "pte"), ("features", "tflite")],
)
def test_healthy_exports_pass_on_samples_and_edge_cases(name, format):
    if format == "pt2":
        parity = check_program(saved(name), reference(name))
        assert (parity.level, parity.format) == ("program", "pt2")
    else:
        artifact = exported(name, format)
        parity = check_host(artifact, reference(name))
        assert parity.level == "host" and parity.artifact_sha256 == artifact.sha256
    assert parity.passed and parity.samples == SAMPLES and len(parity.groups) == 8
    for group in parity.groups:
        assert len(group.outputs) == (3 if name == "features" else 1) and group.verdict == "passed"
        assert group.worst.relative_rmse < 1e-5 and group.worst.cosine > 1 - 1e-9
    assert parity.outputs[0].top1_agreement == 1.0
    assert parity.task.network.value == parity.task.artifact.value == 75
    assert Parity.from_json(json.loads(json.dumps(parity.to_json(), allow_nan=False))) == parity


def test_a_program_of_another_network_fails(tmp_path):
    parity = check_program(
        save(build(Contrast, 45.0), tmp_path / "network.pt2"), Reference.of(build(Contrast), images(8))
    )
    assert parity.failed and parity.level == "program" and failed_groups(parity)[0] == OWN
    assert "torch.export" in failure(parity, tmp_path / "network.pt2").fix


def test_a_program_that_has_no_batch_of_one_fails(tmp_path):
    path = save(Pairs(), tmp_path / "network.pt2", symbolic=False)
    parity = check_program(path, of_samples(Pairs(), images(8)))
    assert parity.failed and "no batch of 1" in parity.reasons[0] and parity.groups == ()


def test_right_on_noise_and_wrong_on_images_fails(tmp_path):
    """The artifact saturates above what noise reaches; only images show it, whose neighbouring pixels are alike."""
    wrong = export(
        save(build(Contrast, 45.0), tmp_path / "network.pt2"),
        format="tflite",
        directory=tmp_path / "tflite",
        log=tmp_path / "log",
    )
    network = build(Contrast)
    assert check_host(wrong, of_samples(network, noise(SAMPLES))).passed
    parity = check_host(wrong, Reference.of(network, images(SAMPLES)))
    assert parity.failed and failed_groups(parity)[0] == OWN
    assert next(group for group in parity.groups if group.name == "noise").verdict == "passed"
    error = failure(parity, wrong.path)
    assert (error.code, error.exit_code, len(str(error).splitlines())) == ("PARITY_FAILED", 4, 4)
    assert f"{parity.outputs[0].relative_rmse:.2g}" in error.why


def test_a_term_that_only_bright_pixels_switch_on_fails(tmp_path):
    """Images are normalised to -0.8 … 2; noise of deviation 0.3 never comes near 1.5."""
    wrong = added(exported("residual", "onnx"), tmp_path, "brightness", 1.5)
    quiet = 0.3 * noise(SAMPLES)
    assert quiet.max() < 1.5 < images(SAMPLES).max()
    assert check_host(wrong, of_samples(build(NETWORKS["residual"]), quiet)).passed
    parity = check_host(wrong, reference("residual"))
    assert failed_groups(parity)[:2] == [OWN, "constant maximum"]
    assert not {"zeros", "constant minimum"} & set(failed_groups(parity))
    assert parity.task.high_points < 0 and "rightly" in parity.reasons[-1]


def test_wrong_on_an_edge_case_alone_fails_by_its_name(tmp_path):
    wrong = added(exported("residual", "onnx"), tmp_path, "darkness", -0.5)
    parity = check_host(wrong, reference("residual"))
    assert parity.failed and failed_groups(parity) == ["constant minimum"]
    assert parity.groups[0].worst.relative_rmse < 1e-5 and "'constant minimum'" in parity.reasons[0]


def test_nan_on_some_images_fails(tmp_path):
    wrong = added(exported("residual", "onnx"), tmp_path, "overflow", float(images(SAMPLES).max()) - 0.01)
    parity = check_host(wrong, reference("residual"), FP16)
    assert parity.failed and "the artifact returned NaN or infinity" in parity.reasons[0]
    assert OWN in failed_groups(parity) and "zeros" not in failed_groups(parity)
    assert Parity.from_json(json.loads(json.dumps(parity.to_json(), allow_nan=False))).reasons == parity.reasons


@pytest.mark.parametrize("damage", [with_classes_rotated, with_nothing_answered, with_layout_mistaken])
@pytest.mark.parametrize("name", ["residual", "mobile"])
def test_damage_fails(name, damage, tmp_path):
    parity = check_host(damage(exported(name, "onnx"), tmp_path), reference(name))
    assert OWN in failed_groups(parity)
    if damage is with_layout_mistaken:  # a constant image is the same in every layout
        assert "zeros" not in failed_groups(parity)
    else:
        assert len(failed_groups(parity)) == 8
        assert check_host(damage(exported(name, "onnx"), tmp_path), reference(name), INT8).failed


def test_a_file_that_does_not_run_fails(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"not a flatbuffer" * 10)
    broken = dataclasses.replace(exported("mobile", "tflite"), path=path, sha256=sha256_of(path))
    parity = check_host(broken, reference("mobile"))
    assert parity.failed and "does not run" in parity.reasons[0] and parity.groups == ()
    assert "does not compute" in failure(parity, path).what


def test_a_file_that_was_changed_is_no_matter_of_parity(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("mobile", "onnx").path.read_bytes() + b" ")
    with pytest.raises(VerificationError) as caught:
        check_host(dataclasses.replace(exported("mobile", "onnx"), path=path), reference("mobile"))
    assert caught.value.code == "ARTIFACT_CHANGED"


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_alone_says_what_the_export_recorded(format):
    recorded = exported("residual", format)
    found = artifact_at(recorded.path, reference("residual"))
    assert (found.format, found.sha256, found.bytes) == (format, recorded.sha256, recorded.bytes)
    for mine, theirs in zip(found.inputs + found.outputs, recorded.inputs + recorded.outputs, strict=True):
        assert (mine.shape, mine.dtype, mine.layout) == (theirs.shape, theirs.dtype, theirs.layout)
    assert check_host(found, reference("residual")).passed


@pytest.mark.parametrize("format", ["coreml", "pte-coreml", "pte-vulkan"])
def test_what_cannot_run_here_has_not_passed(format):
    artifact = dataclasses.replace(exported("mobile", "onnx"), format=format)
    for parity in (
        check_host(artifact, reference("mobile")),
        check_emulator(artifact, reference("mobile"), load_profile("pixel-4-cpu")),
    ):
        assert parity.verdict == "not run here" and not parity.passed and not parity.failed
        assert parity.reasons[0] and parity.groups == ()


def test_without_a_phone_the_emulated_level_is_not_run(tmp_path, monkeypatch):
    artifact = exported("mobile", "onnx")
    for profile in (None, load_profile("host")):
        parity = check_emulator(artifact, reference("mobile"), profile)
        assert (parity.verdict, parity.reasons) == ("not run here", ("the target is no emulated phone",))
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    parity = check_emulator(artifact, reference("mobile"), load_profile("pixel-4-cpu"))
    assert parity.verdict == "not run here" and "planish targets setup" in parity.reasons[0]


@pytest.mark.parametrize("format", [pytest.param(format, marks=emulated) for format in FORMATS])
def test_the_emulated_phone_agrees(format):
    artifact = exported("residual", format)
    parity = check_emulator(artifact, reference("residual"), load_profile("pixel-4-cpu"), samples=4)
    assert parity.passed and parity.level == "emulator" and "pixel-4-cpu" in parity.runner
    assert [group.samples for group in parity.groups] == [4] + [1] * 7
    assert max(group.worst.relative_rmse for group in parity.groups) < 1e-5
    assert parity.task.artifact.samples == 4


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=emulated)])
def test_the_emulated_phone_shows_damage_too(format, tmp_path):
    wrong = added(exported("residual", format), tmp_path, "brightness", 1.5)
    parity = check_emulator(wrong, reference("residual"), load_profile("pixel-4-cpu"), samples=2)
    assert parity.failed and failed_groups(parity)[:2] == [OWN, "constant maximum"]
    assert "emulated ARM64 phone" in failure(parity, wrong.path).what
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing")
    parity = check_emulator(wrong, reference("residual"), load_profile("pixel-4-cpu"))
    assert parity.failed and "does not run" in parity.reasons[0]
