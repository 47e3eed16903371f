"""planish's main job. `fit` and `resume` run it, a `Recipe` says what is asked for, a `Listener` hears of it.

The names are imported when they are used: `planish --help` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import Listener, fit, resume
    from pipeline.recipe import Recipe

__all__ = ["Listener", "Recipe", "fit", "resume"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    return getattr(import_module("pipeline.recipe" if name == "Recipe" else "pipeline.api"), name)
