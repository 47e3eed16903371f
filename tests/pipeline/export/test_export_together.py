"""Several formats at once: whatever becomes of one, the others come out, and nothing half-written stays."""

import time
from pathlib import Path

import pytest
from export_networks import saved

from pipeline.export import memory, together
from pipeline.export.artifact import Artifact
from pipeline.export.staging import PREFIX
from pipeline.export.together import export_all, side_by_side
from targets.errors import MissingEnvironmentError, UsageError, VerificationError

BROKEN = {  # stand in for packages: what the real child meets when it imports them
    "onnxsim": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "litert_torch": "held = b'x' * (3 << 30); import time; time.sleep(60)",
    "coremltools": "raise ModuleNotFoundError(\"No module named 'coremltools'\", name='coremltools')",
}


@pytest.mark.export
@pytest.mark.slow
def test_each_failure_leaves_the_others_alone(tmp_path, monkeypatch):
    """One converter crashes, one takes too much memory, one is not installed; the fourth is fine."""
    (tmp_path / "packages").mkdir()
    for name, code in BROKEN.items():
        (tmp_path / "packages" / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    out = tmp_path / "out"
    found = export_all(
        saved("residual"),
        formats=["onnx", "tflite", "coreml", "pte", "onnx"],
        directory=out,
        memory_limit_mib=1500,
        logs=tmp_path / "logs",
    )
    assert list(found) == ["onnx", "tflite", "coreml", "pte"]
    crashed, hungry, missing, fine = found.values()
    assert isinstance(crashed, VerificationError) and crashed.code == "EXPORT_KILLED" and "SIGSEGV" in crashed.why
    assert isinstance(hungry, VerificationError) and (hungry.code, hungry.exit_code) == ("EXPORT_MEMORY", 4)
    assert "its limit of 1500 MiB" in hungry.why
    assert isinstance(missing, MissingEnvironmentError) and missing.code == "EXPORTER_MISSING"
    assert "coremltools" in missing.why and "pip install" in missing.fix
    assert isinstance(fine, Artifact) and fine.peak_mib < 1500
    fine.require_unchanged()
    assert [file.name for file in out.iterdir()] == ["model.pte"]
    assert not list(tmp_path.glob(f"{PREFIX}*"))
    assert sorted(file.name for file in (tmp_path / "logs").iterdir()) == [
        f"{name}.log" for name in ("coreml", "onnx", "pte", "tflite")
    ]


@pytest.mark.export
def test_interrupt_ends_all_of_them(tmp_path):
    said = []

    def interrupt(format: str, phase: str) -> None:
        said.append(format)
        if len(set(said)) == 2:
            raise KeyboardInterrupt

    formats = ["onnx", "tflite"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "side_by_side", lambda *_: 2)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            export_all(saved("residual"), formats=formats, directory=tmp_path / "out", progress=interrupt)
    assert time.monotonic() - started < 60
    assert not list(tmp_path.glob(f"{PREFIX}*")) and not list(tmp_path.rglob("model.*"))


def test_unknown_format_starts_nothing(tmp_path):
    with pytest.raises(UsageError, match="no export to 'ptee'"):
        export_all(Path("network.pt2"), formats=["onnx", "ptee"], directory=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "available_mib, megabytes, expected", [(64000, 1, 4), (2000, 1, 2), (500, 1, 1), (8000, 500, 1)]
)
def test_as_many_at_once_as_cores_and_memory_bear(available_mib, megabytes, expected, tmp_path, monkeypatch):
    network = tmp_path / "network.pt2"
    with network.open("wb") as file:
        file.truncate(megabytes << 20)
    monkeypatch.setattr(together, "available_mib", lambda: available_mib)
    monkeypatch.setattr(together.os, "sched_getaffinity", lambda _: set(range(4)))
    assert side_by_side(7, network) == expected
    assert side_by_side(1, network) == 1


def test_all_share_the_memory_there_is(monkeypatch):
    monkeypatch.setattr(memory, "available_mib", lambda: 1000.0)
    assert memory.default_limit_mib(2) == pytest.approx(memory.SHARE * 500)
    monkeypatch.setattr(memory, "available_mib", lambda: None)
    assert memory.default_limit_mib(2) is None
