"""What a row means in the formats that annotation tools and public sets use: one small reader each.

A reader turns a row into a record without source, id and group, or raises Unusable with the reason. A new format is a
reader and an entry in FORMATS.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.data.records import CONTRACT_VERSION, SPLITS, Comparison, Demonstration, Message, assistant, user

Row = dict[str, Any]


class Unusable(Exception):
    """Raised by a reader, with the reason, for a row that gives no record."""


# Values -------------------------------------------------------------------------------------------------------------


def kind_of(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise Unusable(f'"{field}" is {kind_of(value)}, expected text')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(f'"{field}" holds half a character (at {error.start + 1})') from error
    return value


def _said(value: Any, field: str) -> str:
    """Text that says something, without the space around it."""
    text = _text(value, field).strip()
    if not text:
        raise Unusable(f'"{field}" is empty')
    return text


def _messages(value: list[Any], field: str) -> list[Message]:
    """A list of messages as the tool wrote it; only role and content are kept."""
    if not value:
        raise Unusable(f'"{field}" is empty')
    found: list[Message] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise Unusable(f'"{field}" has a message without "role" and "content" (message {number})')
        role, content = _text(message["role"], f"{field}.role"), _text(message["content"], f"{field}.content")
        if not content.strip():
            raise Unusable(f'"{field}" is empty' if number == len(value) else f'"{field}" has an empty message (message {number})')
        found.append({"role": role, "content": content})
    return found


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, list):
        return _messages(value, "prompt")
    text = _said(value, "prompt")
    return _turns(value, "prompt", open_end=True) if MARKER.match(value) else [user(text)]


def _answer(value: Any, field: str, prompt: list[Message]) -> list[Message]:
    """The answer alone, whether or not the field repeats the prompt."""
    if not isinstance(value, list):
        return [assistant(_said(value, field))]
    messages = _messages(value, field)
    repeated = len(messages) > len(prompt) and messages[: len(prompt)] == prompt
    return messages[len(prompt) :] if repeated else messages


def _name(value: Any, field: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _said(value, field)


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e9 or not math.isfinite(value):
        raise Unusable(f'"{field}" is not a number within a billion')
    return float(value)


def _flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise Unusable(f'"{field}" is {kind_of(value)}, expected true or false')
    return value


def _split(value: Any, field: str) -> str:
    if value not in SPLITS:
        raise Unusable(f'"{field}" is none of {", ".join(SPLITS)} ({str(value)[:40]})')
    return str(value)


def _tags(value: Any, field: str) -> list[str]:
    if not isinstance(value, list):
        raise Unusable(f'"{field}" is {kind_of(value)}, expected a list of texts')
    return [_said(tag, field) for tag in value]


# Readers ------------------------------------------------------------------------------------------------------------

MARKER = re.compile(r"\n\n(Human|Assistant):(?: |\Z)")
"""Where a turn of a transcript begins. "Human:" anywhere else is part of what was said."""


def _turns(value: Any, field: str, open_end: bool = False) -> list[Message]:
    """The turns of a transcript. open_end: it may end where the assistant is about to speak."""
    text = _text(value, field)
    before, *parts = MARKER.split("\n\n" + text if text.startswith(("Human: ", "Assistant: ")) else text)
    if not parts:
        raise Unusable(f'"{field}" has no "\\n\\nHuman: " or "\\n\\nAssistant: " in it')
    if before.strip():
        raise Unusable(f'"{field}" has text before its first turn')
    roles = ["user" if part == "Human" else "assistant" for part in parts[::2]]
    said = [part.strip() for part in parts[1::2]]
    if open_end and roles[-1] == "assistant" and not said[-1]:
        roles, said = roles[:-1], said[:-1]
    elif roles[-1] != "assistant" and not open_end:
        raise Unusable(f'"{field}" ends with a human turn: it has no reply')
    elif not said[-1]:
        raise Unusable(f'the last reply of "{field}" is empty')
    if not all(said) or not said:
        raise Unusable(f'"{field}" has an empty turn')
    return [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]


def _pair(chosen: list[Message], rejected: list[Message]) -> Comparison:
    """Two conversations whose prompt is their longest common run of turns that leaves each a reply."""
    most = min(len(chosen), len(rejected)) - 1
    common = 0
    while common < most and chosen[common] == rejected[common]:
        common += 1
    if not most:
        raise Unusable("there is no prompt before the reply")
    if not common or any(message["role"] == "user" for message in chosen[common:] + rejected[common:]):
        raise Unusable('the prompts of "chosen" and "rejected" differ')
    return _comparison(chosen[:common], chosen[common:], rejected[common:])


def _cut(chosen: str, rejected: str) -> Comparison:
    """Two texts whose prompt is what they begin with alike, up to the last word boundary that leaves each an answer."""
    alike = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    boundary = max((gap.end() for gap in re.finditer(r"\s+", chosen[:alike])), default=0)
    if not boundary:
        raise Unusable('the prompts of "chosen" and "rejected" differ')
    return _comparison([user(chosen[:boundary].strip())], [assistant(chosen[boundary:])], [assistant(rejected[boundary:])])


def _comparison(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Comparison:
    return Comparison(id="", prompt=prompt, chosen=chosen, rejected=rejected, source="", source_id="", group_id="")


def _demonstration(prompt: list[Message], answer: list[Message]) -> Demonstration:
    return Demonstration(id="", prompt=prompt, answer=answer, source="", source_id="", group_id="")


def _field(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise Unusable(f'no field "{name}"')
    return row[name]


def _read_hh(row: Row) -> Comparison:
    """Two transcripts, as in Anthropic's helpful and harmless sets (Bai et al. 2022)."""
    return _pair(_turns(_field(row, "chosen"), "chosen"), _turns(_field(row, "rejected"), "rejected"))


def _read_trl(row: Row) -> Comparison | Demonstration:
    """The shapes that TRL's trainers take: a pair with or without its prompt, or a demonstration; text or messages."""
    if "chosen" not in row and "rejected" not in row:
        return _read_demonstration(row)
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"])
        return _comparison(prompt, _answer(chosen, "chosen", prompt), _answer(rejected, "rejected", prompt))
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _pair(_messages(chosen, "chosen"), _messages(rejected, "rejected"))
    texts = _said(chosen, "chosen"), _said(rejected, "rejected")
    return _read_hh(row) if _is_transcript(chosen) or _is_transcript(rejected) else _cut(*texts)


def _read_demonstration(row: Row) -> Demonstration:
    if "completion" in row and "label" in row:
        raise Unusable('a verdict on one answer ("label") is not a comparison of two')
    if row.get("messages") is not None:
        if not isinstance(row["messages"], list):
            raise Unusable(f'"messages" is {kind_of(row["messages"])}, expected a list')
        messages = _messages(row["messages"], "messages")
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise Unusable('"messages" does not end with an answer by the assistant')
        return _demonstration(messages[:-1], messages[-1:])
    answer = next((name for name in ("completion", "answer") if row.get(name) is not None), None)
    if answer is None:
        raise Unusable('neither a comparison ("chosen", "rejected") nor a demonstration ("messages", or "prompt" and "completion")')
    prompt = _prompt(_field(row, "prompt"))
    return _demonstration(prompt, _answer(row[answer], answer, prompt))


DETAILS: dict[str, Callable[[Any, str], Any]] = {
    "id": _name,
    "group_id": _name,
    "ranking": _name,
    "annotator": _name,
    "strength": _number,
    "tie": _flag,
    "created_at": _name,
    "split": _split,
    "tags": _tags,
}
"""What a record of ours may say beside the texts."""
OURS = {field.name for field in dataclasses.fields(Comparison)} | {"answer", "messages", "completion"}
ONLY_OURS = {"contract_version", "group_id", "ranking", "annotator", "strength", "tie"}


def _read_prefline(row: Row) -> Comparison | Demonstration:
    """Our own records; only the texts are required. A field we don't know is refused: it may be a known one misspelt."""
    unknown = sorted(row.keys() - OURS)
    if unknown:
        raise Unusable(f"a record has no such field ({', '.join(unknown)[:80]})")
    if row.get("contract_version", CONTRACT_VERSION) != CONTRACT_VERSION:
        raise Unusable(f"another contract version, expected {CONTRACT_VERSION} ({str(row['contract_version'])[:20]})")
    record = _read_trl(row)
    for name, check in DETAILS.items():
        if row.get(name) is not None:
            if not hasattr(record, name):
                raise Unusable(f'a demonstration has no "{name}"')
            setattr(record, name, check(row[name], name))
    return record


@dataclass(frozen=True)
class Format:
    """recognises: is a row of this format, by its shape? read: the row's record, without source, id and group."""

    recognises: Callable[[Row], bool]
    read: Callable[[Row], Comparison | Demonstration]


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and bool(MARKER.search(value) or value.startswith("Human: "))


FORMATS = {
    "prefline": Format(lambda row: row.keys() <= OURS or not row.keys().isdisjoint(ONLY_OURS), _read_prefline),
    "hh-rlhf": Format(lambda row: "prompt" not in row and any(_is_transcript(row.get(side)) for side in ("chosen", "rejected")), _read_hh),
    "trl": Format(lambda row: True, _read_trl),
}
"""By the name in data.format, in the order in which "auto" asks them."""


def read_row(row: Any, format: str) -> Comparison | Demonstration:
    """The record that a row, as parsed from JSON, holds. format: a name in FORMATS, or "auto" to tell by the row's shape."""
    if not isinstance(row, dict):
        raise Unusable(f"the row is {kind_of(row)}, expected an object")
    if format != "auto":
        return FORMATS[format].read(row)
    return next(known for known in FORMATS.values() if known.recognises(row)).read(row)
