"""The events of a run, typed and versioned: enough to drive another user interface.

Two streams of newline-delimited JSON, one object a line, in the order things happened:

- what `--json` prints on stdout (`STREAM`): stages under way, probes as they are judged, the result or the error last;
- `events.ndjson` of a run directory (`LOG`): what the run made, took from the store, dropped and waited for. A run that
  goes on appends to it.

Every event names its kind in `event` and says when, with the time zone, in `time`. The first one of what `--json`
prints, and each `begin` of a log, carry `schema`, the version of this description. It rises when something known
changes; kinds and fields may be added without, so a reader skips those that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter
from pydantic_core import to_jsonable_python

from reports.matrix import MatrixRecord
from reports.records import CandidateRecord, GoalRecord, OutcomeRecord, RunRecord, TargetRecord, Verdict
from reports.schema import Count, Record

EVENTS_VERSION = 1
Seconds = Annotated[float, Field(ge=0)]


class Event(Record):
    """What every event has."""

    event: str
    time: AwareDatetime
    version: Annotated[int | None, Field(alias="schema", description="Version of the events.")] = None


class ErrorFields(Record):
    """The fields of `PlanishError.to_json()`."""

    code: str
    exit_code: int
    what: str
    where: str
    why: str
    fix: str


class BeginEvent(Event):
    """What a fit is asked for; it comes once the original was measured, as a limit may be a share of it."""

    event: Literal["begin"]
    text: str
    model: str
    targets: tuple[TargetRecord, ...]
    goal: GoalRecord


class StageEvent(Event):
    """Progress: `stage` is the path of stages under way, the outermost first; `text` says how far the innermost is."""

    event: Literal["stage"]
    stage: Annotated[tuple[str, ...], Field(min_length=1)]
    state: Literal["started", "update", "done", "failed"]
    seconds: Seconds
    text: str = ""


class ProbeEvent(Event):
    """A candidate was judged; index 0 is the original. Its layers are left to the report."""

    event: Literal["probe"]
    candidate: CandidateRecord


class NoteEvent(Event):
    """Something that a person may want to know."""

    event: Literal["note"]
    text: str


class WarningEvent(Event):
    """Something that a person must know. `resume` is the command that goes on with an interrupted run."""

    event: Literal["warning"]
    text: str
    resume: str | None = None


class ResultEvent(Event):
    """The last event of a command that did what it was asked for; every command has fields of its own beside these.

    A fit gives its `directory`, the path of its `report`, and the record in it as `run`, or with `--per-target` as
    `matrix`. `planish status` gives the state of a `run`.
    """

    model_config = ConfigDict(extra="allow")

    event: Literal["result"]
    directory: str | None = None
    report: str | None = None
    run: Annotated[RunRecord | dict[str, Any] | None, Field(union_mode="left_to_right")] = None
    matrix: MatrixRecord | None = None


class ErrorEvent(ErrorFields, Event):
    """The last event of a command that failed."""

    event: Literal["error"]


class LogBeginEvent(Event):
    """The run began or went on, with this command."""

    event: Literal["begin"]
    command: str


class LogStageEvent(Event):
    """A stage's result is there. `cached` says where it came from, False where it was made now, in `seconds`."""

    event: Literal["stage"]
    stage: str
    cached: Literal[False, "run", "store"]
    seconds: Seconds | None = None


class LogRecipeEvent(Event):
    """The run goes on with another recipe; both as they stand in `recipe.toml`."""

    event: Literal["recipe"]
    before: str
    after: str


class LogWaitingEvent(Event):
    """Another run is making this stage; its result will be taken."""

    event: Literal["waiting"]
    stage: str


class LogDroppedEvent(Event):
    """A kept result was damaged and is made again; `source` is where it lay."""

    event: Literal["dropped"]
    stage: str
    source: Literal["run", "store"]
    reason: str


class LogFailedEvent(Event):
    """A stage ended in an error; one that is not planish's own is told as Python tells it."""

    event: Literal["failed"]
    stage: str
    error: ErrorFields | str


class LogCandidateEvent(Event):
    """A candidate was judged, index 0 is the original: what was measured of it against each limit, and the verdict."""

    event: Literal["candidate"]
    index: Count
    verdict: Literal["met", "above", "undecided"]
    outcomes: tuple[OutcomeRecord, ...]


class LogWarningEvent(Event):
    """Something that a person must know."""

    event: Literal["warning"]
    text: str
    where: str
    why: str


class LogStoppedEvent(Event):
    """The run ended before its end: `planish fit --resume` goes on."""

    event: Literal["stopped"]
    state: Literal["interrupted", "failed"]
    error: ErrorFields | str


class LogEndEvent(Event):
    """The run is done; its record is `report.json` beside the log."""

    event: Literal["end"]
    verdict: Verdict
    exit_code: int


StreamEvent = Annotated[
    BeginEvent | StageEvent | ProbeEvent | NoteEvent | WarningEvent | ResultEvent | ErrorEvent,
    Field(discriminator="event"),
]
LogEvent = Annotated[
    LogBeginEvent
    | LogStageEvent
    | LogWaitingEvent
    | LogDroppedEvent
    | LogRecipeEvent
    | LogFailedEvent
    | LogCandidateEvent
    | LogWarningEvent
    | LogStoppedEvent
    | LogEndEvent,
    Field(discriminator="event"),
]
STREAM: TypeAdapter[StreamEvent] = TypeAdapter(StreamEvent)
LOG: TypeAdapter[LogEvent] = TypeAdapter(LogEvent)


def stream_event(kind: str, fields: Mapping[str, object], *, first: bool) -> dict[str, Any]:
    """An event of the stream as it is printed; a field that is NaN or infinite is null, as JSON lacks both.

    Args:
        kind: one of the stream's; anything else, or a field that it does not have, is a `pydantic.ValidationError`.
        first: of its stream: it carries the version.
    """
    given = {"event": kind, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
    given |= {"schema": EVENTS_VERSION} if first else {}
    given |= to_jsonable_python(dict(fields), serialize_unknown=True, inf_nan_mode="null")
    STREAM.validate_python(given)
    return given


def events_schema(which: Literal["stream", "log"] = "stream") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one event of a stream."""
    adapter, title = {
        "stream": (STREAM, "An event that planish prints with --json"),
        "log": (LOG, "A line of events.ndjson in a run directory of planish"),
    }[which]
    described = adapter.json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{title}, version {EVENTS_VERSION}",
        **described,
    }
