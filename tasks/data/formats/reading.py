"""What goes into a reader of a format and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.data.records import Comparison, Demonstration, LabelsBy, Message

Row = dict[str, Any]


class Unusable(Exception):
    """Why a row, or a part of one, gives no record. skipped: the annotator passed it by, or nobody has judged it yet: no fault."""

    def __init__(self, reason: str, skipped: bool = False) -> None:
        super().__init__(reason)
        self.skipped = skipped


@dataclass(frozen=True)
class Reading:
    """How to read rows. format: a name in FORMATS, or "auto" to tell by each row's shape.

    fields: what a labelling configuration calls a field, by what we call it: prompt, left, right, items (a list to rank),
    control or question (where there are several), buckets (their names, best first, with commas).
    rating: the weight of each attribute of a rated answer in its score.
    """

    format: str = "auto"
    fields: Mapping[str, str] = field(default_factory=dict)
    rating: Mapping[str, float] = field(default_factory=lambda: {"helpfulness": 1.0})


@dataclass(slots=True)
class Rating:
    """One answer with a score of its own. Ratings of answers to one prompt make comparisons: see ratings.pairs."""

    prompt: list[Message]
    answer: list[Message]
    score: float
    annotator: str | None = None
    labels_by: LabelsBy | None = None
    language: str | None = None
    created_at: str | None = None
    split: str | None = None
    tags: list[str] = field(default_factory=list)


Found = Comparison | Demonstration | Rating | Unusable
