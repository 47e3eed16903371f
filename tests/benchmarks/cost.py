"""How far a cost table is from what it predicts: `python tests/benchmarks/cost.py PROFILE [FORMAT]`.

Writes reports/benchmarks/cost-PROFILE-FORMAT.json and a short table beside it (.md): the error on operators that no
table is learned from, and of the sum over ten networks against the same networks emulated whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from targets import cost, cost_model  # noqa: E402
from targets.cost import CostTable  # noqa: E402
from targets.operator import Operator, pointwise  # noqa: E402
from targets.profile import load_profile  # noqa: E402
from targets.runners import Job, emulator  # noqa: E402
from targets.validation.build import artifact  # noqa: E402
from targets.validation.network import Network, load_network  # noqa: E402

NETWORKS = (
    "mobilenet-v1",
    "mobilenet-v2",
    "mobilenet-v3-large",
    "mobilenet-v3-small",
    "mnasnet-b1",
    "efficientnet-lite0",
    "squeezenet-1.1",
    "resnet-18",
    "resnet-20-cifar",
    "unet-128",
)


def main(name: str, format: str = "tflite") -> None:
    profile = load_profile(name)
    table = CostTable.load(profile, format)
    timed = cost.unseen_times(profile, format)
    error = cost.error_on(table, timed)
    by_class: dict[str, list] = {}
    for operator, ms in timed:
        by_class.setdefault(cost_model.classify(operator, format), []).append((operator, ms))
    classes = {
        kind: {"configurations": len(pairs), **vars(cost.error_on(table, pairs))} for kind, pairs in by_class.items()
    }
    networks = {network: compared(network, table, profile) for network in NETWORKS}
    result = {
        "command": f"python tests/benchmarks/cost.py {name} {format}",
        "table": table.source,
        "unseen": {"configurations": len(timed), **vars(error), "classes": dict(sorted(classes.items()))},
        "networks": networks,
    }
    path = ROOT / "reports" / "benchmarks" / f"cost-{name}-{format}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        f"{profile.title}, {format}: {len(timed)} operators that the table was not learned from: median error "
        f"{100 * error.median:.1f} %, 90th percentile {100 * error.p90:.1f} %. Reproduce: `{result['command']}`.",
        "",
        "| network | emulated whole, ms | sum of the table, ms | error, % |",
        "|---|---|---|---|",
        *(
            f"| {network} | {row['emulated_ms']:.2f} | {row['table_ms']:.2f} | {row['error_percent']:+.1f} |"
            for network, row in networks.items()
        ),
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")


def compared(name: str, table: CostTable, profile) -> dict[str, float]:
    built = artifact(name, "fp32", table.format)
    (timing,) = emulator.time_artifacts(
        [Job(built.path, built.inputs)], table.format, profile, lambda message: None, phases=1
    )
    whole = timing.samples_ms[0]
    total = table.invoke_ms + sum(table.milliseconds(operator) for operator in operators(load_network(name)))
    return {
        "emulated_ms": round(whole, 4),
        "table_ms": round(total, 4),
        "error_percent": round(100 * (total / whole - 1), 1),
    }


def operators(network: Network) -> list[Operator]:
    """The operators of a validation network; views and reshapes cost nothing."""
    found = []
    for index, layer in enumerate(network.layers):
        if layer.op in ("input", "flatten", "tokens", "image"):
            continue
        before = network.input_shape(index)
        out_size, channels = size(layer.shape), layer.shape[-1]
        if layer.op in ("conv", "linear"):
            kernel, stride = (layer.kernel,) * 2, (layer.stride,) * 2
            found.append(Operator(layer.op, before[-1], channels, kernel, stride, layer.groups, size(before), out_size))
        elif layer.op in ("max_pool", "avg_pool", "global_pool"):
            kind = "max_pool" if layer.op == "max_pool" else "pool"
            kernel = size(before) if layer.op == "global_pool" else (layer.kernel,) * 2
            stride = (layer.stride,) * 2
            found.append(Operator(kind, channels, channels, kernel, stride, 1, size(before), out_size))
        elif layer.op == "upsample":
            found.append(Operator("resize", channels, channels, (1, 1), (1, 1), 1, size(before), out_size))
        else:
            kind = {"shuffle": "transpose"}.get(layer.op, layer.op)
            if kind == "mul" and network.layers[layer.inputs[1]].shape != layer.shape:
                kind = "scale"
            found.append(pointwise(kind, channels, out_size, layer.groups))
            if layer.op == "add" and layer.activation:
                found.append(pointwise("clamp", channels, out_size))
    return found


def size(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[:2] if len(shape) == 3 else (shape[0], 1)


if __name__ == "__main__":
    main(*sys.argv[1:3])
