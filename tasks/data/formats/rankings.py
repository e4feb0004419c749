"""From one annotator's order of several answers to comparisons of each two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tasks.data.formats.reading import Unusable
from tasks.data.formats.values import comparison
from tasks.data.records import Comparison, Message, digest

MOST = 64
"""Answers in one ranking: their pairs grow with the square of their number."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """An answer, its place (less is better; equal places are a tie), and which it was on the screen, if that is known."""

    answer: list[Message]
    place: float
    shown: int | None = None


def compared(prompt: list[Message], ranked: Sequence[Ranked], mark: str, **details: Any) -> Iterator[Comparison]:
    """A comparison for each two answers. mark: tells this ranking from others with the same outcome."""
    if len(ranked) > MOST:
        raise Unusable(f"a ranking of more than {MOST} answers ({len(ranked)})")
    ranking = None
    if len(ranked) > 2:
        ranking = digest("ranking", prompt, [[one.answer, one.place] for one in ranked], details.get("annotator"), mark)
    for pair in combinations(ranked, 2):
        tie = pair[0].place == pair[1].place
        better, worse = pair if tie else sorted(pair, key=lambda one: one.place)
        first = None if tie or better.shown is None or worse.shown is None else better.shown < worse.shown
        yield comparison(prompt, better.answer, worse.answer, ranking=ranking, tie=tie, chosen_first=first, **details)
