"""What the user asks for: one typed, strict value, read from `planish.toml` or from the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from pipeline.export.formats import format_named
from pipeline.quantities import parse_drop, parse_duration, parse_latency, parse_size
from reports.records import Quantity, Unit
from targets.errors import UsageError, nearest

Method = Literal["auto", "easier", "layermerge", "depth-dp", "layercollapse", "lorita", "svd"]
OPTIONS = {"model": "MODEL", "formats": "--format"}  # where the command line names a key otherwise


@dataclass(frozen=True)
class Limit:
    """One thing that is asked for: a number of its unit, or a share of what the original takes.

    Attributes:
        target: the profile that it is measured on; None for what does not depend on one.
        text: as the user wrote it.
        most: milliseconds or bytes.
        share: of the original's.
    """

    quantity: Quantity
    target: str | None
    text: str
    most: float | None
    share: float | None

    @property
    def unit(self) -> Unit:
        return "ms" if self.quantity in ("latency", "p90") else "B"


class Recipe(BaseModel):
    """A whole run of `planish fit`; the fields are the keys of `planish.toml`.

    Attributes:
        model: `file.py:callable`, `package.module:callable` or `model.pt2`.
        weights: state dict to load into it, `.safetensors` or `.pt`.
        data: calibration samples, `file.py:callable`, a folder of class folders, or an `.npz`.
        test: samples that quality is judged on; a fifth of `data` is held out where none are given.
        mean, std: per-channel normalisation of the samples, after scaling to [0, 1].
        target: name of a target profile, or a list of several: one artifact for all of them.
        latency: `12ms`, or `60%` of what the original takes there; of several targets a list, or one for each of them.
        p90: the same for the 90th percentile.
        size: `3MB`, or `60%` of the original's; of the artifact in the first format.
        memory: `20MB` or a share as well: how much the process that runs it grows, on this machine's runtime.
        per_target: instead of one artifact that meets everything, one for each target.
        max_drop: quality that may be lost, `0.5pt`, or `2%` of what the original has; None only reports it.
        metric: `file.py:callable` or `package.module:callable` that judges outputs [N, ...] against labels [N, ...] and
            returns a number; None judges class scores by top-1.
        lower_is_better: the direction of `metric`.
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
        augment: that training flips images and shows parts of them; off for inputs that this changes.
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
    target: str | list[str]
    latency: str | list[str] | None = None
    p90: str | list[str] | None = None
    size: str | None = None
    memory: str | None = None
    per_target: bool = False
    max_drop: str | None = None
    metric: str | None = None
    lower_is_better: bool = False
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

    @field_validator("target")
    @classmethod
    def _target(cls, value: str | list[str]) -> str | list[str]:
        names = as_list(value)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(
                f"the target {twice[0]} is named twice",
                where="--target",
                why="every target has one latency",
                fix="name each target once; the stricter latency is the one that counts",
                code="GOALS_MISMATCHED",
            )
        return _plain(names)

    @field_validator("latency", "p90")
    @classmethod
    def _latency(cls, value: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        if value is None:
            return None
        for text in as_list(value):
            parse_latency(text, info.field_name)
        return _plain(as_list(value))

    @field_validator("size", "memory")
    @classmethod
    def _bytes(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            parse_size(value, info.field_name)
        return value

    @field_validator("max_drop")
    @classmethod
    def _max_drop(cls, value: str | None) -> str | None:
        if value is not None:
            parse_drop(value)
        return value

    @model_validator(mode="after")
    def _goals(self) -> Recipe:
        """Every latency belongs to a target, and something is asked for."""
        for name in ("latency", "p90"):
            given = as_list(getattr(self, name))
            if len(given) > 1 and len(given) != len(self.targets):
                raise UsageError(
                    f"there are {len(given)} values of --{name} for {len(self.targets)} targets",
                    where=f"--{name}",
                    why="they belong together in their order",
                    fix=f"give one --{name} after each --target, or one for all of them",
                    code="GOALS_MISMATCHED",
                )
        if not any((self.latency, self.p90, self.size, self.memory)):
            raise UsageError(
                "nothing is asked for",
                where="--latency",
                why="a run needs a limit to meet: --latency, --p90, --size or --memory",
                fix="say what the artifact may take: --latency 12ms, or --latency 60% of what the original takes",
                code="GOAL_MISSING",
            )
        return self

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
    def targets(self) -> tuple[str, ...]:
        """Names of the target profiles."""
        return tuple(as_list(self.target))

    @property
    def allowed_drop(self) -> tuple[float | None, float | None] | None:
        """`max_drop` in the metric's unit, or as a share of the original's; None where it is not asked."""
        return None if self.max_drop is None else parse_drop(self.max_drop)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Everything that is asked for."""
        found = []
        for quantity in ("latency", "p90"):
            given = as_list(getattr(self, quantity))
            for target, text in zip(self.targets, given * len(self.targets) if len(given) == 1 else given):
                found.append(Limit(quantity, target, text, *parse_latency(text, quantity)))
        for quantity in ("size", "memory"):
            if text := getattr(self, quantity):
                found.append(Limit(quantity, None, text, *parse_size(text, quantity)))
        return tuple(found)

    def for_target(self, target: str) -> Recipe:
        """What is asked for of one of its targets alone."""
        place = self.targets.index(target)

        def own(given: str | list[str] | None) -> str | None:
            return None if given is None else as_list(given)[place if len(as_list(given)) > 1 else 0]

        fields = {"target": target, "latency": own(self.latency), "p90": own(self.p90), "per_target": False}
        return self.model_copy(update=fields)

    def to_toml(self) -> str:
        """The recipe as a `planish.toml`, every default spelled out; None is left out, TOML has no such value."""
        rows = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in self.model_dump().items()
            if value is not None
        ]
        return "\n".join(rows) + "\n"


def as_list(given: str | Sequence[str] | None) -> list[str]:
    """Of one value, several, or none."""
    return [] if given is None else [given] if isinstance(given, str) else list(given)


def _plain(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


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


def differences(before: Recipe, after: Recipe) -> list[str]:
    """`latency: "12ms" -> "10ms"` for every key in which two recipes differ."""
    old, new = before.model_dump(), after.model_dump()
    return [f"{key}: {_written(old[key])} -> {_written(new[key])}" for key in old if old[key] != new[key]]


def _written(value: object) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)


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
