"""What the user asks for: one typed, strict value, read from `planish.toml` or from the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.export.formats import format_named
from pipeline.quantities import parse_duration, parse_latency, parse_points
from targets.errors import UsageError, nearest

Method = Literal["auto", "easier", "layermerge", "depth-dp", "layercollapse", "lorita", "svd"]
OPTIONS = {"model": "MODEL", "formats": "--format"}  # where the command line names a key otherwise


class Recipe(BaseModel):
    """A whole run of `planish fit`; the fields are the keys of `planish.toml`.

    Attributes:
        model: `file.py:callable`, `package.module:callable` or `model.pt2`.
        weights: state dict to load into it, `.safetensors` or `.pt`.
        data: calibration samples, `file.py:callable`, a folder of class folders, or an `.npz`.
        test: samples that quality is judged on; a fifth of `data` is held out where none are given.
        mean, std: per-channel normalisation of the samples, after scaling to [0, 1].
        target: name of a target profile.
        latency: `12ms`, or `60%` of what the original takes there.
        max_drop: quality that may be lost, `0.5pt`; None only reports it.
        formats: artifacts to write, see `pipeline.export.formats`; the latency is asked of the first.
        output: `classes` for rows of class scores, `values` for anything else (boxes, embeddings, images).
        channels_last: TFLite takes and gives NHWC.
        labels: text file with the names of the classes, one a line; those of class folders are known without.
        strict: an artifact that its delegate does not take whole, or with a transpose of activations, does not do.
        method: how the network is compressed, see `pipeline.compress.methods`.
        linearize: with `auto` and `easier`, at least this many activations become linear, the lowest entropy first; 0
            leaves it to the plan.
        ranks: with `svd` and `lorita`, how ranks are selected: `global`, the largest singular values of all layers
            stay; `local`, the same share of each layer's; `uniform`, the same share of each layer's time; `alds`, the
            least largest error; `alds-grouped`, the same with channels in groups; `greedy`, step by step by what each
            does to the outputs, which takes long.
        removal: with `easier`, whether activations go `one-shot` or in the paper's `rounds`, one at a time, with a
            training on the labels after each.
        tolerated_drop: in rounds, points of accuracy on held-out training samples that removing may cost.
        easier_policy: in rounds, which of the paper's policies trains (see `pipeline.compress.easier`).
        train_epochs: with `lorita`, `layercollapse` and the rounds of `easier`, passes over the training samples in
            each training before the plan.
        augment: that training flips images and moves them by up to four pixels; off for inputs that this changes.
        lorita_factors: how many factors a layer is trained as; 1 is the control, training alone.
        melting: with `layercollapse`, how slopes are driven to 1: `taught` by the original, without labels, or the
            authors' settings, with labels (see `pipeline.compress.melt`).
        recover_steps: optimiser steps of the final recovery.
        recover: `10min`, how long that may take instead; a few steps are timed once, and their number is kept.
        recover_batch, recover_rate: samples a step and peak learning rate of the recovery.
        mixup: recovery blends samples; turn it off for inputs of which a blend means nothing.
        tolerance: how much faster than asked is good enough to stop looking, as a share.
        max_probes: measured candidates before the search stops.
        calibration_samples: how many samples planning looks at; statistics take fewer of large ones.
        seed: of every random choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    weights: str | None = None
    data: str
    test: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    target: str
    latency: str
    max_drop: str | None = None
    formats: list[str] = Field(default=["tflite", "onnx"], min_length=1)
    output: Literal["classes", "values"] = "classes"
    channels_last: bool = True
    labels: str | None = None
    strict: bool = False
    method: Method = "auto"
    linearize: int = Field(default=0, ge=0)
    ranks: Literal["global", "local", "uniform", "alds", "alds-grouped", "greedy"] = "global"
    removal: Literal["one-shot", "rounds"] = "one-shot"
    tolerated_drop: float = Field(default=1.0, ge=0)
    easier_policy: Literal[
        "cifar-resnet18", "cifar-mobilenetv2", "cifar-vgg16", "cifar-swin-t", "domainbed", "transfer"
    ] = "cifar-resnet18"
    train_epochs: float = Field(default=10.0, gt=0)
    augment: bool = False
    lorita_factors: int = Field(default=2, ge=1)
    melting: Literal["taught", "vision", "vgg", "language", "early"] = "taught"
    recover_steps: int = Field(default=400, ge=0)
    recover: str | None = None
    recover_batch: int = Field(default=64, ge=1)
    recover_rate: float = Field(default=1e-3, gt=0)
    mixup: bool = True
    tolerance: float = Field(default=0.03, ge=0, lt=1)
    max_probes: int = Field(default=6, ge=1)
    calibration_samples: int = Field(default=512, ge=1)
    seed: int = 0

    @field_validator("latency")
    @classmethod
    def _latency(cls, value: str) -> str:
        parse_latency(value)
        return value

    @field_validator("max_drop")
    @classmethod
    def _max_drop(cls, value: str | None) -> str | None:
        if value is not None:
            parse_points(value)
        return value

    @field_validator("recover")
    @classmethod
    def _recover(cls, value: str | None) -> str | None:
        if value is not None:
            parse_duration(value)
        return value

    @field_validator("formats")
    @classmethod
    def _formats(cls, value: list[str]) -> list[str]:
        formats = list(dict.fromkeys(value))
        deciding, *_ = [format_named(name) for name in formats]
        if not deciding.runs_on_host:
            raise UsageError(
                f"the latency cannot be asked of {deciding.name}",
                where="--format",
                why=f"it is not measured here: {deciding.why_not}",
                fix="name tflite, onnx, ort or pte first; the others are written beside it",
                code="FORMAT_NOT_MEASURED",
            )
        return formats

    @property
    def max_drop_points(self) -> float | None:
        return None if self.max_drop is None else parse_points(self.max_drop)

    def latency_ms(self, base_ms: float) -> float:
        """The latency asked for in milliseconds, given what the original takes."""
        milliseconds, share = parse_latency(self.latency)
        return milliseconds if milliseconds is not None else share * base_ms

    def to_toml(self) -> str:
        """The recipe as a `planish.toml`, every default spelled out; None is left out, TOML has no such value."""
        rows = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in self.model_dump().items()
            if value is not None
        ]
        return "\n".join(rows) + "\n"


def make_recipe(**fields: object) -> Recipe:
    """A recipe from the command line. Raises UsageError RECIPE_FIELD naming the option."""
    return _checked({key: value for key, value in fields.items() if value is not None}, None)


def read_recipe(path: Path, instead: Mapping[str, object] = MappingProxyType({})) -> Recipe:
    """Read a `planish.toml`.

    Args:
        path: the file.
        instead: fields that take the place of the file's.

    Raises:
        UsageError: RECIPE_MISSING, RECIPE_SYNTAX, RECIPE_FIELD (unknown, missing or of the wrong type), and what the
            quantities raise.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            "the recipe cannot be read",
            where=str(path),
            why=error.strerror or str(error),
            fix="check the path, or write one with `planish init`",
            code="RECIPE_MISSING",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            "the recipe is not TOML",
            where=str(path),
            why=str(error),
            code="RECIPE_SYNTAX",
            fix="correct that line; strings are in double quotes",
        ) from error
    return _checked({**data, **instead}, path)


def _checked(data: dict[str, object], path: Path | None) -> Recipe:
    """`path` is the recipe's file, None for the command line; errors name the key or the option accordingly."""
    try:
        return Recipe(**data)
    except UsageError as error:  # a quantity; it cannot know where it was written
        keys = {option: key for key, option in OPTIONS.items()}
        where = f"{path}, {keys.get(error.where, error.where.removeprefix('--'))}" if path else error.where
        raise UsageError(error.what, where=where, why=error.why, fix=error.fix, code=error.code) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        name = key if path else OPTIONS.get(key, f"--{key.replace('_', '-')}")
        where = f"{path}, {key}" if path else name
        keys = f"the keys are {', '.join(Recipe.model_fields)}"
        what, why, fix = f"{name} cannot be used as given", first["msg"], f"correct the value of {name}"
        if first["type"] == "missing":
            what, why = f"{name} is missing", "a run needs model, data, target and latency"
            fix = f"add it to the file; {keys}" if path else f"add {name}; `planish fit --help` says what it takes"
        elif first["type"] == "extra_forbidden":
            what, why, fix = (
                f"a recipe has no key '{key}'",
                "planish does not know it",
                f"{nearest(key, Recipe.model_fields)}{keys}",
            )
        raise UsageError(what, where=where, why=why, fix=fix, code="RECIPE_FIELD") from error
