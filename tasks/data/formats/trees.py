"""Message trees of Open Assistant (Köpf et al. 2023): replies to one message, ranked by the crowd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.data.formats.rankings import Ranked, compared
from tasks.data.formats.reading import Found, Reading, Row, Unusable
from tasks.data.formats.values import kind_of, labels, number, present, said
from tasks.data.records import Message, assistant

ROLES = {"prompter": "user", "assistant": "assistant"}


def is_oasst(row: Row, reading: Reading) -> bool:
    return isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def read_oasst(row: Row, reading: Reading) -> Iterator[Found]:
    """A ranking for each message whose replies by the assistant are ranked, with the conversation up to it as the prompt."""
    root = present(row, "prompt")
    open_ends: list[tuple[Any, list[Message]]] = [(root, [])]
    empty = True
    while open_ends:  # a stack: a tree may be deeper than Python calls
        message, before = open_ends.pop()
        try:
            conversation = [*before, _message(message)]
            replies = message.get("replies") or []
            if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
                raise Unusable('"replies" is not a list of messages')
            open_ends += [(reply, conversation) for reply in reversed(replies)]
            ranked = [reply for reply in replies if reply.get("rank") is not None and reply.get("role") == "assistant"]
            if len(ranked) > 1:
                order = [Ranked([assistant(said(r.get("text"), "text"))], number(r["rank"], "rank")) for r in ranked]
                order.sort(key=lambda one: one.place)
                yield from compared(conversation, order, "", labels_by="people", language=next(iter(labels(message, "lang")), None))
                empty = False
        except Unusable as fault:
            if message is root:
                raise
            empty = False
            yield fault
    if empty:
        raise Unusable("no message has two ranked replies")


def _message(value: Any) -> Message:
    if not isinstance(value, dict):
        raise Unusable(f"a message is {kind_of(value)}, expected an object")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Unusable(f'"role" is neither prompter nor assistant ({str(role)[:20]})')
    return {"role": ROLES[role], "content": said(value.get("text"), "text")}
