"""One object that speaks for a run: talk to stderr, data to stdout.

Three modes. `rich`: on a terminal, a live table of probes and one live line for the stage at work. `plain`: one line
an event, for logs. `json`: newline-delimited events on stdout, the last of them the result (or the error).
The reader may go away at any time: a closed pipe silences its stream and the run goes on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TextIO

import rich.console
from rich.live import Live
from rich.text import Text

from reports import quantities
from reports.events import stream_event
from reports.matrix import MatrixRecord, matrix_summary
from reports.records import CandidateRecord, GoalRecord, RunRecord, TargetRecord
from reports.streams import Stream, printable
from reports.tables import goal_line, probe_line, probe_table, summary
from targets.errors import PlanishError

Mode = Literal["rich", "plain", "json"]

# Least time between two updates of one stage.
_UPDATE_SECONDS = {"rich": 0.2, "plain": 5.0, "json": 1.0}
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def suitable_mode(stderr: TextIO, environment: Mapping[str, str] = os.environ) -> Mode:
    """`rich` on a terminal that can redraw a line, `plain` otherwise."""
    return "rich" if stderr.isatty() and environment.get("TERM", "dumb") != "dumb" else "plain"


class Stage:
    """A piece of work that takes time. `update` says how far it is; updates that come too fast are dropped."""

    def __init__(self, console: Console, name: str) -> None:
        self.name, self.text = name, ""
        self._console, self._started, self._spoke = console, time.monotonic(), float("-inf")

    @property
    def seconds(self) -> float:
        """Time since the stage began."""
        return time.monotonic() - self._started

    def update(self, text: str) -> None:
        self.text = printable(text)
        if time.monotonic() - self._spoke >= _UPDATE_SECONDS[self._console.mode]:
            self._spoke = time.monotonic()
            self._console._stage_event(self, "update")


class Console:
    """Speaks events, stages, probes, and at the end one result or one error.

    Use it as a context manager: leaving it gives the terminal back, whatever happened.

    Args:
        mode: see the module; `suitable_mode` chooses between `rich` and `plain`.
        quiet: only warnings, errors and the result.
        stdout, stderr: default to the process's own.
    """

    def __init__(
        self, mode: Mode = "plain", quiet: bool = False, *, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.mode, self.quiet = mode, quiet
        self._out, self._err = Stream(stdout or sys.stdout), Stream(stderr or sys.stderr)
        settings = {"markup": False, "highlight": False, "emoji": False}
        self._talk = rich.console.Console(file=self._err, no_color=None if mode == "rich" else True, **settings)
        self._data = rich.console.Console(file=self._out, **settings)
        self._goal: GoalRecord | None = None
        self._probes: list[CandidateRecord] = []
        self._stages: list[Stage] = []
        self._live: Live | None = None
        self._silent = True  # no event was printed yet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the live display; the table of probes stays on the screen. Speaking again starts a new one."""
        if self._live is not None:
            self._live.transient = not self._probes
            self._live.stop()
            self._live = None
            if self._probes:
                self._talk.print()

    @property
    def width(self) -> int:
        """Columns for what goes to stdout."""
        return self._data.width

    def begin(self, model: str, targets: Sequence[TargetRecord], goal: GoalRecord) -> None:
        """Say what is asked for; from here on probes show what is measured against each limit of the goal."""
        self._goal = goal
        self.event("begin", text=goal_line(targets, goal), model=model, targets=targets, goal=goal)

    def event(self, kind: Literal["begin", "note", "warning"], *, text: str, **fields: object) -> None:
        """Something happened: a `note`, or a `warning`, which is shown even when quiet. People read its `text`.

        The kinds and their fields are those of `reports.events`.
        """
        if self.quiet and kind != "warning":
            return
        if self.mode == "json":
            self._emit(kind, {"text": text, **fields})
            return
        label = "warning: " if kind == "warning" else ""
        self._say(Text.assemble((label, "yellow"), printable(text)))

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """A stage that lasts as long as the `with` block; stages may nest."""
        stage = Stage(self, printable(name))
        self._stages.append(stage)
        self._stage_event(stage, "started")
        state = "failed"
        try:
            yield stage
            state = "done"
        finally:
            self._stage_event(stage, state)
            self._stages.remove(stage)

    def probe(self, candidate: CandidateRecord) -> None:
        """A candidate was judged: one more row of the table."""
        self._probes.append(candidate)
        if self.quiet:
            return
        if self.mode == "json":
            self._emit("probe", {"candidate": candidate.model_dump(mode="json", exclude={"layers"})})
        elif self.mode == "rich":
            self._refresh()
        else:
            self._say(Text(probe_line(candidate, self._goal)))

    def summary(self, run: RunRecord, directory: Path) -> None:
        """The end of a run, on stdout."""
        self.result(
            summary(run, directory, self._data.width), directory=directory, report=directory / "report.json", run=run
        )

    def matrix_summary(self, record: MatrixRecord, directory: Path) -> None:
        """The end of a fit with one run a target, on stdout."""
        self.result(
            matrix_summary(record, directory, self._data.width),
            directory=directory,
            report=directory / "report.json",
            matrix=record,
        )

    def result(self, human: Sequence[rich.console.RenderableType], **fields: object) -> None:
        """What the command was asked for, on stdout: `human` as text, or `fields` as the last JSON event."""
        self.close()
        if self.mode == "json":
            self._emit("result", fields)
            return
        for part in human:
            self._data.print(part, soft_wrap=isinstance(part, Text) and (bool(part.no_wrap) or not self._out.isatty()))

    def error(self, error: PlanishError) -> None:
        """The four lines of an error, on stderr; in JSON the last event."""
        self.close()
        if self.mode == "json":
            self._emit("error", error.to_json())
            return
        first, *rest = str(error).split("\n")
        label, _, what = first.partition(": ")
        self._talk.print(Text.assemble((f"{label}: ", "bold red"), (printable(what), "bold")), soft_wrap=True)
        for line in rest:
            name, _, said = line.partition(":")
            self._talk.print(
                Text.assemble((f"{name}:", "dim"), said[: len(said) - len(said.lstrip())], printable(said)),
                soft_wrap=True,
            )

    def _stage_event(self, stage: Stage, state: Literal["started", "update", "done", "failed"]) -> None:
        if self.quiet:
            return
        path = [each.name for each in self._stages]
        took = quantities.duration(stage.seconds)
        if self.mode == "json":
            self._emit(
                "stage",
                {
                    "stage": path,
                    "state": state,
                    "seconds": round(stage.seconds, 3),
                    **({"text": stage.text} if stage.text else {}),
                },
            )
        elif self.mode == "rich":
            # Stages of the set-up leave a line; once probes come, the table is the record and stages pass by.
            if state in ("done", "failed") and not self._probes and len(path) == 1:
                sign = Text("✓ ", "green") if state == "done" else Text("✕ ", "red")
                said = f"  {stage.text}" if stage.text else ""
                self._say(Text.assemble(sign, stage.name, (f"  {took}", "dim"), said))
            self._refresh()
        else:
            said = {
                "started": "",
                "update": f": {stage.text}",
                "done": f": done in {took}",
                "failed": f": failed after {took}",
            }[state]
            self._say(Text(f"{' > '.join(path)}{said}"))

    def _say(self, line: Text) -> None:
        if self.mode == "plain":
            line = Text.assemble((f"{datetime.now():%H:%M:%S} ", "dim"), line)
        self._talk.print(line, soft_wrap=self.mode == "plain")

    def _emit(self, kind: str, fields: Mapping[str, object]) -> None:
        self._out.write(json.dumps(stream_event(kind, fields, first=self._silent), allow_nan=False) + "\n")
        self._out.flush()
        self._silent = False

    def _refresh(self) -> None:
        if self._live is None:
            # Two frames a second: a display must not disturb a latency measured beside it.
            self._live = Live(
                get_renderable=self._view, console=self._talk, refresh_per_second=2, redirect_stdout=False
            )
            self._live.start()
        self._live.refresh()

    def _view(self) -> rich.console.Group:
        parts: list[rich.console.RenderableType] = []
        if self._probes:
            # The live region cannot scroll: while it lives, the oldest rows wait outside.
            room = max(1, self._talk.height - 4)
            earlier = max(0, len(self._probes) - room) if self._stages else 0
            parts.append(probe_table(self._probes, self._goal, self._talk.width, earlier))
        if self._stages:
            stage = self._stages[-1]
            frame = _FRAMES[int(stage.seconds * 2) % len(_FRAMES)]
            path = " › ".join(each.name for each in self._stages)
            elapsed = f"{stage.seconds:.0f} s" if stage.seconds < 59.5 else quantities.duration(stage.seconds)
            line = Text.assemble(
                (f"{frame} ", "cyan"), path, (f"  {elapsed}", "dim"), f"  {stage.text}" if stage.text else ""
            )
            line.no_wrap, line.overflow = True, "ellipsis"
            parts.append(line)
        return rich.console.Group(*parts)
