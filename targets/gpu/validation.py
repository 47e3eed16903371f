"""How far the model is from published inferences of networks it has not seen, beside two naive models.

Networks are left out two ways: every seventh at once, so that relatives stay behind, and all of one family at once. The
second is what a network unlike the published ones must expect; the interval is taken from it. A GPU is left out, too:
it is modelled by each other one of its kind, carried over by lanes times clock and by bandwidth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.cache import write_atomic
from targets.gpu import correction
from targets.gpu.carried import factors
from targets.gpu.fit import fit, of_class
from targets.gpu.model import KERNELS, Error, GpuModel, kernel_row, to_json
from targets.gpu.published import MEASURED, Network, Rule, load, rules
from targets.profile import CONSTANTS, Profile, list_profiles

FOLDS = 7
CONFIDENCE = 0.9
Fold = list[int | str]  # of each network, what it is left out with


@dataclass(frozen=True)
class Naive:
    """A baseline, by the same folds: median and 90th percentile of the relative error."""

    median: float
    p90: float
    spearman: float


@dataclass(frozen=True)
class LeftOut:
    """Networks left out of one GPU's fit."""

    gpu: str
    way: str  # "one in seven" or "whole families"
    error: Error
    worst: str  # the network furthest off
    worst_error: float
    one_constant: Naive  # milliseconds in proportion to multiplications
    affine: Naive  # and a constant
    interval: float  # times larger or smaller than modelled nine of ten were at most
    coverage: float | None  # networks within the interval of the other families' residuals; of families only
    predictions: Mapping[str, tuple[float, float]]  # network -> modelled, published milliseconds


@dataclass(frozen=True)
class CarriedOver:
    """One GPU modelled by the constants of another."""

    gpu: str
    by: str
    same_kind: bool
    bias: float  # median of modelled over published, less 1
    median: float  # of the absolute relative error
    p90: float
    spearman: float


@dataclass(frozen=True)
class Validation:
    """Everything `reports.gpu_validation` shows."""

    rules: tuple[Rule, ...]
    left_out: tuple[LeftOut, ...]
    carried_over: tuple[CarriedOver, ...]
    carried_interval: float  # times larger or smaller, of nine in ten, among GPUs of one kind


def run(folder: Path, progress: Callable[[str], None], *, refit: bool = False) -> Validation:
    """Validate on the tables in `folder`; with `refit` write the constants of all networks to `constants/` as well.

    Raises:
        UsageError: `TABLES_MISSING`.
    """
    everything = {gpu: load(folder, gpu) for gpu in MEASURED}
    found: list[LeftOut] = []
    models: dict[str, GpuModel] = {}
    for number, (gpu, networks) in enumerate(everything.items(), 1):
        progress(f"{number} of {len(everything)}: {gpu}, {len(networks)} networks")
        sevenths: Fold = [index % FOLDS for index in range(len(networks))]
        families: Fold = [network.family for network in networks]
        of_families = _leave_out(gpu, networks, families, "whole families")
        found += [_leave_out(gpu, networks, sevenths, "one in seven"), of_families]
        models[gpu] = fit(gpu, MEASURED[gpu], networks, of_families.interval, of_families.error)
    progress("GPUs by one another")
    carried, carried_interval = _carry_over(models, everything)
    if refit:
        _write(models, everything, carried_interval)
    return Validation(rules(folder), tuple(found), tuple(carried), carried_interval)


def _leave_out(gpu: str, networks: Sequence[Network], folds: Fold, way: str) -> LeftOut:
    unit = MEASURED[gpu]
    modelled, one, affine = (np.zeros(len(networks)) for _ in range(3))
    whole = np.array([network.milliseconds for network in networks])
    work = np.array([sum(timed.kernel.flops for timed in network.kernels) for network in networks], dtype=float)
    for fold in dict.fromkeys(folds):
        here = np.array([of == fold for of in folds])
        model = fit(gpu, unit, [network for network, of in zip(networks, folds) if of != fold])
        for index in np.flatnonzero(here):
            modelled[index] = network_ms(model, networks[index])
        one[here] = work[here] * np.median(whole[~here] / work[~here])
        line = np.polyfit(work[~here], whole[~here], 1, w=1 / whole[~here])
        affine[here] = np.polyval(line, work[here])
    errors = modelled / whole - 1
    worst = int(np.abs(errors).argmax())
    ratios = np.abs(np.log(modelled / whole))
    covered = None
    if way == "whole families":
        others = {fold: _spread(ratios[[of != fold for of in folds]]) for fold in folds}
        covered = sum(ratio <= others[fold] for ratio, fold in zip(ratios, folds, strict=True)) / len(folds)
    return LeftOut(
        gpu,
        way,
        Error(len(networks), *_figures(modelled, whole)),
        networks[worst].name,
        float(errors[worst]),
        Naive(*_figures(one, whole)),
        Naive(*_figures(affine, whole)),
        math.exp(_spread(ratios)),
        covered,
        {n.name: (float(ms), n.milliseconds) for n, ms in zip(networks, modelled)},
    )


def network_ms(model: GpuModel, network: Network) -> float:
    """A published network as the model has it."""
    return model.milliseconds([timed.kernel for timed in network.kernels])


def _figures(modelled: NDArray[np.float64], whole: NDArray[np.float64]) -> tuple[float, float, float]:
    from scipy.stats import spearmanr

    errors = np.abs(modelled / whole - 1)
    return float(np.median(errors)), float(np.quantile(errors, 0.9)), float(spearmanr(modelled, whole).statistic)


def _spread(ratios: NDArray[np.float64]) -> float:
    """What nine of ten stay below, counting the next one in (split conformal prediction, Lei et al. 2018)."""
    ordered = np.sort(ratios)
    return float(ordered[min(math.ceil(CONFIDENCE * (len(ordered) + 1)), len(ordered)) - 1])


def _carry_over(
    models: Mapping[str, GpuModel], everything: Mapping[str, Sequence[Network]]
) -> tuple[list[CarriedOver], float]:
    profiles = {profile.gpu.name: profile for profile in list_profiles() if profile.gpu}
    found: list[CarriedOver] = []
    ratios: list[float] = []
    for by in models:
        for gpu in models:
            if gpu == by:
                continue
            scaled = _carried(models[by], profiles[by], profiles[gpu])
            whole = np.array([network.milliseconds for network in everything[gpu]])
            modelled = np.array([network_ms(scaled, network) for network in everything[gpu]])
            same_kind = models[by].unit.vendor == models[gpu].unit.vendor
            bias = float(np.median(modelled / whole)) - 1
            found.append(CarriedOver(gpu, by, same_kind, bias, *_figures(modelled, whole)))
            if same_kind:
                ratios += [abs(float(ratio)) for ratio in np.log(modelled / whole)]
    return found, math.exp(_spread(np.array(ratios)))


def _carried(model: GpuModel, by: Profile, to: Profile) -> GpuModel:
    return model.carried_over(to.gpu.name, MEASURED[to.gpu.name], factors(by.gpu, to.gpu), 1.0)


def _write(
    models: Mapping[str, GpuModel], everything: Mapping[str, Sequence[Network]], carried_interval: float
) -> None:
    shapes: dict[str, list[Any]] = {}
    for gpu, model in models.items():
        timed = [one for network in everything[gpu] for one in network.kernels if one.microseconds is not None]
        indices: dict[str, list[int]] = {}
        counts = {choice: len(of_class(timed, choice)) for choice in model.weights}
        for choice in model.corrections:
            known = shapes.setdefault(choice, [])
            rows = [
                kernel_row(kernel)
                for kernel in correction.representatives(model.unit, [one.kernel for one in of_class(timed, choice)])
            ]
            known += [row for row in rows if row not in known]
            indices[choice] = [known.index(row) for row in rows]
        record = to_json(model, counts, indices) | {"command": "planish targets validate --published FOLDER --refit"}
        write_atomic(CONSTANTS / f"{slug(gpu)}.json", json.dumps(record) + "\n")
    write_atomic(KERNELS, json.dumps(shapes) + "\n")
    write_atomic(CONSTANTS / "carried_over.json", json.dumps({"interval": carried_interval}) + "\n")


def slug(gpu: str) -> str:
    return gpu.lower().replace(" ", "-")
