"""Pairs called chosen and rejected: TRL's shapes, our own records, UltraFeedback's conversations with scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tasks.data.formats.demonstrations import ANSWERS, read_completion, read_messages
from tasks.data.formats.ratings import read_unpaired
from tasks.data.formats.reading import Rating, Reading, Row, Unusable
from tasks.data.formats.sides import asked, system
from tasks.data.formats.transcripts import by_turns, by_words, is_transcript, read_hh
from tasks.data.formats.values import (
    after,
    comparison,
    flag,
    labels,
    messages,
    name,
    number,
    present,
    reply,
    said,
    seconds,
    split,
    tags,
    when,
)
from tasks.data.records import CONTRACT_VERSION, Comparison, Demonstration, Message

PROMPTS = ("prompt", "instruction", "question")
"""What a prompt is called beside a pair. Without one, what both sides begin with is the prompt."""


def has_pair(row: Row) -> bool:
    return row.get("chosen") is not None or row.get("rejected") is not None


def read_trl(row: Row, reading: Reading) -> list[Comparison] | list[Demonstration] | list[Rating]:
    """The shapes that TRL's trainers take: a pair with or without its prompt, a verdict on one answer, a demonstration."""
    if has_pair(row):
        found = _pair(row, reading)
        found.tags = labels(row, "subset")  # RewardBench's categories
        return [found]
    if row.get("completion") is not None and row.get("label") is not None:
        return read_unpaired(row, reading)
    return _shown(row, reading)


def _pair(row: Row, reading: Reading) -> Comparison:
    chosen, rejected = present(row, "chosen"), present(row, "rejected")
    if "prompt" not in reading.fields and not any(row.get(field) is not None for field in PROMPTS):
        if isinstance(chosen, list) and isinstance(rejected, list):
            return by_turns(messages(chosen, "chosen"), messages(rejected, "rejected"))
        texts = said(chosen, "chosen"), said(rejected, "rejected")
        return read_hh(row, reading)[0] if is_transcript(chosen) or is_transcript(rejected) else by_words(*texts)
    prompt = asked(row, reading)
    sides = reply(chosen, "chosen"), reply(rejected, "rejected")
    if not isinstance(row.get("prompt"), list) and all(_holds(side[:-1], prompt[0]) for side in sides):
        found = by_turns(*sides)  # whole conversations, with one turn of theirs as text beside them
    else:
        found = comparison(prompt, after(prompt, sides[0]), after(prompt, sides[1]))
    if row.get("system") is not None:
        found.prompt = [*system(row), *found.prompt]
    return found


def _holds(conversation: list[Message], turn: Message) -> bool:
    """Is it said there, whatever the space around it?"""
    return any(each["role"] == turn["role"] and each["content"].strip() == turn["content"] for each in conversation)


def _shown(row: Row, reading: Reading) -> list[Demonstration]:
    if row.get("messages") is not None:
        return read_messages(row, reading)
    if all(row.get(field) is None for field in ANSWERS):
        raise Unusable('neither a comparison nor a demonstration (no "chosen" and "rejected", no "messages", no "prompt" and "completion")')
    return read_completion(row, reading)


# Our own records ----------------------------------------------------------------------------------------------------


def _labels_by(value: Any, field: str) -> str:
    if value not in ("people", "ai"):
        raise Unusable(f'"{field}" is neither people nor ai ({str(value)[:20]})')
    return str(value)


DETAILS: dict[str, Callable[[Any, str], Any]] = {
    "id": name,
    "group_id": name,
    "ranking": name,
    "annotator": name,
    "strength": number,
    "tie": flag,
    "chosen_first": flag,
    "seconds": seconds,
    "labels_by": _labels_by,
    "language": name,
    "created_at": when,
    "split": split,
    "tags": tags,
}
"""What a record of ours may say beside the texts."""
OURS = {field.name for field in dataclasses.fields(Comparison)} | {"answer", "messages", "completion"}
ONLY_OURS = {"contract_version", "group_id", "ranking", "annotator", "strength", "tie", "chosen_first", "labels_by"}
TEXTS = ("chosen", "rejected", "answer", "messages", "completion")
SHOWN = {field.name for field in dataclasses.fields(Demonstration)}


def is_ours(row: Row, reading: Reading) -> bool:
    """Has it texts as ours are called, and no other fields, or some that nobody else has?"""
    if "contract_version" in row:
        return True
    return any(field in row for field in TEXTS) and (row.keys() <= OURS or not row.keys().isdisjoint(ONLY_OURS))


def read_prefline(row: Row, reading: Reading) -> list[Comparison] | list[Demonstration]:
    """Our own records; only the texts are required. A field we don't know is refused: it may be a known one misspelt."""
    if not row.keys() <= OURS:
        raise Unusable(f"a record has no such field ({', '.join(sorted(row.keys() - OURS))[:80]})")
    version = row.get("contract_version")
    if version is not None and str(version) != str(CONTRACT_VERSION):
        raise Unusable(f"another contract version, expected {CONTRACT_VERSION} ({str(version)[:20]})")
    found: list[Comparison] | list[Demonstration] = [_pair(row, reading)] if has_pair(row) else _shown(row, reading)
    for field, value in row.items():
        if value is not None and field in DETAILS:
            if field not in SHOWN and isinstance(found[0], Demonstration):
                raise Unusable(f'a demonstration has no "{field}"')
            setattr(found[0], field, DETAILS[field](value, field))
    return found


# UltraFeedback ------------------------------------------------------------------------------------------------------

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
"""What the binarised sets call the scores that a model gave."""


def _scores(row: Row) -> tuple[str, str] | None:
    return next((pair for pair in SCORES if row.get(pair[0]) is not None or row.get(pair[1]) is not None), None)


def is_ultrafeedback(row: Row, reading: Reading) -> bool:
    return has_pair(row) and ("prompt_id" in row or _scores(row) is not None)


def read_ultrafeedback(row: Row, reading: Reading) -> list[Comparison]:
    """UltraFeedback binarised, and what distilabel writes: conversations with a model's scores (Cui et al. 2023)."""
    found = _pair(row, reading)
    names = _scores(row)
    if names is not None:
        strength = number(present(row, names[0]), names[0]) - number(present(row, names[1]), names[1])
        if strength < 0:
            raise Unusable(f'"{names[0]}" is below "{names[1]}"')
        found.labels_by = "ai"
        found.tie, found.strength = strength == 0, strength or None
    return [found]
