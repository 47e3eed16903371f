"""What the statistics of compiled kernels add to a cost model of mobile GPUs that knows only shapes.

    python tests/benchmarks/gpu_isa.py FOLDER [GPU ...]

FOLDER holds the published tables (`targets.gpu.published`). Convolutions of them are built as operators of their own,
compiled by Mesa for the GPU that they were measured on or its stand-in, and their latency is predicted with every
network of their family left out. Needs `planish targets setup pixel-4-gpu` and `planish targets setup
galaxy-s10-exynos-gpu`. Writes reports/benchmarks/gpu-isa.json and .md after every GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isa_operators import SEED, Compiled, as_measured, chosen, compile_all, of_code, of_shape
from scipy.stats import spearmanr

from targets.gpu import published
from targets.gpu.fit import fit
from targets.gpu.gpus import find_gpu
from targets.gpu.kernel import Kernel
from targets.gpu.published import MEASURED, Network
from targets.runners.artifact import runtime_version

REPORT = Path(__file__).resolve().parents[2] / "reports/benchmarks/gpu-isa"
COMMAND = "python tests/benchmarks/gpu_isa.py FOLDER"
OPERATORS = {"Adreno 640": 300, "Mali-G76 MP12": 120}
DRIVEN = {"Adreno 640": "adreno-640", "Mali-G76 MP12": "mali-g76"}
OWN_FOLD, SHARED_FOLDS = 5, 3  # networks of a family that is left out alone, and groups that share out the others
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
DRAWS = 2000
WORTH = 1.0  # points of the median error for which a model would take the statistics in


def folds(networks: Sequence[Network]) -> dict[str, int]:
    """network -> fold. A large family is one; the small ones share a few, whole."""
    families: dict[str, list[str]] = {}
    for network in networks:
        families.setdefault(network.family, []).append(network.name)
    large = [members for members in families.values() if len(members) >= OWN_FOLD]
    small = [members for members in families.values() if len(members) < OWN_FOLD]
    groups = large + [sum(small[start::SHARED_FOLDS], []) for start in range(SHARED_FOLDS)]
    return {name: index for index, names in enumerate(groups) for name in names}


class Shapes:
    """The shipped model, fitted anew without some folds."""

    def __init__(self, gpu: str, networks: Sequence[Network], operators: Sequence[Compiled]) -> None:
        self.fold = folds(networks)
        self.of = np.array([self.fold[one.operator.network] for one in operators])
        self._gpu, self._networks, self._operators = gpu, networks, operators
        self._known: dict[frozenset[int], np.ndarray] = {}

    def logarithms(self, *left_out: int) -> np.ndarray:
        """[operators, 2] of log microseconds, with the correction and without, by the model of the other folds."""
        key = frozenset(left_out)
        if key not in self._known:
            kept = [network for network in self._networks if self.fold[network.name] not in key]
            model = fit(self._gpu, MEASURED[self._gpu], kept)
            kernels = [one.operator.kernel for one in self._operators]
            self._known[key] = np.log([[model.microseconds(k), max(model.uncorrected(k), 1.0)] for k in kernels])
        return self._known[key]


def predictions(shapes: Shapes, measured: np.ndarray, code: np.ndarray, shape: np.ndarray) -> dict[str, np.ndarray]:
    """Logarithms of microseconds of each operator by each way, its fold left out of all that was fitted.

    What a ridge regression learns of the model's residuals are residuals of operators that the model was not fitted
    on either: the model without the fold to be predicted and the fold that is learned from.
    """
    found = {name: np.zeros(len(measured)) for name in WAYS}
    for fold in range(max(shapes.of) + 1):
        here, there = shapes.of == fold, shapes.of != fold
        outside = np.zeros((len(measured), 2))
        for other in set(shapes.of[there]):
            outside[shapes.of == other] = shapes.logarithms(fold, other)[shapes.of == other]
        groups = shapes.of[there]
        for column, base in enumerate(("shapes", "terms")):
            known = shapes.logarithms(fold)[here, column]
            found[base][here] = known
            residual = (measured - outside[:, column])[there]
            for name, features in (("code", code), ("control", shape)):
                correction = _ridge(features[there], residual, groups, features[here])
                found[f"{base} + {name}"][here] = known + correction
        target = measured[there]
        alone = {"instructions alone": code[:, :1], "instructions run alone": code[:, 1:2], "code alone": code}
        for name, features in alone.items():
            found[name][here] = _ridge(features[there], target, groups, features[here])
    return found


WAYS = {
    "shapes": "shapes: the shipped model",
    "shapes + code": "and the compiled code",
    "shapes + control": "and shapes once more, as many numbers",
    "terms": "shapes: its terms without the learned correction",
    "terms + code": "and the compiled code",
    "terms + control": "and shapes once more, as many numbers",
    "instructions alone": "instructions times invocations alone",
    "instructions run alone": "the same times the turns of their loop, which shapes tell",
    "code alone": "all statistics of the code, these turns among them, alone",
}
GAINS = (("shapes + code", "shapes"), ("shapes + code", "shapes + control"), ("terms + code", "terms + control"))


def _ridge(features: np.ndarray, target: np.ndarray, groups: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Ridge regression, its penalty chosen by leaving out each of the groups in turn."""

    def solved(rows: np.ndarray, at: np.ndarray, penalty: float) -> np.ndarray:
        mean, spread = features[rows].mean(axis=0), features[rows].std(axis=0) + 1e-9
        design, level = (features[rows] - mean) / spread, target[rows].mean()
        square = design.T @ design + penalty * np.eye(design.shape[1])
        return level + (at - mean) / spread @ np.linalg.solve(square, design.T @ (target[rows] - level))

    def left_out(penalty: float) -> float:
        return sum(
            np.abs(solved(groups != group, features[groups == group], penalty) - target[groups == group]).sum()
            for group in set(groups)
        )

    return solved(np.ones(len(target), bool), wanted, min(PENALTIES, key=left_out))


def figures(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    errors = _errors(predicted, measured)
    return {
        "median_percent": round(100 * float(np.median(errors)), 2),
        "p90_percent": round(100 * float(np.quantile(errors, 0.9)), 2),
        "spearman": round(float(spearmanr(predicted, measured).statistic), 4),
    }


def _errors(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    return np.abs(np.exp(predicted - measured) - 1)


def gain(one: np.ndarray, other: np.ndarray, measured: np.ndarray, networks: Sequence[str]) -> dict[str, list[float]]:
    """By how many points `one` is better than `other`, and nine in ten of the draws with networks drawn again."""
    rng = np.random.default_rng(SEED)
    members = [np.flatnonzero(np.array(networks) == name) for name in dict.fromkeys(networks)]
    both = np.array([_errors(one, measured), _errors(other, measured)])
    draws = [
        both[:, np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])]
        for _ in range(DRAWS)
    ]
    found: dict[str, list[float]] = {}
    for name, quantile in (("median", 0.5), ("p90", 0.9)):
        after, before = np.quantile(both, quantile, axis=1)
        drawn = [np.subtract(*np.quantile(draw, quantile, axis=1)[::-1]) for draw in draws]
        found[name] = [round(100 * float(x), 2) for x in (before - after, *np.quantile(drawn, (0.05, 0.95)))]
    return found


def ablation(folder: Path, gpu: str) -> dict[str, Any]:
    networks, unit = published.load(folder, gpu), MEASURED[gpu]
    operators, refused, driver = compile_all(chosen(folder, gpu, networks, OPERATORS[gpu]), DRIVEN[gpu])
    shapes = Shapes(gpu, networks, operators)
    measured = np.log([one.operator.microseconds for one in operators])
    code = np.array([of_code(one) for one in operators])
    shape = np.array([of_shape(unit, one) for one in operators])
    dispatched = np.array([as_measured(unit, one) for one in operators])
    elsewhere = {fold: _shapes_outside(networks, shapes.fold, fold) for fold in set(shapes.of)}
    new = np.array([one.operator.kernel not in elsewhere[of] for one, of in zip(operators, shapes.of, strict=True)])
    found = predictions(shapes, measured, code, shape)
    names = [one.operator.network for one in operators]
    subsets = {"all": np.ones(len(operators), bool), "dispatched as measured": dispatched, "new shapes": new}
    kinds = [one.operator.kernel.choice + " grouped" * _grouped(one.operator.kernel) for one in operators]
    return {
        "driver": driver,
        "compiled_as": find_gpu(DRIVEN[gpu]).title,
        "networks": len(set(names)),
        "folds": len(set(shapes.of)),
        "classes": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "not_one_kernel": len(refused),
        "features": {"code": code.shape[1], "control": shape.shape[1]},
        "rank_correlations_with_missed": {
            name: [_rank(column, measured - found["shapes"]) for column in features.T]
            for name, features in (("code", code), ("control", shape))
        },
        "subsets": {
            subset: {
                "operators": int(rows.sum()),
                "ways": {name: figures(found[name][rows], measured[rows]) for name in WAYS},
                "gains": {
                    f"{one} over {other}": gain(
                        found[one][rows], found[other][rows], measured[rows], list(np.array(names)[rows])
                    )
                    for one, other in GAINS
                },
            }
            for subset, rows in subsets.items()
        },
    }


def _rank(one: np.ndarray, other: np.ndarray) -> float:
    return round(float(spearmanr(one, other).statistic), 3) if np.ptp(one) else 0.0


def _shapes_outside(networks: Sequence[Network], fold: dict[str, int], left_out: int) -> set[Kernel]:
    return {timed.kernel for network in networks if fold[network.name] != left_out for timed in network.kernels}


def _grouped(kernel: Kernel) -> bool:
    return kernel.groups > 1 and kernel.choice != "depthwise"


def table(record: dict[str, Any]) -> Iterator[str]:
    yield "# What compiled kernels say that shapes do not"
    yield ""
    yield (
        "Convolutions of the published tables, one kernel each, compiled by Mesa for the GPU they were measured on "
        "or its stand-in; error of their modelled latency with every network of their family left out. A ridge "
        "regression predicts what the model misses, from the statistics of the code or, as a control, from as many "
        "numbers of the shapes. Gains are in points, with the interval of 90 % when networks are drawn again."
    )
    for gpu, row in record["gpus"].items():
        subsets = row["subsets"]
        classes = ", ".join(f"{count} {kind}" for kind, count in row["classes"].items())
        yield f"\n## {gpu}, compiled as {row['compiled_as']}\n"
        yield (
            f"{row['driver']}, {record['runtime']}. {subsets['all']['operators']} operators ({classes}) of "
            f"{row['networks']} networks in {row['folds']} folds. {subsets['dispatched as measured']['operators']} are "
            "dispatched as in the measured delegate: as many outputs a thread. "
            f"{subsets['new shapes']['operators']} are of shapes that no network of another fold has.\n"
        )
        ranks = row["rank_correlations_with_missed"]["code"]
        yield (
            f"Of the {len(ranks)} statistics the one that tells most of what the shipped model misses has a rank "
            f"correlation of {max(map(abs, ranks)):.2f} with it.\n"
        )
        yield "| median / 90 % / rank correlation | " + " | ".join(subsets) + " |"
        yield "|---" * (1 + len(subsets)) + "|"
        for name, title in WAYS.items():
            held = [subset["ways"][name] for subset in subsets.values()]
            cells = [
                f"{way['median_percent']:.1f}% / {way['p90_percent']:.1f}% / {way['spearman']:.3f}" for way in held
            ]
            yield " | ".join([f"| {title}", *cells]) + " |"
        yield ""
        yield "| gain of the code | median | 90 % |"
        yield "|---|---|---|"
        for pair in GAINS:
            found = subsets["all"]["gains"][" over ".join(pair)]
            cells = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*found[name]) for name in ("median", "p90")]
            yield " | ".join([f"| {pair[0]} over {pair[1]}", *cells]) + " |"
        by, least, _ = subsets["all"]["gains"]["shapes + code over shapes"]["median"]
        verdict = "would gain by them" if by >= WORTH and least > 0 else "has nothing to gain from them"
        yield f"\nBy the median the shipped model {verdict}."
    yield ""
    yield f"Reproduce: `{record['command']}`"


def main(folder: str, *gpus: str) -> None:
    path = REPORT.with_suffix(".json")
    record = json.loads(path.read_text(encoding="utf-8")) if gpus and path.exists() else {"gpus": {}}
    record |= {"source": published.SOURCE, "runtime": runtime_version("tflite"), "command": COMMAND}
    for gpu in gpus or OPERATORS:
        record["gpus"][gpu] = ablation(Path(folder), gpu)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        REPORT.with_suffix(".md").write_text("\n".join(table(record)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
