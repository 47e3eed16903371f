"""The table of operators and formats, at the width of a terminal, and the command that prints it."""

import io
import json
from pathlib import Path

import pytest
from commands import planish
from rich.console import Console

from pipeline.cli.covered import coverage_tables
from pipeline.export.failure import Failure, Place
from pipeline.export.formats import FORMATS
from pipeline.export.survey import Coverage, OperatorCoverage

PLACES = tuple(Place(f"blocks.{index}.attention", "Attention", f"model.py:{index}") for index in range(6))


def coverage(format: str, failure: Failure | None = None) -> Coverage:
    rows = (
        OperatorCoverage("aten.roll", 6, "fallback", ("aten::index_select",), PLACES),
        OperatorCoverage("aten.conv2d", 2, "decomposed", ("PAD", "CONV_2D"), PLACES[:2]),
        OperatorCoverage("aten.conv2d", 30, "native", ("CONV_2D",)),
        OperatorCoverage("aten.scaled_dot_product_attention", 4, "native", ("MATMUL",)),
    )
    return Coverage(format, rows, failure is None, "learned so", {"aten::index_select": 6}, failure, 12.0)


def printed(coverages: list[Coverage], width: int = 80) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False)
    for part in coverage_tables(coverages, width):
        console.print(part)
    return file.getvalue()


def test_table_fits_the_terminal_whatever_is_asked_for():
    text = printed([coverage(name) for name in FORMATS])
    assert max(map(len, text.splitlines())) <= 80
    heads = [line.split()[2:] for line in text.splitlines() if line.startswith("operator")]
    assert [name for head in heads for name in head] == list(FORMATS) and len(heads) > 1
    assert "aten.scaled_dot_product_attention  4 " in text  # whole, in one line


def test_what_is_not_native_is_listed_with_its_modules():
    text = printed([coverage("tflite")])
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("aten.")}
    assert rows["aten.conv2d"] == ["32", "decomposed", "2/32"] and rows["aten.roll"] == ["6", "fallback"]
    assert "aten.roll ×6 fallback, left to aten::index_select" in text and "and 2 more places" in text
    assert "blocks.0.attention (Attention), model.py:0" in text and "learned so" in text


def test_a_refusal_says_why_and_what_helps():
    failure = Failure("onnx", "aten.roll", PLACES[:1], "No ONNX function found for aten.roll.", ("use torch.cat",))
    text = printed([coverage("onnx", failure)])
    assert "ONNX: the network is refused" in text and "why: No ONNX function" in text and "fix: use torch.cat" in text
    nothing = Coverage("onnx", (), False, "nothing was learned", None, failure, 1.0)
    assert "operator" not in printed([nothing]).splitlines()[0]


@pytest.mark.export
@pytest.mark.slow
def test_inspect_lowers_only_when_asked(user_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["inspect", f"{user_folder}/model.py:tiny", "--data", user_folder / "test.npz"]
    plain = planish(*words, "--json")
    assert plain.exit_code == 0 and "coverage" not in json.loads(plain.stdout.splitlines()[-1])
    done = planish(*words, "--format", "onnx", "--logs", tmp_path / "logs", "--json")
    assert done.exit_code == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    (found,) = last.pop("coverage")
    assert found["format"] == "onnx" and found["converted"]
    assert {"aten.conv2d", "aten.linear"} <= {row["operator"] for row in found["operators"]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["logs"]
