"""What every record of a run is made of: frozen values that refuse unknown fields, numbers with their limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from targets.errors import UsageError

SCHEMA_VERSION = 3

Milliseconds = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
# A broken artifact answers NaN; JSON has no such number, so a deviation that is not finite is recorded as absent.
Deviation = Annotated[
    float | None,
    BeforeValidator(lambda value: None if isinstance(value, float) and not math.isfinite(value) else value),
]


class Record(BaseModel):
    """A frozen value with exactly the fields it declares; NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VersionedRecord(Record):
    """A record that is a file of its own and says which schema it follows.

    Raises:
        UsageError: `REPORT_SCHEMA` when the data was written under another schema version.
    """

    schema_version: int = SCHEMA_VERSION

    @model_validator(mode="before")
    @classmethod
    def _same_schema(cls, data: Any) -> Any:
        found = data.get("schema_version", SCHEMA_VERSION) if isinstance(data, dict) else SCHEMA_VERSION
        if found != SCHEMA_VERSION:
            raise UsageError(
                f"This record follows schema version {found}; this planish reads version {SCHEMA_VERSION}.",
                where="schema_version",
                why="The record was written by another version of planish.",
                fix="Read it with the planish that wrote it (planish_version says which), or run the fit again.",
                code="REPORT_SCHEMA",
            )
        return data

    def to_json(self) -> str:
        """The record as indented JSON with a final line break."""
        return self.model_dump_json(indent=2) + "\n"


Read = TypeVar("Read", bound=VersionedRecord)


def read_record(path: Path, kind: TypeAdapter[Read], name: str) -> Read:
    """Read a record's file; `name` is what it should be.

    Raises:
        UsageError: `REPORT_UNREADABLE` (missing or something else), `REPORT_SCHEMA` (another schema version).
    """
    fix = "Give the report.json of a finished run, or run `planish fit` again with --resume."
    try:
        return kind.validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"The {name} cannot be read.",
            where=str(path),
            why=error.strerror or str(error),
            fix=fix,
            code="REPORT_UNREADABLE",
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file as a whole"
        raise UsageError(
            f"The file is not a {name}.",
            where=f"{path}, {field}",
            why=first["msg"],
            fix=fix,
            code="REPORT_UNREADABLE",
        ) from error
