"""Loads and calls what the user named as `file.py:callable` or `package.module:callable`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from targets.errors import UsageError, nearest

Subject = Literal["data", "model", "metric"]
TAKES = {"data": "no arguments", "model": "no arguments", "metric": "outputs and labels"}
RETURNS = {"data": "the samples", "model": "the network", "metric": "a number"}


@dataclass(frozen=True)
class UserCallable:
    """A callable of the user's and where it comes from, so that its failures can name the user's own line."""

    reference: str
    function: Callable[..., Any]
    file: str | None
    subject: Subject

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function; `UsageError` DATA_CALLABLE, MODEL_CALLABLE or METRIC_CALLABLE if it raises."""
        try:
            return self.function(*arguments)
        except Exception as error:  # anything may go wrong in user code
            raise self.failure(error) from error

    def failure(self, error: BaseException) -> UsageError:
        """The error value for `error`, raised by the callable or by what it returned."""
        return _failure(self.reference, self.file, error, self.subject)


def _failure(reference: str, file: str | None, error: BaseException, subject: Subject) -> UsageError:
    """`where` is the deepest frame inside `file`."""
    return UsageError(
        f"the {subject} callable '{reference}' raised {type(error).__name__}",
        where=user_line(error, file) or reference,
        why=str(error) or type(error).__name__,
        fix=f"run the callable on its own in Python, and correct it until it returns {RETURNS[subject]}",
        code=f"{subject.upper()}_CALLABLE",
    )


def user_line(error: BaseException, file: str | None) -> str | None:
    """`path:line` of the deepest traceback frame in `file`, or of the deepest frame at all when none is."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    in_file = [frame for frame in frames if file and os.path.realpath(frame.filename) == os.path.realpath(file)]
    deepest = (in_file or list(frames))[-1:]
    return f"{deepest[0].filename}:{deepest[0].lineno} in {deepest[0].name}" if deepest else None


def load_callable(reference: str, subject: Subject) -> UserCallable:
    """Imports `file.py:name` or `package.module:name`; `subject` says what it stands for in messages and codes.

    Raises `UsageError`: DATA_MISSING (MODEL_MISSING ...) when the file or module does not exist, DATA_CALLABLE
    (MODEL_CALLABLE ...) when importing it raises or it has no such callable.
    """
    location, _, name = reference.rpartition(":")
    if location.endswith(".py"):
        file = Path(location)
        if not file.is_file():
            raise UsageError(
                f"the {subject} file '{location}' does not exist",
                where=reference,
                why=f"nothing is at {file.absolute()}",
                fix=_other_files(file),
                code=f"{subject.upper()}_MISSING",
            )
        module = _run_file(reference, file, subject)
    else:
        module = _import_module(reference, location, subject)
    function = getattr(module, name, None)
    if not callable(function):
        defined = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(
            f"'{location}' has no callable named '{name}'",
            where=reference,
            why=f"it defines {', '.join(sorted(defined)) or 'no callable'}",
            fix=f"{nearest(name, defined)}name a function that takes {TAKES[subject]} and returns {RETURNS[subject]}",
            code=f"{subject.upper()}_CALLABLE",
        )
    return UserCallable(reference, function, getattr(module, "__file__", None), subject)


def _run_file(reference: str, file: Path, subject: Subject) -> ModuleType:
    path = str(file.resolve())
    # A name of its own per path: two files called data.py must not shadow each other in sys.modules.
    name = f"_planish_{file.stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.resolve().parent))  # as `python file.py` does, so that its neighbours import
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # anything may go wrong in user code
        del sys.modules[name]
        raise _failure(reference, path, error, subject) from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module


def _import_module(reference: str, name: str, subject: Subject) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _failure(
                reference, None, error, subject
            ) from error  # the module is there, one that it imports is not
        raise UsageError(
            f"the Python module '{name}' was not found",
            where=reference,
            why=str(error),
            fix="install it, run from the folder that holds it, or name a file: path/to/file.py:callable",
            code=f"{subject.upper()}_MISSING",
        ) from error
    except (Exception, SystemExit) as error:  # anything may go wrong in user code
        raise _failure(reference, None, error, subject) from error


def _other_files(file: Path) -> str:
    siblings = [path.name for path in file.parent.glob("*.py")] if file.parent.is_dir() else []
    return f"{nearest(file.name, siblings)}check the path; it is relative to the folder you run in"
