"""Two runs or two artifacts beside each other, as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import JsonValue
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports import limits, quantities
from reports.artifacts_compared import ArtifactsComparedRecord, BorderRecord
from reports.measured import MeasurementRecord, QualityRecord
from reports.records import EditRecord, LimitRecord, OutcomeRecord
from reports.runs_compared import ChangedRecord, GoalPairRecord, LatencyPairRecord, RunsComparedRecord, SideRecord
from reports.streams import printable
from reports.tables import VERDICTS

_MOST_LAYERS = 20  # that are shown
_SAME, _OTHER = "the same", "not the same"

Row = tuple[str, str, str, str]


def runs_side_by_side(record: RunsComparedRecord) -> list[RenderableType]:
    """Both headlines, the figures, and whatever is not the same."""
    parts: list[RenderableType] = [_headline("A", record.a), _headline("B", record.b)]
    if record.unlike:
        parts.append(Text(f"Latencies are not compared: {record.unlike}.", "yellow"))
    parts += [Text(), _table("", _figures(record), "B against A")]
    parts += _section("goals", [_goal(pair) for pair in record.goals])
    parts += _section("recipe", _changes(record.recipe))
    parts += _section("tools", _changes(record.environment))
    layers = [(each.name, each.a or quantities.MISSING, each.b or quantities.MISSING, "") for each in record.layers]
    parts += _section("layers", layers[:_MOST_LAYERS])
    if len(layers) > _MOST_LAYERS:
        parts.append(Text(f"… {len(layers) - _MOST_LAYERS} more, all of them with --json", "dim"))
    for name, edits in (("A", record.only_a), ("B", record.only_b)):
        parts += _edits(name, edits)
    return parts


def artifacts_side_by_side(record: ArtifactsComparedRecord) -> list[RenderableType]:
    """Format, size and content of both."""
    a, b = record.a, record.b
    parts: list[RenderableType] = [Text(f"{a.format}: {'the same bytes' if record.same_bytes else 'not the same'}")]
    rows = [
        ("file", a.file, b.file, ""),
        ("SHA-256", a.sha256[:12], b.sha256[:12], _SAME if record.same_bytes else _OTHER),
        ("size", *(f"{each.bytes:,} B" for each in (a, b)), quantities.change(a.bytes, b.bytes)),
    ]
    if a.inputs is not None and b.inputs is not None:
        rows.append(("inputs", _border(a.inputs), _border(b.inputs), _SAME if record.same_inputs else _OTHER))
    if a.outputs is not None and b.outputs is not None:
        rows.append(("outputs", _border(a.outputs), _border(b.outputs), _SAME if record.same_outputs else _OTHER))
    if a.operators is not None and b.operators is not None:
        counts = [sum(each.operators.values()) for each in (a, b)]
        rows.append(("operators", *map(str, counts), _difference(*counts)))
    if a.macs is not None and b.macs is not None:
        rows.append(("MACs", *(quantities.count(each) for each in (a.macs, b.macs)), quantities.change(a.macs, b.macs)))
    parts += [Text(), _table("", rows, "B against A")]
    if record.operators is None:
        parts.append(Text(f"The operators of {a.format} files cannot be read here.", "dim"))
    elif record.operators:
        kinds = [(each.kind, str(each.a), str(each.b), _difference(each.a, each.b)) for each in record.operators]
        parts += [Text(), _table("operators", kinds, "")]
    return parts


def _headline(name: str, side: SideRecord) -> Text:
    word, style = VERDICTS[side.verdict]
    return Text.assemble((f"{name} ", "bold"), f"{side.directory}  ", (word, style), f"  {printable(side.headline)}")


def _figures(record: RunsComparedRecord) -> list[Row]:
    a, b = record.a, record.b
    rows = []
    if a.model != b.model:
        rows.append(("model", printable(a.model), printable(b.model), ""))
    rows.append(("handed over", _candidate(a), _candidate(b), ""))
    rows += [_latency(pair) for pair in record.latencies]
    rows += [
        (f"size, {pair.format}", quantities.size(pair.a), quantities.size(pair.b), _relative(pair.a, pair.b))
        for pair in record.sizes
    ]
    if judged := {side.quality.metric for side in (a, b) if side.quality}:
        metric = judged.pop() if len(judged) == 1 else "quality"
        rows.append((metric, _quality(a.quality), _quality(b.quality), _quality_against(record)))
    if any(side.quality and side.quality.lost is not None for side in (a, b)):
        rows.append(("  against its original", _paired(a.quality), _paired(b.quality), ""))
    for name, first, second in (("parameters", a.parameters, b.parameters), ("MACs", a.macs, b.macs)):
        rows.append((name, quantities.count(first), quantities.count(second), _relative(first, second)))
    rows.append(("time of the run", quantities.duration(a.seconds), quantities.duration(b.seconds), ""))
    return rows


def _candidate(side: SideRecord) -> str:
    if side.handed_over is None:
        return quantities.MISSING
    closest = "" if side.verdict == "met" else ", the closest"
    return f"{'the original' if side.handed_over == 0 else f'candidate {side.handed_over}'}{closest}"


def _latency(pair: LatencyPairRecord) -> Row:
    told = pair.why_not and "not compared"
    if pair.ratio is not None:
        told = quantities.speedup(pair.a.median_ms, pair.b.median_ms)
        told += ", intervals overlap" if pair.overlap else ""
    return f"{pair.target}, {pair.format}", _measured(pair.a), _measured(pair.b), told


def _measured(one: MeasurementRecord | None) -> str:
    if one is None:
        return quantities.MISSING
    return f"{quantities.milliseconds(one.median_ms)} {quantities.interval(one.low_ms, one.high_ms)}"


def _quality(one: QualityRecord | None) -> str:
    if one is None:
        return quantities.MISSING
    return f"{quantities.quality(one.value, one.unit)} {quantities.quality_interval(one.low, one.high, one.unit)}"


def _quality_against(record: RunsComparedRecord) -> str:
    if record.quality_change is None:
        return f"not compared: {record.quality_why_not}"
    told = quantities.quality_change(record.quality_change, record.a.quality.unit)
    return told + (", intervals overlap" if record.quality_overlap else "")


def _paired(one: QualityRecord | None) -> str:
    """The change on the same samples, and whether its sign is known."""
    if one is None or one.change is None:
        return quantities.MISSING
    told, interval = quantities.quality_change(one.change, one.unit), one.change_interval
    if interval is None:
        return told
    told = f"{told} {quantities.quality_change_interval(*interval, one.unit)}"
    return f"{told}, may be nothing" if interval[0] <= 0 <= interval[1] else told


def _goal(pair: GoalPairRecord) -> Row:
    name = f"{pair.target}, {limits.QUANTITIES[pair.quantity]}" if pair.target else limits.QUANTITIES[pair.quantity]
    return name, _asked(pair.a, pair.reached_a), _asked(pair.b, pair.reached_b), ""


def _asked(limit: LimitRecord | None, reached: OutcomeRecord | None) -> str:
    if limit is None:
        return quantities.MISSING
    told = f"≤ {quantities.measured(limit.limit, limit.unit)}"
    return f"{told}  {limits.apart(reached)}" if reached else told


def _changes(changes: Iterable[ChangedRecord]) -> list[Row]:
    return [(each.key, _value(each.a), _value(each.b), "") for each in changes]


def _value(value: JsonValue) -> str:
    if value is None:
        return quantities.MISSING
    return ", ".join(map(str, value)) if isinstance(value, list) else printable(str(value))


def _edits(name: str, edits: Sequence[EditRecord]) -> list[RenderableType]:
    if not edits:
        return []
    lines = [Text(f"  {edit.kind} {printable(edit.site)}: {printable(edit.summary)}") for edit in edits]
    return [Text(), Text(f"edits that only {name} has: {len(edits)}", "bold"), *lines]


def _border(tensors: Iterable[BorderRecord]) -> str:
    return ", ".join(f"{each.dtype} {'×'.join(map(str, each.shape))}" for each in tensors)


def _relative(a: int | None, b: int | None) -> str:
    return "" if a is None or b is None else quantities.change(a, b)


def _difference(a: int, b: int) -> str:
    return f"{b - a:+d}".replace("-", "−") if a != b else "unchanged"


def _section(name: str, rows: list[Row]) -> list[RenderableType]:
    return [Text(), _table(name, rows, "")] if rows else []


def _table(name: str, rows: Iterable[Row], last: str) -> Table:
    """Cells are folded rather than cut: what differs may stand at their end."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in (name, "A", "B", last):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
