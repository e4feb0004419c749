"""What a scorer is worth on comparisons that it was not trained on: scores.json, scores.jsonl and calibration.png.

Accuracy is told beside its floors: whoever always prefers the longer answer, or always the shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.data.records import Comparison, write_jsonl
from tasks.data.statistics import UNKNOWN
from tasks.errors import PreflineError
from tasks.plotting import BLUE, GREY, new_figure
from tasks.training.calibration import (
    accuracy_interval,
    best_temperature,
    calibration_error,
    length_correlation,
    nll,
    prefer_longer,
    reliability,
)
from tasks.training.calibration_plot import Curve, reliability_diagram
from tasks.training.intervals import Bootstrap
from tasks.training.reward_model import Group
from tasks.training.scorecard import HeldOut, Part

SCORES_BY_COMPARISON, PICTURE = "scores.jsonl", "calibration.png"

PARTS = 4
"""Into so many parts of equal size comparisons are cut by a number that differs in nearly all of them."""


@dataclass(frozen=True)
class Judged:
    """A held-out comparison and its scores. *_length: tokens. *_deviation: standard deviation of an ensemble's members, or None."""

    id: str
    source: str
    source_id: str
    group_id: str
    annotator: str | None
    strength: float | None
    tags: list[str]
    chosen: float
    rejected: float
    chosen_length: int
    rejected_length: int
    chosen_deviation: float | None = None
    rejected_deviation: float | None = None

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected


def judged(groups: Sequence[Group], scores: Sequence[float], deviations: Sequence[float] | None) -> list[Judged]:
    """The groups' comparisons with their scores; scores, deviations: of all groups' answers in order."""
    rows, first = [], 0
    for group in groups:
        for (better, worse), said in zip(group.pairs, group.said, strict=True):
            one, other = first + better, first + worse
            rows.append(
                Judged(
                    id=said.id,
                    source=said.source,
                    source_id=said.source_id,
                    group_id=said.group_id,
                    annotator=said.annotator,
                    strength=said.strength,
                    tags=said.tags,
                    chosen=scores[one],
                    rejected=scores[other],
                    chosen_length=len(group.answers[better]),
                    rejected_length=len(group.answers[worse]),
                    chosen_deviation=deviations[one] if deviations else None,
                    rejected_deviation=deviations[other] if deviations else None,
                )
            )
        first += len(group.answers)
    return rows


def held_out(rows: Sequence[Judged], members: list[float] | None = None) -> HeldOut:
    """rows: at least one. members: each one's accuracy, of an ensemble."""
    bootstrap = Bootstrap()
    chosen, rejected = np.array([row.chosen for row in rows]), np.array([row.rejected for row in rows])
    lengths = np.array([row.chosen_length for row in rows]), np.array([row.rejected_length for row in rows])
    prompts = [row.group_id for row in rows]
    margins = chosen - rejected
    temperature = best_temperature(margins)
    bins, scaled = reliability(margins), reliability(margins / temperature)
    longer = prefer_longer(*lengths)
    deviations = [value for row in rows for value in (row.chosen_deviation, row.rejected_deviation) if value is not None]

    def parts(named: Iterable[tuple[str, list[int]]]) -> list[Part]:
        return [
            Part(name, len(kept), accuracy_interval(chosen[kept], rejected[kept], [prompts[i] for i in kept], bootstrap))
            for name, kept in named
        ]

    strengths = {i: row.strength for i, row in enumerate(rows) if row.strength is not None}
    return HeldOut(
        comparisons=len(rows),
        prompts=len(set(prompts)),
        accuracy=accuracy_interval(chosen, rejected, prompts, bootstrap),
        longer=longer,
        shorter=1 - longer,
        loss=nll(margins),
        margin=float(margins.mean()),
        length_correlation=length_correlation(np.concatenate([chosen, rejected]), np.concatenate(lengths).astype(float), prompts * 2),
        temperature=temperature,
        calibration_error=calibration_error(bins),
        calibration_error_at_temperature=calibration_error(scaled),
        bins=bins,
        bins_at_temperature=scaled,
        by_margin=parts(by_size(dict(enumerate(np.abs(margins).tolist())))),
        by_strength=parts(by_size(strengths)),
        by_slice=parts(_most_first((tag, i) for i, row in enumerate(rows) for tag in dict.fromkeys(row.tags))),
        by_annotator=parts(_most_first((row.annotator or UNKNOWN, i) for i, row in enumerate(rows))),
        uncertainty=float(np.mean(deviations)) if deviations else None,
        members=members,
    )


def write(found: HeldOut, rows: Iterable[Judged], out: Path) -> None:
    """scores.json, scores.jsonl and calibration.png."""
    found.save(out)
    write_jsonl(out / SCORES_BY_COMPARISON, rows)
    with new_figure(out / PICTURE, 7.2, 4.3) as figure:
        curves = [Curve("scores as they are", found.bins, BLUE, "o", -0.01)]
        curves.append(Curve(f"at temperature {found.temperature:.2f}", found.bins_at_temperature, GREY, "s", 0.01))
        reliability_diagram(figure, curves)


def by_size(values: dict[int, float]) -> list[tuple[str, list[int]]]:
    """Places by their value, the smallest first: one part a value where there are few, else PARTS parts of about equal size."""
    kinds = sorted(set(values.values()))
    if len(kinds) <= 2 * PARTS:
        return [(f"{kind:g}", [place for place, value in values.items() if value == kind]) for kind in kinds]
    order = sorted(values, key=lambda place: values[place])
    cuts = [list(part) for part in np.array_split(order, PARTS)]
    return [(f"{values[cut[0]]:.3g} to {values[cut[-1]]:.3g}", cut) for cut in cuts]


def _most_first(labelled: Iterable[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    """Places by their label, the label with most of them first."""
    places: dict[str, list[int]] = {}
    for label, place in labelled:
        places.setdefault(label, []).append(place)
    return sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))


# What is refused ------------------------------------------------------------------------------------------------------


def check_finite(scores: Sequence[float], groups: Sequence[Group], stage: str) -> None:
    """Raises PreflineError, naming the first comparison of which an answer has no finite score."""
    first = 0
    for group in groups:
        for place, score in enumerate(scores[first : first + len(group.answers)]):
            if not math.isfinite(score):
                said = next(said for pair, said in zip(group.pairs, group.said, strict=True) if place in pair)
                raise PreflineError(
                    f"{stage}: the score of an answer is {score} ({_place(said)}).",
                    f"Lower {stage}.learning_rate or {stage}.clip_gradient, and look at the curve of the loss.",
                )
        first += len(group.answers)


def _place(said: Comparison) -> str:
    return f"{said.source}, line {said.source_id}"


def check_accuracy(found: HeldOut, least: float, stage: str, folder: Path) -> None:
    """Raises PreflineError where it is not sure that the accuracy is above least; 0 asks for nothing. folder: where the model lies."""
    if least == 0 or found.accuracy[1] > least:
        return
    name = stage.replace("_", " ")
    how = "at chance" if least <= 0.5 else f"not surely above {least:g}"
    raise PreflineError(
        f"{name} {how}: {found.in_words}.",
        f"What is trained against it would learn noise. Give it more comparisons, more {stage}.epochs, another {stage}.learning_rate; "
        f"or set {stage}.min_accuracy=0 to go on regardless. The model and its scores are in {folder}.",
    )
