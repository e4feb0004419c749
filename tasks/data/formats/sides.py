"""Which fields of a task hold the prompt and the answers: as the reading names them, else by the usual names."""

from __future__ import annotations

import re

from tasks.data.formats.reading import Reading, Row, Unusable
from tasks.data.formats.transcripts import prompt_of
from tasks.data.formats.values import said, text
from tasks.data.records import Message, user

PROMPTS = ("prompt", "instruction", "question", "query", "input", "input_text", "context", "conversation", "text")
STEMS = "answer|response|completion|output|candidate|reply|option|summary|text"
NUMBERED = re.compile(rf"(?P<stem>{STEMS})(?P<gap>[ _-]?)(?P<place>[0-9]{{1,2}}|[a-hA-H])")
"""What labelling configurations call answers: answer1, response_2, option-a."""


def answers_of(row: Row, reading: Reading) -> list[str]:
    """The names of the fields that hold the answers, in the order shown."""
    if "left" in reading.fields or "right" in reading.fields:
        return [_named(row, reading, "left"), _named(row, reading, "right")]
    if "left" in row and "right" in row:
        return ["left", "right"]
    families: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for field in row:
        match = NUMBERED.fullmatch(field)
        if match and row[field] is not None:
            place = match["place"]
            families.setdefault((match["stem"], match["gap"]), []).append((int(place) if place.isdigit() else -1, place, field))
    known = [sorted(members) for members in families.values() if len(members) > 1]
    if len(known) != 1:
        what = "several fields that may be" if known else "no fields that look like"
        raise Unusable(f"{what} the two texts: name them with --field left=NAME --field right=NAME ({_shown(row)})")
    return [field for *_, field in known[0]]


def asked(row: Row, reading: Reading) -> list[Message]:
    """The prompt of a row."""
    if "prompt" in reading.fields:
        return prompt_of(row[_named(row, reading, "prompt")])
    field = next((field for field in PROMPTS if row.get(field) is not None), None)
    if field is None:
        raise Unusable(f"no field that looks like the prompt: name it with --field prompt=NAME ({_shown(row)})")
    return task(row) if field == "instruction" else prompt_of(row[field])


def system(row: Row) -> list[Message]:
    """What the system was told, where a row says so beside its prompt."""
    told = row.get("system")
    return [{"role": "system", "content": said(told, "system")}] if isinstance(told, str) and told.strip() else []


def task(row: Row) -> list[Message]:
    """An instruction and, below it, what it is about."""
    parts = [text(row[field], field).strip() for field in ("instruction", "input") if row.get(field) is not None]
    if not any(parts):
        raise Unusable('"instruction" is empty')
    return [user("\n\n".join(part for part in parts if part))]


def _named(row: Row, reading: Reading, ours: str) -> str:
    if ours not in reading.fields:
        raise Unusable(f"--field names one of the two texts only, not {ours}")
    field = reading.fields[ours]
    if row.get(field) is None:
        raise Unusable(f'no field "{field}", which --field names as {ours} ({_shown(row)})')
    return field


def _shown(row: Row) -> str:
    return ("there is " + ", ".join(map(str, row)) if row else "it is empty")[:120]
