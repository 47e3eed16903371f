"""Targets that are GPUs: what `planish targets` shows of them, and how their models are validated."""

from __future__ import annotations

import json
from pathlib import Path

from commands import planish


def test_the_command_wants_the_tables(tmp_path: Path):
    done = planish("targets", "validate", "--published", str(tmp_path))
    assert done.exit_code == 2 and "TABLES_MISSING" in done.stderr
    for options in (["--refit"], ["--published", str(tmp_path), "--threads", "2"]):
        done = planish("targets", "validate", *options)
        assert done.exit_code == 2 and "--published stands with" in done.stderr


def test_a_gpu_is_shown_as_modelled_with_its_error():
    own = planish("targets", "show", "pixel-4-gpu")
    assert own.exit_code == 0 and "never measured" in own.stdout
    assert "49 published ones on this GPU" in " ".join(own.stdout.split())
    other = json.loads(planish("targets", "show", "galaxy-s23-gpu", "--json").stdout)
    assert other["gpu"]["name"] == "Adreno 740" and "gpu.constants" in other["unknown"]
    assert other["modelled"]["interval"] > 1.5
