"""Reward model and judge in the report: what each is worth on comparisons, as a sentence and as tables of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.evaluation.result import BenchPart, RewardBench, Scorers
from tasks.evaluation.words import Sentence, number, percent, share_with_interval, whole_percent
from tasks.training.intervals import Interval
from tasks.training.scorecard import Part

MOST_ROWS = 12
"""Of a table in the report; scores.json has all."""


@dataclass(frozen=True)
class Table:
    """A table of texts. columns: the first is what a row is about, the others are numbers. note: what is said below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def trust_in_reward_model(found: Scorers) -> Sentence | None:
    """How far the reward that the policy climbed agrees with people; None where nobody measured."""
    own = found.reward_model
    if own is None:
        return None
    floor = max(own.longer, own.shorter)
    body = (
        f"On {own.comparisons:,} validation comparisons of {own.prompts:,} prompts it prefers what people prefer in "
        f"{share_with_interval(own.accuracy)}; always preferring the longer answer gives {percent(own.longer)}, the shorter "
        f"{percent(own.shorter)}. Among answers to one prompt its score goes with length at r = {number(own.length_correlation)}. Its "
        f"calibration error is {number(own.calibration_error, 3)}, and {number(own.calibration_error_at_temperature, 3)} once margins "
        f"are divided by {number(own.temperature)}."
    )
    if own.members:
        body += f" It is an ensemble of {len(own.members)}, whose members reach {', '.join(percent(member) for member in own.members)}"
        body += f" and differ by {number(own.uncertainty)} (mean standard deviation of an answer's reward)."
    if own.accuracy[1] <= floor:
        return Sentence("bad", "The reward model is not surely better than a rule of thumb about length", body)
    return Sentence("good", "The reward model agrees with people more often than length alone does", body)


def tables(found: Scorers, confidence: float) -> list[Table]:
    """Accuracy by margin, strength, slice and annotator, and by category of benchmark files; the judge's beside it.

    confidence: of the intervals on benchmark files; the others are of 95 %.
    """
    made: list[Table] = []
    own, judge = found.reward_model, found.judge
    if own:
        made.append(_by("margin", own.by_margin, [], "From the pairs that it finds closest to those of which it is surest."))
        made.append(_by("strength of the preference", own.by_strength, judge.by_strength if judge else []))
        made.append(_by("slice", own.by_slice, judge.by_slice if judge else []))
        made.append(_by("annotator", own.by_annotator, judge.by_annotator if judge else []))
    if found.reward_bench:
        made += _bench(found.reward_bench, confidence)
    return [table for table in made if table.rows]


def _by(what: str, own: Sequence[Part], judge: Sequence[Part], note: str = "") -> Table:
    """The reward model's parts, most comparisons first as they come, with the judge's of the same name."""
    others = {part.name: part for part in judge}
    columns = [what, "comparisons", "reward model", *(["judge"] if others else [])]
    rows = []
    for part in own[:MOST_ROWS]:
        cells = [part.name, f"{part.comparisons:,}", share_with_interval(part.accuracy)]
        if others:
            cells.append(_share(others[part.name].accuracy if part.name in others else None))
        rows.append(cells)
    if len(own) > MOST_ROWS:
        note = f"{len(own) - MOST_ROWS} more are in scores.json. {note}".strip()
    return Table(f"Reward model by {what}", columns, rows, note)


def _bench(found: RewardBench, confidence: float) -> Iterator[Table]:
    columns = ["category", "pairs", "left out", "reward model", "judge", "the longer"]
    rows = [_bench_row(part) for part in found.categories]
    grouped = [part.name for part in found.sections] != [part.name for part in found.categories]
    if not grouped:
        rows.append(_bench_row(found.overall, "mean over categories"))
    yield Table("Reward model on benchmark files", columns, rows, _told(found.overall, confidence))
    if grouped:
        rows = [_bench_row(part) for part in found.sections]
        yield Table("By section", ["section", *columns[1:]], [*rows, _bench_row(found.overall, "mean over sections")])


def _bench_row(part: BenchPart, name: str = "") -> list[str]:
    left_out = part.too_long + part.undecided + part.unusable
    longer = "–" if part.longer is None else percent(part.longer)
    return [name or part.name, f"{part.pairs:,}", f"{left_out:,}", _share(part.reward_model), _share(part.judge), longer]


def _told(part: BenchPart, confidence: float) -> str:
    """What the intervals are, and why pairs were left out."""
    reasons = [(part.too_long, "longer than max_tokens"), (part.undecided, "ties or equal answers"), (part.unusable, "unusable rows")]
    told = [f"{count:,} {reason}" for count, reason in reasons if count]
    intervals = f"{whole_percent(confidence)} intervals, over prompts."
    return f"{intervals} Left out: {', '.join(told)}." if told else intervals


def _share(found: Interval | None) -> str:
    return "–" if found is None else share_with_interval(found)
