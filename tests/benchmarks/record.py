"""Records a finished run as a committed benchmark: `python tests/benchmarks/record.py RUN NAME "COMMAND"`.

Writes reports/benchmarks/NAME.json: what was asked, what was measured before, on the way and after, and the command.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from reports.records import CandidateRecord, read_run  # noqa: E402


def main(run: str, name: str, command: str) -> None:
    record = read_run(Path(run) / "report.json")
    final = record.chosen
    kinds = [edit.kind for edit in final.edits]
    result = {
        "name": name,
        "command": command,
        "verdict": record.verdict,
        "target": record.target.name,
        "goal_ms": record.goal.latency_ms,
        "original": figures(record.base),
        "result": figures(final),
        "edits": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "measured_candidates": len(record.candidates),
        "steps": [figures(candidate) for candidate in record.candidates],
        "seconds": round(record.seconds),
        "environment": record.environment,
        "date": record.finished.date().isoformat(),
    }
    (ROOT / "reports" / "benchmarks" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    before, after = result["original"], result["result"]
    times = [f"{before[key]:.3f} → {after[key]:.3f}" if key in after else "" for key in ("tflite_ms", "onnx_ms")]
    print(
        f"| {name} | {before['top1_percent']:.2f} → {after['top1_percent']:.2f} | {times[0]} | {times[1]} | "
        f"{before['bytes'] / 1e3:.0f} → {after['bytes'] / 1e3:.0f} |"
    )


def figures(candidate: CandidateRecord) -> dict[str, float]:
    """What was measured of one network's artifacts."""
    found = {f"{m.format}_ms": m.median_ms for m in candidate.measurements}
    return {
        **found,
        "top1_percent": candidate.quality.value,
        "samples": candidate.quality.samples,
        "bytes": candidate.measurements[0].bytes,
        "parameters": candidate.parameters,
        "macs": candidate.macs,
    }


if __name__ == "__main__":
    main(*sys.argv[1:4])
