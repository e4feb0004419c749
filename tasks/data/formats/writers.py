"""Records as rows of the formats that other tools read: one small writer each.

A writer says what a format can't hold (Unheld). Where a format asks on which side the chosen answer stood and that is not
known, the record's id decides: half stand on each side, so that nothing looks like a preference for one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from tasks.data.formats.reading import Row
from tasks.data.records import Comparison, Demonstration, Message, digest

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
TEXT, NUMBER, WHOLE, FLAG, NAMES = pa.string(), pa.float64(), pa.int64(), pa.bool_(), pa.list_(pa.string())


class Unheld(Exception):
    """What of a record a format has no place for."""


@dataclass(frozen=True)
class Question:
    """Two answers to one prompt that nobody has compared yet, in the order to show them."""

    id: str
    prompt: list[Message]
    first: str
    second: str


@dataclass(frozen=True)
class Writer:
    """write: a record as a row. columns: of its tables, or None where a row does not fit into a table.

    ask: a question as the row of a task that waits for its label; None where a row has no place for one that has none yet.
    """

    write: Callable[[Comparison | Demonstration], Row]
    columns: dict[str, pa.DataType] | None
    ask: Callable[[Question], Row] | None = None


def _comparison(record: Comparison | Demonstration) -> Comparison:
    if isinstance(record, Demonstration):
        raise Unheld("a demonstration, where the format holds comparisons")
    return record


def _strict(record: Comparison | Demonstration) -> Comparison:
    """A comparison in which one answer is the better one."""
    comparison = _comparison(record)
    if comparison.tie:
        raise Unheld("a tie")
    return comparison


def _demonstration(record: Comparison | Demonstration) -> Demonstration:
    if isinstance(record, Comparison):
        raise Unheld("a comparison, where the format holds demonstrations")
    return record


def _one(messages: list[Message], role: str) -> str:
    """The text of the only message."""
    if len(messages) != 1:
        raise Unheld("a prompt of several turns" if role == "user" else "an answer of several messages")
    if messages[0]["role"] != role:
        raise Unheld(f"a turn that is not the {role}'s, where only that is held")
    return messages[0]["content"]


def _shown(comparison: Comparison) -> tuple[str, str, int]:
    """The two answers as shown, and which is better: -1 the first, 1 the second, 0 neither."""
    chosen, rejected = _one(comparison.chosen, "assistant"), _one(comparison.rejected, "assistant")
    if comparison.tie:
        return chosen, rejected, 0
    first = int(digest(comparison.id), 16) % 2 == 0 if comparison.chosen_first is None else comparison.chosen_first
    return (chosen, rejected, -1) if first else (rejected, chosen, 1)


def _prefline(record: Comparison | Demonstration) -> Row:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _trl(record: Comparison | Demonstration) -> Row:
    if isinstance(record, Demonstration):
        return {"prompt": record.prompt, "completion": record.answer}
    comparison = _strict(record)
    return {"prompt": comparison.prompt, "chosen": comparison.chosen, "rejected": comparison.rejected}


def _hh(record: Comparison | Demonstration) -> Row:
    comparison = _strict(record)
    return {side: _transcript(comparison.prompt + getattr(comparison, side)) for side in ("chosen", "rejected")}


def _transcript(messages: list[Message]) -> str:
    speakers = {"user": "Human", "assistant": "Assistant"}
    if not all(message["role"] in speakers for message in messages):
        raise Unheld("a turn that is neither the user's nor the assistant's")
    return "".join(f"\n\n{speakers[message['role']]}: {message['content']}" for message in messages)


def _vertex(record: Comparison | Demonstration) -> Row:
    comparison = _strict(record)
    first, second, better = _shown(comparison)
    return {"input_text": _one(comparison.prompt, "user"), "candidate_0": first, "candidate_1": second, "choice": int(better > 0)}


def _ultrafeedback(record: Comparison | Demonstration) -> Row:
    """Scores are a model's in this format, so that a person's strength has no place in it."""
    comparison = _comparison(record)
    if comparison.tie and comparison.labels_by != "ai":
        raise Unheld("a tie that no model gave")
    asked = next((message["content"] for message in comparison.prompt if message["role"] == "user"), None)
    if asked is None:
        raise Unheld("a prompt without a turn of the user's")
    row: Row = {"prompt": asked, "prompt_id": comparison.group_id}
    row |= {side: comparison.prompt + getattr(comparison, side) for side in ("chosen", "rejected")}
    if comparison.labels_by == "ai" and (comparison.tie or comparison.strength):
        row |= {"score_chosen": 0.0 if comparison.tie else comparison.strength, "score_rejected": 0.0}
    return row


def _helpsteer3(record: Comparison | Demonstration) -> Row:
    """An unknown strength is written as 1, the least there is."""
    comparison = _comparison(record)
    first, second, better = _shown(comparison)
    strength = 1.0 if comparison.strength is None else comparison.strength
    if not comparison.tie and not 0 < strength <= 3:
        raise Unheld("a strength beyond 3")
    return {
        "domain": comparison.tags[0] if comparison.tags else None,
        "language": comparison.language,
        "context": comparison.prompt,
        "response1": first,
        "response2": second,
        "overall_preference": better * strength,
    }


def _helpsteer3_task(question: Question) -> Row:
    """The preference, from -3 to 3, is for the annotator to fill in."""
    return {"context": _as_shown(question.prompt), "response1": question.first, "response2": question.second, "overall_preference": None}


def _argilla_task(question: Question) -> Row:
    return {"id": question.id, "prompt": question.prompt, "response1": question.first, "response2": question.second}


def _label_studio_task(question: Question) -> Row:
    data = {"prompt": _as_shown(question.prompt), "answer1": question.first, "answer2": question.second}
    return {"data": data, "annotations": [], "predictions": []}


def _as_shown(prompt: list[Message]) -> str | list[Message]:
    lone = len(prompt) == 1 and prompt[0]["role"] == "user"
    return prompt[0]["content"] if lone else prompt


def _argilla(record: Comparison | Demonstration) -> Row:
    comparison = _comparison(record)
    first, second, better = _shown(comparison)
    value = {-1: "response1", 0: "tie", 1: "response2"}[better]
    row: Row = {"id": comparison.id, "prompt": comparison.prompt, "response1": first, "response2": second}
    if comparison.labels_by == "ai":
        return row | {"preference.suggestion": value, "preference.suggestion.agent": comparison.annotator}
    users = [comparison.annotator] if comparison.annotator else None
    return row | {"preference.responses": [value], "preference.responses.users": users, "preference.responses.status": ["submitted"]}


def _label_studio(record: Comparison | Demonstration) -> Row:
    """A task as Label Studio imports and exports it, for a Pairwise tag called pref over answer1 and answer2."""
    comparison = _comparison(record)
    first, second, better = _shown(comparison)
    data = {"prompt": _as_shown(comparison.prompt), "answer1": first, "answer2": second, "language": comparison.language}
    selected = {"selected": "left" if better < 0 else "right"}
    result = [{"type": "pairwise", "from_name": "pref", "to_name": "pref", "value": selected}] if better else []
    row: Row = {"data": _filled(data), "annotations": [], "predictions": []}
    if comparison.labels_by == "ai":
        return row | {"predictions": [_filled({"model_version": comparison.annotator, "result": result})]}
    who = comparison.annotator
    annotation = {
        "completed_by": int(who) if who and who.isascii() and who.isdigit() and str(int(who)) == who else who,
        "was_cancelled": False,
        "lead_time": comparison.seconds,
        "created_at": comparison.created_at,
        "result": result,
    }
    return row | {"annotations": [_filled(annotation)]}


def _filled(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _messages(record: Comparison | Demonstration) -> Row:
    demonstration = _demonstration(record)
    return {"messages": demonstration.prompt + demonstration.answer}


def _sharegpt(record: Comparison | Demonstration) -> Row:
    demonstration = _demonstration(record)
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = demonstration.prompt + demonstration.answer
    if not all(turn["role"] in speakers for turn in turns):
        raise Unheld("a turn that is neither the system's, the user's nor the assistant's")
    return {"conversations": [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in turns]}


def _alpaca(record: Comparison | Demonstration) -> Row:
    demonstration = _demonstration(record)
    told = [message["content"] for message in demonstration.prompt[:1] if message["role"] == "system"]
    return {
        "system": told[0] if told else None,
        "instruction": _one(demonstration.prompt[len(told) :], "user"),
        "input": None,
        "output": _one(demonstration.answer, "assistant"),
    }


PAIR = {"chosen": MESSAGES, "rejected": MESSAGES}
SIDES = {"response1": TEXT, "response2": TEXT}
DETAILS = dict.fromkeys(("source", "source_id", "group_id", "ranking", "annotator", "labels_by", "language", "created_at", "split"), TEXT)
DETAILS |= {"strength": NUMBER, "seconds": NUMBER, "tie": FLAG, "chosen_first": FLAG, "tags": NAMES, "contract_version": WHOLE}

WRITERS: dict[str, Writer] = {
    "prefline": Writer(_prefline, {"id": TEXT, "prompt": MESSAGES, **PAIR, "answer": MESSAGES, **DETAILS}),
    "trl": Writer(_trl, {"prompt": MESSAGES, **PAIR, "completion": MESSAGES}),
    "hh-rlhf": Writer(_hh, {"chosen": TEXT, "rejected": TEXT}),
    "vertex": Writer(_vertex, {"input_text": TEXT, "candidate_0": TEXT, "candidate_1": TEXT, "choice": WHOLE}),
    "ultrafeedback": Writer(_ultrafeedback, {"prompt": TEXT, "prompt_id": TEXT, **PAIR, "score_chosen": NUMBER, "score_rejected": NUMBER}),
    "helpsteer3": Writer(
        _helpsteer3, {"domain": TEXT, "language": TEXT, "context": MESSAGES, **SIDES, "overall_preference": NUMBER}, _helpsteer3_task
    ),
    "argilla": Writer(
        _argilla,
        {
            "id": TEXT,
            "prompt": MESSAGES,
            **SIDES,
            "preference.responses": NAMES,
            "preference.responses.users": NAMES,
            "preference.responses.status": NAMES,
            "preference.suggestion": TEXT,
            "preference.suggestion.agent": TEXT,
        },
        _argilla_task,
    ),
    "label-studio": Writer(_label_studio, None, _label_studio_task),
    "messages": Writer(_messages, {"messages": MESSAGES}),
    "sharegpt": Writer(_sharegpt, {"conversations": pa.list_(pa.struct([("from", TEXT), ("value", TEXT)]))}),
    "alpaca": Writer(_alpaca, {"system": TEXT, "instruction": TEXT, "input": TEXT, "output": TEXT}),
}
"""By the name that the reader of the same format has."""
