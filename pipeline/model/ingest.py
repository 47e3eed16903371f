"""Reads a user's model, however it is given, into the canonical `Network`.

`file.py:callable` and `package.module:callable` name a function (or class) that returns an `nn.Module`, or a pair
`(nn.Module, example input)`; `model.pt2` is a program saved by `torch.export.save`.
"""

from __future__ import annotations

import io
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from calibration.callables import load_callable
from pipeline.model.batch import for_any_batch
from pipeline.model.lift import lift
from pipeline.model.network import Network
from targets.errors import UsageError, nearest

EXAMPLE_BATCH = 2  # torch.export specialises on 0 and 1


def ingest(source: str, *, weights: Path | None = None, example: Callable[[], Tensor] | None = None) -> Network:
    """Load `source` as a `Network`.

    Args:
        source: `file.py:callable`, `package.module:callable` or `model.pt2`.
        weights: `.safetensors` or a `torch.save`d state dict (read with `weights_only=True`; a checkpoint's
            `state_dict` entry and a `module.` prefix are understood).
        example: gives samples [N, ...] float32 that show the input's shape; not called for a `.pt2`, nor when the
            callable returns one.

    Raises:
        UsageError: the model cannot be found, built, loaded or exported; names the user's line.
    """
    if source.endswith(".pt2"):
        return from_program(load_program(Path(source)), weights)
    if ":" not in source:
        raise (
            _missing(source)
            if Path(source).suffix and not Path(source).exists()
            else UsageError(
                "the model is not named in a form planish knows",
                where=source,
                code="MODEL_FORM",
                why="expected file.py:callable, package.module:callable or model.pt2",
                fix=f"name the function that builds the network: {source}:build",
            )
        )
    built = load_callable(source, "model")()
    model, own_example = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise UsageError(
            "the model callable did not return a network",
            where=source,
            why=f"it returned {type(model).__name__}, not torch.nn.Module",
            code="MODEL_TYPE",
            fix="return the nn.Module, or the pair (nn.Module, example input tensor)",
        )
    if weights is not None:
        load_weights(model, weights)
    if own_example is None and example is not None:
        own_example = example()
    if isinstance(own_example, tuple) and len(own_example) == 1:
        own_example = own_example[0]
    if not isinstance(own_example, Tensor):
        raise UsageError(
            "the input shape of the model is not known",
            where=source,
            code="MODEL_EXAMPLE",
            why="neither data nor one example input tensor was given",
            fix="give --data, or let the callable return (model, example_input)",
        )
    return from_program(export_program(model.eval(), (two_samples(own_example),), source), None)


def from_program(program: torch.export.ExportedProgram, weights: Path | None = None) -> Network:
    """Lift an exported program to a `Network`, replacing its weights when a file is given."""
    if weights is not None:
        module = program.module(check_guards=False)
        load_weights(module, weights)
        program = export_program(module, _example_of(program))
    _example_of(program)
    program = for_any_batch(program)
    example = _example_of(program)
    graph, sources = lift(program)
    network = Network(graph, example, (), sources)
    _require_same(program, network)
    return network


def require_one_tensor(network: Network, source: str) -> None:
    """Raise UsageError MODEL_SIGNATURE unless the network maps one tensor to one tensor."""
    with torch.no_grad():
        output = network(*network.example)
    if len(network.example) != 1 or not isinstance(output, Tensor):
        raise UsageError(
            "planish fits networks of one input tensor and one output tensor",
            where=source,
            why=f"this one takes {len(network.example)} inputs and returns {type(output).__name__}",
            fix="wrap it in a module whose forward takes one tensor and returns one",
            code="MODEL_SIGNATURE",
        )


def _require_same(program: torch.export.ExportedProgram, network: Network) -> None:
    """Lifting must not change what the network computes; this catches what it does not understand."""
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(program.module(check_guards=False)(*network.example))
        found = torch.utils._pytree.tree_leaves(network(*network.example))
    if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(expected, found, strict=True)):
        raise UsageError(
            "the network could not be read faithfully",
            where="its exported program",
            why="rebuilt from layers it gives other outputs",
            fix="rewrite in-place operations on views in forward, and report this network",
            code="MODEL_LIFT",
        )


def _missing(path: str) -> UsageError:
    folder = Path(path).parent if Path(path).parent.is_dir() else Path(".")
    names = [entry.name for entry in folder.iterdir() if entry.suffix == Path(path).suffix]
    return UsageError(
        "the model's file does not exist",
        where=path,
        code="MODEL_MISSING",
        why=f"no such file in {folder.resolve().name}/",
        fix=f"{nearest(Path(path).name, names)}check the path",
    )


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into `model`, strictly.

    Raises:
        UsageError: the file is missing, truncated or not a state dict, or its names or shapes do not fit.
    """
    if not path.is_file():
        raise UsageError(
            "the weights file does not exist",
            where=str(path),
            why="no such file",
            code="WEIGHTS_MISSING",
            fix="check the path given to --weights",
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle each have their own
        raise UsageError(
            "the weights file cannot be read",
            where=str(path),
            code="WEIGHTS_BROKEN",
            why=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'truncated'}",
            fix="copy the file again, or save the state dict as .safetensors",
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(
            "the weights file holds no state dict",
            where=str(path),
            code="WEIGHTS_FORM",
            why="expected a mapping of names to tensors",
            fix="save `model.state_dict()`",
        )
    state = {name.removeprefix("module."): value for name, value in state.items()}
    mine = model.state_dict()
    missing = [n for n in mine if n not in state and not n.endswith("num_batches_tracked")]
    extra = [n for n in state if n not in mine]
    shapes = [
        f"{n}: file {tuple(state[n].shape)}, model {tuple(mine[n].shape)}"
        for n in mine
        if n in state and state[n].shape != mine[n].shape
    ]
    if missing or extra or shapes:
        parts = [
            f"{len(rows)} {word} ({rows[0]})"
            for word, rows in (("missing", missing), ("not in the model", extra), ("of another shape", shapes))
            if rows
        ]
        raise UsageError(
            "the weights do not fit the model",
            where=str(path),
            why="; ".join(parts),
            code="WEIGHTS_FIT",
            fix="give the weights of this architecture, or the callable that builds theirs",
        )
    model.load_state_dict(state, strict=False)


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Read a `.pt2` file."""
    if not path.is_file():
        raise _missing(str(path))
    try:
        with _quiet():
            return torch.export.load(str(path))
    except Exception as error:  # a broken archive fails in many ways
        raise UsageError(
            "the exported program cannot be read",
            where=str(path),
            code="MODEL_BROKEN",
            why=f"{type(error).__name__}: {(str(error).splitlines() or ['truncated file'])[0]}",
            fix="save it again with torch.export.save",
        ) from error


def export_program(
    model: nn.Module, example: tuple[Tensor, ...], source: str = "the network"
) -> torch.export.ExportedProgram:
    """`torch.export` in eval mode with a dynamic batch dimension; errors name the user's source line."""
    dynamic = tuple({0: torch.export.Dim.AUTO} for _ in example)
    try:
        with torch.no_grad():
            model(*example)
    except Exception as error:
        shape = " and ".join(str(list(x.shape)) for x in example)
        raise UsageError(
            f"the network does not run on an input of shape {shape}",
            where=user_frame(error) or source,
            why=(str(error).splitlines() or [type(error).__name__])[0],
            code="MODEL_INPUT",
            fix="give data of the shape the network was trained on",
        ) from error
    try:
        with _quiet():
            return torch.export.export(model, example, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        text = str(error)
        data_dependent = "data-dependent" in text or "DataDependent" in type(error).__name__
        raise UsageError(
            "the network has control flow that depends on the data"
            if data_dependent
            else "the network cannot be exported",
            where=user_frame(error) or source,
            code="MODEL_CONTROL_FLOW" if data_dependent else "MODEL_EXPORT",
            why="this line decides in Python by a value the network computed; an exported network has no Python"
            if data_dependent
            else (text.splitlines() or [type(error).__name__])[0],
            fix="replace the branch by torch.where, or move it out of forward"
            if data_dependent
            else "make `torch.export.export(model, example)` pass; the line above is where it stopped",
        ) from error


def two_samples(example: Tensor) -> Tensor:
    """The example at batch 2: the first two samples, or the only one twice."""
    return (example if len(example) >= EXAMPLE_BATCH else example.repeat_interleave(EXAMPLE_BATCH, 0))[:EXAMPLE_BATCH]


def _example_of(program: torch.export.ExportedProgram) -> tuple[Tensor, ...]:
    if program.example_inputs is None:
        raise UsageError(
            "the exported program carries no example input",
            where="model.pt2",
            code="MODEL_EXAMPLE",
            why="it was saved without one",
            fix="save it again with torch.export.save from this PyTorch",
        )
    return tuple(program.example_inputs[0])


def user_frame(error: BaseException) -> str:
    """`file:line in function` of the innermost frame outside torch, planish and Python itself; empty when none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    here = Path(__file__).resolve().parents[1]
    libraries = (os.sep + "site-packages" + os.sep, str(here), os.path.dirname(os.__file__), "<frozen")
    found = ""
    frames: TracebackType | None = error.__traceback__
    for frame in traceback.extract_tb(frames):
        if not any(part in frame.filename for part in libraries):
            found = f"{frame.filename}:{frame.lineno} in {frame.name}"
    return found


@contextmanager
def _quiet():
    """torch.export prints the failing graph and logs warnings; the error message already says what matters."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
