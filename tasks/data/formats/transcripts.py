"""Two texts or conversations that hold their prompt: transcripts as in hh-rlhf, and what they begin with alike."""

from __future__ import annotations

import re
from typing import Any

from tasks.data.formats.reading import Reading, Row, Unusable
from tasks.data.formats.values import comparison, present, question, text
from tasks.data.records import Comparison, Message, assistant, user

MARKER = re.compile(r"\n\n(Human|Assistant):(?: |\Z)")
"""Where a turn of a transcript begins. "Human:" anywhere else is part of what was said."""
SPEAKERS = ("Human: ", "Assistant: ")
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(SPEAKERS) or MARKER.search(value) is not None)


def turns(value: Any, field: str, open_end: bool = False) -> list[Message]:
    """The turns of a transcript. open_end: it may end where the assistant is about to speak."""
    whole = text(value, field)
    before, *parts = MARKER.split("\n\n" + whole if whole.startswith(SPEAKERS) else whole)
    if not parts:
        raise Unusable(f'"{field}" has no "\\n\\nHuman: " or "\\n\\nAssistant: " in it')
    if before.strip():
        raise Unusable(f'"{field}" has text before its first turn')
    roles = [ROLES[part] for part in parts[::2]]
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


def prompt_of(value: Any) -> list[Message]:
    """A prompt: messages, a transcript that may end where the assistant is about to speak, or the text of one turn."""
    if isinstance(value, str) and MARKER.match(value):
        return turns(value, "prompt", open_end=True)
    return question(value, "prompt")


def by_turns(chosen: list[Message], rejected: list[Message]) -> Comparison:
    """Two conversations whose prompt is their longest common run of turns that leaves each a reply."""
    most = min(len(chosen), len(rejected)) - 1
    common = 0
    while common < most and chosen[common] == rejected[common]:
        common += 1
    if not most:
        raise Unusable("there is no prompt before the reply")
    if not common or any(message["role"] == "user" for message in chosen[common:] + rejected[common:]):
        raise Unusable('the prompts of "chosen" and "rejected" differ')
    return comparison(chosen[:common], chosen[common:], rejected[common:])


def by_words(chosen: str, rejected: str) -> Comparison:
    """Two texts whose prompt is what they begin with alike, up to the last word boundary that leaves each an answer."""
    alike = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    boundary = next((at for at in range(alike, 0, -1) if chosen[at - 1].isspace()), 0)
    if not boundary:
        raise Unusable('the prompts of "chosen" and "rejected" differ')
    return comparison([user(chosen[:boundary].strip())], [assistant(chosen[boundary:])], [assistant(rejected[boundary:])])


def is_hh(row: Row, reading: Reading) -> bool:
    return row.get("prompt") is None and any(is_transcript(row.get(side)) for side in ("chosen", "rejected"))


def read_hh(row: Row, reading: Reading) -> list[Comparison]:
    """Two transcripts, as in Anthropic's helpful and harmless sets (Bai et al. 2022)."""
    return [by_turns(turns(present(row, "chosen"), "chosen"), turns(present(row, "rejected"), "rejected"))]
