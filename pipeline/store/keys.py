"""The key of a stage: a hash of all that its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

STAGE_VERSION = 11  # raise it when the code of a stage changes what it makes


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """SHA-256 of a stage's name, its inputs and the version of the code that makes it.

    Numbers in the name say which candidate or plan of a run it is, which makes no difference to what it makes.
    """
    kind = "/".join("*" if part.isdigit() else part for part in name.split("/"))
    return content_key({"stage": kind, "version": STAGE_VERSION, **inputs})


def content_key(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
