"""What the measured candidates say of the next move: which are worth having, and what each knob would buy."""

from __future__ import annotations

from pipeline.loop import Candidate, FitResult, keeps_floor
from pipeline.recipe import Recipe
from reports.records import AdviceRecord

LEAST_STEPS = 400  # of a recovery that is worth trying
ROUNDED_UP = 1.005  # a limit that is asked for again leaves the measurement its last per mille


def front(result: FitResult) -> tuple[int, ...]:
    """Candidates than which none is both nearer to the limits and better: Pareto's front, the fastest first.

    Without a quality there is nothing to trade: then it is empty.
    """
    judged = [c for c in (result.original, *result.probes) if c.quality is not None]
    best: list[Candidate] = []
    for candidate in sorted(judged, key=lambda c: (c.ratio, -_goodness(c))):
        if not best or _goodness(candidate) > _goodness(best[-1]):
            best.append(candidate)
    return tuple(candidate.index for candidate in best)


def advice(recipe: Recipe, result: FitResult) -> tuple[AdviceRecord, ...]:
    """One sentence a knob, of what this run has measured; nothing is extrapolated."""
    found = []
    if result.floor_kept is False:
        found += _for_the_floor(recipe, result)
    if result.final.verdict != "met":
        found += _for_the_limits(result)
    found += _for_the_format(recipe, result)
    return tuple(found)


def _for_the_floor(recipe: Recipe, result: FitResult) -> list[AdviceRecord]:
    final, found = result.final, []
    kept = [c for c in result.probes if c is not final and keeps_floor(c, result.allowed_drop)]
    if kept:
        best = min(kept, key=lambda c: c.ratio)
        text = f"candidate {best.index} loses {best.quality.lost:.4g} before recovery and takes {_spelled(best)}"
        found.append(AdviceRecord(knob="latency", option=_asking_for(best), text=text, candidate=best.index))
    found.append(
        AdviceRecord(
            knob="quality floor",
            option=f"--max-drop {final.quality.lost * ROUNDED_UP:.3g}pt",
            text=f"what was lost, {final.quality.lost:.4g}, would be allowed",
            candidate=final.index,
        )
    )
    source = next((c for c in result.probes if c.index == final.recovered_from), None)
    if source is not None and source.quality is not None:
        longer = recipe.recover and f"--recover {_doubled(recipe.recover)}"
        option = longer or f"--recover-steps {2 * recipe.recover_steps or LEAST_STEPS}"
        won = _goodness(final) - _goodness(source)
        text = f"recovery won {won:.4g} in the time it had; twice as long may win some more"
        if not longer and not recipe.recover_steps:
            text = "nothing was recovered; the original may teach some of it back"
        found.append(AdviceRecord(knob="recovery", option=option, text=text, candidate=final.index))
    return found


def _for_the_limits(result: FitResult) -> list[AdviceRecord]:
    """What the closest candidate takes could be asked for."""
    final = result.final
    if final is result.original:
        return []
    text = f"candidate {final.index} is the closest and takes {_spelled(final)}"
    return [AdviceRecord(knob="latency", option=_asking_for(final), text=text, candidate=final.index)]


def _for_the_format(recipe: Recipe, result: FitResult) -> list[AdviceRecord]:
    """Another format that was measured, and is faster on the first target than the one that decides."""
    final = result.final
    deciding, *others = [m for m in final.measurements if m.target == final.measurements[0].target]
    faster = [m for m in others if m.high_ms < deciding.low_ms]
    if not faster:
        return []
    best = min(faster, key=lambda m: m.median_ms)
    rest = [best.format, *(name for name in recipe.formats if name != best.format)]
    text = f"{best.format} takes {best.median_ms:.4g} ms where {deciding.format} takes {deciding.median_ms:.4g} ms"
    option = " ".join(f"--format {name}" for name in rest)
    return [AdviceRecord(knob="format", option=option, text=text, candidate=final.index)]


def _asking_for(candidate: Candidate) -> str:
    """The options that ask for what a candidate took, where it misses a limit, and else for what was asked."""
    missed = {outcome.quantity for outcome in candidate.outcomes if outcome.verdict != "met"}
    words = []
    for outcome in candidate.outcomes:
        if outcome.quantity in missed:  # of several targets all, as their order tells which is whose
            most = outcome.limit if outcome.verdict == "met" else (outcome.high or outcome.value) * ROUNDED_UP
            words.append(f"--{outcome.quantity} {f'{most:.4g}ms' if outcome.unit == 'ms' else f'{most / 1e6:.4g}MB'}")
    return " ".join(words)


def _spelled(candidate: Candidate) -> str:
    return ", ".join(
        f"{o.value:.4g} ms" if o.unit == "ms" else f"{o.value / 1e6:.4g} MB of {o.quantity}" for o in candidate.outcomes
    )


def _goodness(candidate: Candidate) -> float:
    return candidate.quality.value if candidate.quality.higher_is_better else -candidate.quality.value


def _doubled(duration: str) -> str:
    """`10min` -> `20min`."""
    digits = duration.rstrip("abcdefghijklmnopqrstuvwxyz ")
    return f"{2 * float(digits):g}{duration[len(digits) :].strip()}"
