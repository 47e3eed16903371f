"""Emulated latencies beside published ones; `python tests/benchmarks/published.py` writes them to reports/benchmarks/.

Published: XNNPACK project, README at commit e9459e349f, fp32, one thread, measured on the phone on 27 March 2020 with
random weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

PUBLISHED_MS = {("MobileNetV2", "pixel-3a-cpu"): 55.0}
TARGETS = ("pixel-3a-cpu", "pixel-4-cpu", "raspberry-pi-4")


def measure_mobilenet_v2(directory: Path, targets: tuple[str, ...] = TARGETS) -> list[dict[str, object]]:
    """Ingest, export to TFLite, check parity and measure on each target."""
    import mobilenet_v2
    import numpy as np
    import torch

    from pipeline.compress.analysis import run
    from pipeline.export.child import export
    from pipeline.model.ingest import ingest
    from pipeline.verify.execute import to_layout
    from pipeline.verify.parity import check, require
    from targets.measure import measure
    from targets.profile import load_profile

    x = torch.stack(mobilenet_v2.images())
    network = ingest(f"{mobilenet_v2.__file__}:network", example=lambda: x[:2])
    torch.export.save(network.exported(), directory / "network.pt2")
    artifact = export(directory / "network.pt2", format="tflite", directory=directory, log=directory / "export.log")
    require(check(artifact, [run(network, [x[:8]]).numpy()], x[:8].numpy()), artifact)
    np.savez(directory / "input.npz", x=np.ascontiguousarray(to_layout(x[:1].numpy(), artifact.inputs[0])))
    rows = []
    for target in targets:
        found = measure(artifact.path, format="tflite", profile=load_profile(target), inputs=directory / "input.npz")
        rows.append(
            {
                "network": "MobileNetV2",
                "target": target,
                "runtime": found.runtime,
                "emulated_ms": found.median_ms,
                "published_ms": PUBLISHED_MS.get(("MobileNetV2", target)),
                "instructions": found.instructions,
                "artifact_sha256": artifact.sha256,
                "state": found.state,
            }
        )
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure_mobilenet_v2(Path(scratch))
    (ROOT / "reports" / "benchmarks" / "published.json").write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        beside = f", published {row['published_ms']:g} ms" if row["published_ms"] else ""
        print(f"{row['network']} on {row['target']}: emulated {row['emulated_ms']:.1f} ms{beside}")


if __name__ == "__main__":
    main()
