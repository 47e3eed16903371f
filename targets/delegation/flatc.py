"""FlatBuffers as plain data, by the `flatc` and the schemas that the executorch package brings along."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def decoded(content: bytes, schema: str) -> dict[str, Any]:
    """A FlatBuffer with all defaults written out; enumerations are their names.

    Args:
        schema: path of the .fbs file inside the executorch package.

    Raises:
        ValueError: it is no FlatBuffer of that schema.
    """
    package = Path(next(iter(importlib.util.find_spec("executorch").submodule_search_locations)))
    with tempfile.TemporaryDirectory(prefix="planish-") as directory:
        source = Path(directory) / "content.bin"
        source.write_bytes(content)
        flags = ["--json", "--strict-json", "--defaults-json", "--raw-binary"]
        done = subprocess.run(
            [package / "data/bin/flatc", *flags, "-o", directory, package / schema, "--", source],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ValueError((done.stderr or done.stdout).strip().splitlines()[-1])
        text = source.with_suffix(".json").read_text()
    return json.loads(re.sub(r"(: -?)inf\b", r"\1Infinity", text))  # flatc's spelling is not JSON's, nor Python's
