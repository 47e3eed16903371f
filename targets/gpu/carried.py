"""The model of a profile's GPU: its own constants, or those of one of its kind, carried over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Literal

from targets.gpu.dispatch import Unit
from targets.gpu.model import GpuModel, load
from targets.gpu.terms import Resource
from targets.profile import CONSTANTS, Gpu, Profile, list_profiles

Precision = Literal["fp16", "fp32"]
SINGLE: Mapping[Resource, float] = {"fixed": 1.0, "compute": 2.0, "latency": 2.0, "memory": 2.0}


def is_measured(gpu: Gpu) -> bool:
    """Whether the constants were fitted on this GPU."""
    return load(gpu.constants).gpu == gpu.name


def model_of(profile: Profile, precision: Precision = "fp16") -> GpuModel:
    """The model of a profile of kind "gpu".

    A GPU nobody measured has its own units in the delegate's rules, the terms of the measured one by `factors`, and an
    interval that is the wider of that GPU's own and of what nine in ten networks were off when measured GPUs of one
    kind were modelled by each other (`validation`).

    The delegate's default is half precision, and nothing else was published. Single precision is a rule, with the wide
    interval: values are twice the bytes and multiplications go at half the rate, as all makers state for these GPUs.
    """
    return _model(profile.gpu, precision)


@cache
def _model(gpu: Gpu, precision: Precision) -> GpuModel:
    if precision == "fp32":
        half = _model(gpu, "fp16")
        return half.carried_over(half.gpu, half.unit, SINGLE, max(carried_interval(), half.interval))
    model = load(gpu.constants)
    if model.gpu == gpu.name:
        return model
    measured = next(other.gpu for other in list_profiles() if other.gpu and other.gpu.name == model.gpu)
    interval = max(carried_interval(), model.interval)
    return model.carried_over(gpu.name, Unit(gpu.architecture, gpu.units), factors(measured, gpu), interval)


def factors(measured: Gpu, other: Gpu) -> Mapping[Resource, float]:
    """By which a term of each resource is longer on `other`."""
    clock = measured.clock_mhz / other.clock_mhz
    return {
        "fixed": 1.0,
        "compute": clock * measured.lanes / other.lanes,
        "latency": clock,
        "memory": measured.bandwidth_gb_s / other.bandwidth_gb_s,
    }


def carried_interval() -> float:
    """How many times larger or smaller than the model nine of ten networks are at most."""
    return json.loads((CONSTANTS / "carried_over.json").read_text(encoding="utf-8"))["interval"]
