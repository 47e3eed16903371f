"""The real converters: errors as the user sees them, and the dry lowering."""

import sys
from pathlib import Path

import pytest
import torch
from refused_networks import HERE, line_of, saved

from pipeline.export import child
from pipeline.export.child import export
from pipeline.export.coverage import cover, usual_formats
from pipeline.export.failure import Place
from pipeline.export.survey import Coverage
from targets.errors import UsageError, VerificationError

pytestmark = [pytest.mark.export, pytest.mark.slow]
LINE = line_of("# the user")
MIDDLE = Place("middle", "Middle", f"{HERE}:{LINE}")


@pytest.mark.parametrize(
    ("format", "does", "operator", "says"),
    [
        ("tflite", torch.special.i0, "aten.special_i0", "Lowering not found: aten.i0"),
        ("tflite", torch.linalg.inv, "aten.linalg_inv", "input tokens"),  # names nothing: found by halving
        ("onnx", torch.special.i0, "aten.special_i0", "prims.bessel_i0"),  # names what the user did not write
        ("pte", lambda x: torch.linalg.qr(x)[0], "aten.linalg_qr", "not in Core ATen"),
        ("coreml", torch.lgamma, "aten.lgamma", "Unsupported fx node"),
    ],
)
def test_the_error_names_operator_module_and_line(format, does, operator, says, tmp_path):
    path = saved(does, tmp_path / "network.pt2")
    with pytest.raises(VerificationError) as caught:
        export(path, format=format, directory=tmp_path / "out", log=tmp_path / "log")
    error = caught.value
    assert error.code == "EXPORT_FAILED" and f"The operator {operator} cannot be exported to " in error.what
    assert error.where.startswith("middle (Middle), ") and error.where.endswith(f"{HERE.name}:{LINE}")
    assert says in error.why and "Traceback" not in str(error) and len(str(error).splitlines()) == 4
    assert str(tmp_path / "log") in error.fix and "Traceback" in (tmp_path / "log").read_text()


@pytest.fixture(scope="module")
def covered(tmp_path_factory) -> dict[str, Coverage]:
    """Roll and cumsum in the middle, in three formats."""
    folder: Path = tmp_path_factory.mktemp("covered")
    path = saved(lambda x: torch.roll(x, 1, 2).cumsum(1), folder / "network.pt2")
    phases: list[tuple[str, str]] = []
    found = cover(
        path,
        formats=usual_formats(),
        logs=folder / "logs",
        progress=lambda format, phase: phases.append((format, phase)),
    )
    assert {format for format, _ in phases} == {each.format for each in found}
    assert sorted(file.name for file in (folder / "logs").iterdir()) == sorted(f"{each.format}.log" for each in found)
    assert not [entry for entry in folder.iterdir() if entry.name not in ("logs", "network.pt2")]
    return {each.format: each for each in found}


def verdict(coverage: Coverage, operator: str) -> str:
    (row,) = (row for row in coverage.operators if row.operator == operator)
    return row.verdict


def test_every_call_has_one_verdict(covered):
    assert list(covered) == usual_formats() == ["onnx", "tflite", "pte"]
    counts = {each.format: sum(row.count for row in each.operators) for each in covered.values()}
    assert set(counts.values()) == {8} and all(each.converted and not each.failure for each in covered.values())
    for each in covered.values():
        assert Coverage.from_json(each.to_json()) == each


def test_native_and_decomposed(covered):
    assert verdict(covered["onnx"], "aten.cumsum") == verdict(covered["onnx"], "aten.hardswish") == "native"
    roll = next(row for row in covered["onnx"].operators if row.operator == "aten.roll")
    assert (roll.verdict, roll.becomes, roll.places) == ("decomposed", ("Slice", "Concat"), (MIDDLE,))
    strided = next(row for row in covered["tflite"].operators if row.operator == "aten.conv2d")
    assert (strided.count, strided.becomes) == (1, ("PAD", "CONV_2D"))
    assert [place.module for place in strided.places] == ["stem.0"]


def test_fallbacks_are_those_of_the_whole_network(covered):
    assert covered["onnx"].outside is None
    assert verdict(covered["tflite"], "aten.cumsum") == "fallback" and covered["tflite"].outside == {"CUMSUM": 1}
    fallen = {row.operator for row in covered["pte"].operators if row.verdict == "fallback"}
    assert fallen == {"aten.roll", "aten.cumsum", "aten.mean.dim"}  # XNNPACK wants a mean to keep its dimensions
    assert set(covered["pte"].outside) == {"aten::index_select", "aten::cumsum", "aten::mean"}


def test_refused_network(tmp_path):
    """What is unsupported is told apart from everything else, which has its verdict none the less."""
    path = saved(torch.special.i0, tmp_path / "network.pt2")
    (found,) = cover(path, formats=["onnx"], logs=tmp_path / "logs")
    assert not found.converted and found.failure.operator == "aten.special_i0" and found.failure.places == (MIDDLE,)
    assert found.operators[0].operator == "aten.special_i0" and found.operators[0].verdict == "unsupported"
    assert {row.verdict for row in found.operators[1:]} == {"native"}
    assert "refused" in found.learned and "Traceback" in (tmp_path / "logs" / "onnx.log").read_text()


def test_a_converter_that_dies_leaves_the_others_alone(tmp_path, monkeypatch):
    path = saved(torch.sin, tmp_path / "network.pt2")
    real = child._command

    def command(format, *rest):
        dying = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
        return dying if format.name == "tflite" else real(format, *rest)

    monkeypatch.setattr(child, "_command", command)
    dead, alive = cover(path, formats=["tflite", "onnx"], logs=tmp_path / "logs")
    assert not dead.converted and "SIGKILL" in dead.failure.sentence and dead.operators == ()
    assert alive.converted and verdict(alive, "aten.sin") == "native"


def test_unknown_format(tmp_path):
    with pytest.raises(UsageError):
        cover(tmp_path / "network.pt2", formats=["onnx", "tflight"], logs=tmp_path)
    assert not list(tmp_path.iterdir())
