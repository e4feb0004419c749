"""Answers rated one by one: ratings of several answers to one prompt, by one annotator, make comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from tasks.data.formats.reading import Rating, Reading, Row, Unusable
from tasks.data.formats.sides import asked
from tasks.data.formats.values import after, comparison, flag, held_out, labels, language, name, number, present, reply
from tasks.data.records import Comparison, digest

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""What HelpSteer's annotators rate, from 0 to 4."""


def pairs(ratings: list[Rating]) -> Iterator[Comparison]:
    """A comparison for each two of the answers that one annotator rated for one prompt; equal scores are a tie.

    The strength is the difference of the scores. Three and more answers are one ranking.
    """
    first = ratings[0]
    ranking = digest("ranking", first.prompt, [[r.answer, r.score] for r in ratings], first.annotator) if len(ratings) > 2 else None
    for one, other in combinations(ratings, 2):
        better, worse = (other, one) if other.score > one.score else (one, other)
        difference = better.score - worse.score
        yield comparison(
            first.prompt,
            better.answer,
            worse.answer,
            ranking=ranking,
            annotator=first.annotator,
            tie=difference == 0,
            strength=difference or None,
            labels_by=first.labels_by,
            language=first.language,
            created_at=first.created_at,
            split=first.split,
            tags=list(first.tags),
        )


def is_rated(row: Row, reading: Reading) -> bool:
    if row.get("response") is None:
        return False
    return any(attribute in row for attribute in ATTRIBUTES) or any(attribute in row for attribute in reading.rating)


def read_helpsteer2(row: Row, reading: Reading) -> list[Rating]:
    """An answer with ratings of several attributes, as in HelpSteer2 (Wang et al. 2024). Its score: their weighted sum."""
    prompt = asked(row, reading)
    answer = after(prompt, reply(present(row, "response"), "response"))
    if not reading.rating:
        raise Unusable("no attribute makes the score (rating is empty)")
    score = sum(weight * number(present(row, attribute), attribute) for attribute, weight in reading.rating.items())
    annotator = None if row.get("annotator") is None else name(row["annotator"], "annotator")
    return [
        Rating(
            prompt,
            answer,
            score,
            annotator=annotator,
            labels_by="people",
            language=language(row),
            split=held_out(row.get("split")),
            tags=labels(row, "domain"),
        )
    ]


def read_unpaired(row: Row, reading: Reading) -> list[Rating]:
    """A verdict on one answer, TRL's shape for KTO: desirable counts 1, undesirable 0."""
    prompt = asked(row, reading)
    answer = after(prompt, reply(present(row, "completion"), "completion"))
    return [Rating(prompt, answer, 1.0 if flag(present(row, "label"), "label") else 0.0)]
