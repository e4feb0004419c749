"""Checks that readers share: a value is what its field should hold, or Unusable says which field is not and why.

Rows from tables (.csv) hold numbers and truth values as text; such texts count as what they say.
"""

from __future__ import annotations

import datetime
import math
from typing import Any

from tasks.data.formats.reading import Row, Unusable
from tasks.data.records import SPLITS, Comparison, Demonstration, Message, assistant, user

KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
TRUTH = {"true": True, "false": False}


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    return KINDS.get(type(value), f"of type {type(value).__name__}")


def present(row: Row, name: str) -> Any:
    """The value of a field that a row must have."""
    value = row.get(name)
    if value is None:
        raise Unusable(f'no field "{name}"')
    return value


def text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise Unusable(f'"{field}" is {kind_of(value)}, expected text')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(f'"{field}" holds half a character (at {error.start + 1})') from error
    return value


def said(value: Any, field: str) -> str:
    """Text that says something, without the space around it."""
    found = text(value, field).strip()
    if not found:
        raise Unusable(f'"{field}" is empty')
    return found


def messages(value: Any, field: str) -> list[Message]:
    """A list of messages as the tool wrote it; only role and content are kept."""
    if not isinstance(value, list):
        raise Unusable(f'"{field}" is {kind_of(value)}, expected a list of messages')
    if not value:
        raise Unusable(f'"{field}" is empty')
    found: list[Message] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise Unusable(f'"{field}" has a message without "role" and "content" (message {number})')
        role, content = text(message["role"], f"{field}.role"), text(message["content"], f"{field}.content")
        if not content.strip():
            raise Unusable(f'"{field}" is empty' if number == len(value) else f'"{field}" has an empty message (message {number})')
        found.append({"role": role, "content": content})
    return found


def question(value: Any, field: str) -> list[Message]:
    """A prompt: messages, or the text of one."""
    return messages(value, field) if isinstance(value, list) else [user(said(value, field))]


def reply(value: Any, field: str) -> list[Message]:
    """An answer: messages, or the text of one."""
    return messages(value, field) if isinstance(value, list) else [assistant(said(value, field))]


def name(value: Any, field: str) -> str:
    """A name or a number that stands for one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return said(value, field)


def when(value: Any, field: str) -> str:
    """A moment as its source writes it."""
    return value.isoformat() if isinstance(value, datetime.date) else name(value, field)


def number(value: Any, field: str) -> float:
    if isinstance(value, str):
        value = _number_in(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e9 or not math.isfinite(value):
        raise Unusable(f'"{field}" is not a number within a billion')
    return float(value)


def _number_in(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def seconds(value: Any, field: str) -> float:
    found = number(value, field)
    if found < 0:
        raise Unusable(f'"{field}" is below 0')
    return found


def flag(value: Any, field: str) -> bool:
    found = TRUTH.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise Unusable(f'"{field}" is {kind_of(value)}, expected true or false')
    return found


def whole(value: Any, field: str, allowed: range) -> int:
    """A whole number out of few, such as the place of the better answer."""
    found = _number_in(value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or found not in allowed:
        shown = kind_of(value) if isinstance(value, bool | list | dict) else str(value)[:20]
        raise Unusable(f'"{field}" is none of {", ".join(map(str, allowed))} ({shown})')
    return int(found)


def split(value: Any, field: str) -> str:
    if value not in SPLITS:
        raise Unusable(f'"{field}" is none of {", ".join(SPLITS)} ({str(value)[:40]})')
    return str(value)


def held_out(value: Any) -> str | None:
    """The split of a public set's row that its authors held out; None for what they train on, which is ours to divide."""
    known = str(value).lower()
    return "validation" if known.startswith(("val", "dev")) else "test" if known.startswith("test") else None


def tags(value: Any, field: str) -> list[str]:
    if not isinstance(value, list):
        raise Unusable(f'"{field}" is {kind_of(value)}, expected a list of texts')
    return [said(tag, field) for tag in value]


def labels(row: Row, *fields: str) -> list[str]:
    """Those of a row's fields that hold a text or a whole number, as tags; nothing else makes a slice."""
    found = (row.get(field) for field in fields)
    return [str(value).strip() for value in found if (isinstance(value, str) and value.strip()) or type(value) is int]


def language(row: Row) -> str | None:
    return next(iter(labels(row, "language")), None)


def comparison(prompt: list[Message], chosen: list[Message], rejected: list[Message], **details: Any) -> Comparison:
    return Comparison(id="", prompt=prompt, chosen=chosen, rejected=rejected, source="", source_id="", group_id="", **details)


def demonstration(prompt: list[Message], answer: list[Message], **details: Any) -> Demonstration:
    return Demonstration(id="", prompt=prompt, answer=answer, source="", source_id="", group_id="", **details)


def verdict(prompt: list[Message], first: list[Message], second: list[Message], better: float, **details: Any) -> Comparison:
    """The comparison of two answers shown side by side. better: below 0 the first is, above 0 the second, 0 neither."""
    chosen, rejected = (second, first) if better > 0 else (first, second)
    return comparison(prompt, chosen, rejected, tie=better == 0, chosen_first=None if better == 0 else better < 0, **details)


def after(prompt: list[Message], conversation: list[Message]) -> list[Message]:
    """The answer alone, whether or not its field repeats the prompt."""
    repeated = len(conversation) > len(prompt) and conversation[: len(prompt)] == prompt
    return conversation[len(prompt) :] if repeated else conversation
