"""What a row means in the formats that annotation tools and public sets use: one reader each, one module a family.

A reader turns a row into records without source and group, or says why not (Unusable). A new format is a reader, and an
entry in FORMATS and in the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tasks.data.formats import argilla, demonstrations, label_studio, pairs, ratings, transcripts, trees, verdicts
from tasks.data.formats.ratings import Rating
from tasks.data.formats.reading import Found, Reading, Row, Unusable
from tasks.data.formats.values import kind_of
from tasks.errors import ConfigError

__all__ = ["FORMATS", "Format", "Found", "Rating", "Reading", "Row", "Unusable", "kind_of", "read_row"]


@dataclass(frozen=True)
class Format:
    """recognises: is a row of this format, by its shape? read: what the row holds; raises Unusable where that is nothing."""

    recognises: Callable[[Row, Reading], bool]
    read: Callable[[Row, Reading], Iterable[Found]]


def _has(*fields: str) -> Callable[[Row, Reading], bool]:
    return lambda row, reading: all(row.get(field) is not None for field in fields)


FORMATS: dict[str, Format] = {
    "prefline": Format(pairs.is_ours, pairs.read_prefline),
    "hh-rlhf": Format(transcripts.is_hh, transcripts.read_hh),
    "ultrafeedback": Format(pairs.is_ultrafeedback, pairs.read_ultrafeedback),
    "label-studio": Format(label_studio.is_label_studio, label_studio.read_label_studio),
    "argilla": Format(argilla.is_argilla, argilla.read_argilla),
    "summarize": Format(_has("info", "summaries"), verdicts.read_summarize),
    "helpsteer2": Format(ratings.is_rated, ratings.read_helpsteer2),
    "helpsteer2-preference": Format(_has("preference_strength"), verdicts.read_helpsteer2_preference),
    "helpsteer3": Format(_has("overall_preference"), verdicts.read_helpsteer3),
    "vertex": Format(_has("input_text", "candidate_0"), verdicts.read_vertex),
    "pandalm": Format(_has("annotator1", "annotator2"), verdicts.read_pandalm),
    "fine-grained": Format(_has("prediction 1", "preference"), verdicts.read_fine_grained),
    "llmbar": Format(_has("output_1", "output_2"), verdicts.read_llmbar),
    "oasst": Format(trees.is_oasst, trees.read_oasst),
    "self-instruct": Format(_has("instruction", "instances"), demonstrations.read_self_instruct),
    "mt-bench": Format(_has("question_id", "turns"), demonstrations.read_mt_bench),
    "sharegpt": Format(_has("conversations"), demonstrations.read_sharegpt),
    "alpaca": Format(_has("instruction", "output"), demonstrations.read_alpaca),
    "messages": Format(lambda row, reading: "messages" in row and not pairs.has_pair(row), demonstrations.read_messages),
    "completion": Format(demonstrations.is_completion, demonstrations.read_completion),
    "trl": Format(lambda row, reading: True, pairs.read_trl),
}
"""By the name in data.format, in the order in which "auto" asks them."""


def read_row(row: Any, reading: Reading = Reading()) -> Iterator[Found]:  # noqa: B008 - frozen
    """What a row, as parsed from JSON, holds: records, ratings, and Unusable for a part that gives nothing.

    Raises Unusable, before it yields anything, for a row that gives nothing as a whole.
    """
    if not isinstance(row, dict):
        raise Unusable(f"the row is {kind_of(row)}, expected an object")
    if reading.format == "auto":
        known = next(format for format in FORMATS.values() if format.recognises(row, reading))
    elif reading.format in FORMATS:
        known = FORMATS[reading.format]
    else:
        raise ConfigError(f'"{reading.format}" is no format that Prefline knows.', f"It knows {', '.join(FORMATS)}, or auto.")
    yield from known.read(row, reading)
