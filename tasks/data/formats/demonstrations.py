"""Demonstrations: conversations that end with an answer to learn from, in the shapes that SFT sets come in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.data.formats.reading import Found, Reading, Row, Unusable
from tasks.data.formats.sides import asked, system, task
from tasks.data.formats.values import after, demonstration, kind_of, labels, messages, present, reply, said, text
from tasks.data.records import Demonstration, Message, assistant, user

ANSWERS = ("completion", "answer", "response")
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""What the sharegpt sets call who speaks."""


def _ending_with_an_answer(conversation: list[Message], field: str) -> list[Demonstration]:
    if len(conversation) < 2 or conversation[-1]["role"] != "assistant":
        raise Unusable(f'"{field}" does not end with an answer by the assistant')
    return [demonstration(conversation[:-1], conversation[-1:])]


def read_messages(row: Row, reading: Reading) -> list[Demonstration]:
    return _ending_with_an_answer(messages(present(row, "messages"), "messages"), "messages")


def is_completion(row: Row, reading: Reading) -> bool:
    return "label" not in row and any(row.get(field) is not None for field in ANSWERS) and "chosen" not in row


def read_completion(row: Row, reading: Reading) -> list[Demonstration]:
    """A prompt and its answer, each as text or messages."""
    field = next((field for field in ANSWERS if row.get(field) is not None), "completion")
    prompt = asked(row, reading)
    return [demonstration([*system(row), *prompt], after(prompt, reply(present(row, field), field)))]


def read_alpaca(row: Row, reading: Reading) -> list[Demonstration]:
    """An instruction, perhaps with input, system text and earlier turns, and its output."""
    before = system(row)
    earlier = row.get("history") or []
    if not isinstance(earlier, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in earlier):
        raise Unusable('"history" is not a list of questions and their answers')
    for turn in earlier:
        before += [user(said(turn[0], "history")), assistant(said(turn[1], "history"))]
    return [demonstration(before + task(row), [assistant(said(present(row, "output"), "output"))])]


def read_sharegpt(row: Row, reading: Reading) -> list[Demonstration]:
    listed = present(row, "conversations")
    if not isinstance(listed, list):
        raise Unusable(f'"conversations" is {kind_of(listed)}, expected a list')
    return _ending_with_an_answer([_turn(turn, number) for number, turn in enumerate(listed, 1)], "conversations")


def _turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise Unusable(f'"conversations" holds {kind_of(turn)}, expected an object (turn {number})')
    speaker = text(turn.get("from", turn.get("role")), "conversations.from")
    if speaker.lower() not in SPEAKERS:
        raise Unusable(f'"conversations.from" is nobody we know ({speaker[:40]})')
    return {"role": SPEAKERS[speaker.lower()], "content": said(turn.get("value", turn.get("content")), "conversations.value")}


def read_self_instruct(row: Row, reading: Reading) -> Iterator[Found]:
    """A task of Self-Instruct (Wang et al. 2023): one demonstration for each of its instances."""
    instances = present(row, "instances")
    if not isinstance(instances, list) or not instances:
        raise Unusable('"instances" is not a list of inputs and outputs')
    for instance in instances:
        if not isinstance(instance, dict):
            yield Unusable(f'"instances" holds {kind_of(instance)}, expected an object')
            continue
        try:
            prompt = task({"instruction": present(row, "instruction"), "input": instance.get("input")})
            yield demonstration(prompt, [assistant(said(present(instance, "output"), "output"))])
        except Unusable as fault:
            yield fault


def read_mt_bench(row: Row, reading: Reading) -> list[Demonstration]:
    """The questions of MT-bench (Zheng et al. 2023). Those with reference answers show how they are answered, as far as
    they are."""
    turns, answers = present(row, "turns"), row.get("reference")
    if answers is None:
        raise Unusable("a question without an answer")
    if not isinstance(turns, list) or not isinstance(answers, list) or len(answers) != len(turns) or not turns:
        raise Unusable('"turns" and "reference" are not lists of one length')
    conversation: list[Message] = []
    for turn, answer in zip(turns, answers, strict=True):
        if answer == "" and conversation:
            break
        conversation += [user(said(turn, "turns")), assistant(said(answer, "reference"))]
    return [demonstration(conversation[:-1], conversation[-1:], tags=labels(row, "category"))]
