"""Records of Argilla 2, flattened ("preference.responses") or nested ("responses"): a choice of one answer, or a ranking."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tasks.data.formats.rankings import Ranked, compared
from tasks.data.formats.reading import Found, Reading, Row, Unusable
from tasks.data.formats.sides import answers_of, asked
from tasks.data.formats.values import language, name, number, present, reply, verdict
from tasks.data.records import LabelsBy, Message

TIES = frozenset({"tie", "equal", "same", "both", "neither", "draw"})
ENDING = re.compile(r"[0-9]+|[a-hA-H]$")
"""What tells response1 from response2, where an option of the question is called r1 or 1."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one annotator, or a model, answered to the question."""

    value: Any
    who: Any = None
    status: str = "submitted"
    by: LabelsBy = "people"


def is_argilla(row: Row, reading: Reading) -> bool:
    return any(key.endswith((".responses", ".suggestion")) for key in row) or (
        isinstance(row.get("fields"), dict) and ("responses" in row or "suggestions" in row)
    )


def read_argilla(row: Row, reading: Reading) -> Iterator[Found]:
    """One verdict for each response that was submitted; a suggestion is a label by an AI."""
    data = row["fields"] if isinstance(row.get("fields"), dict) else row
    names = answers_of(data, reading)
    prompt, answers = asked(data, reading), [reply(present(data, field), field) for field in names]
    question = _question(row, reading)
    opinions = _opinions(row, question)
    if not opinions:
        raise Unusable(f'nobody has answered "{question}"', skipped=True)
    for opinion in opinions:
        try:
            yield from _judged(opinion, question, prompt, names, answers, language(data))
        except Unusable as fault:
            yield fault


def _question(row: Row, reading: Reading) -> str:
    """The question whose answers count."""
    if "question" in reading.fields:
        return reading.fields["question"]
    parts = [row[part] for part in ("responses", "suggestions") if isinstance(row.get(part), dict)]
    nested = [key for part in parts for key in part]
    flat = [key.removesuffix(".responses") for key in row if key.endswith(".responses")]
    flat += [key.removesuffix(".suggestion") for key in row if key.endswith(".suggestion")]
    known = list(dict.fromkeys([*nested, *flat]))
    likely = [question for question in known if re.search("prefer|rank|better|best|choice|compar", question)] or known
    if len(likely) != 1:
        shown = ", ".join(known)[:60] or "none"
        raise Unusable(f"which question compares the answers? Name it with --field question=NAME ({shown})")
    return likely[0]


def _opinions(row: Row, question: str) -> list[Opinion]:
    found: list[Opinion] = []
    nested = row.get("responses")
    if isinstance(nested, dict):
        responses = nested.get(question) or []
        if not isinstance(responses, list) or not all(isinstance(response, dict) for response in responses):
            raise Unusable(f'"responses.{question}" is not a list of objects')
        for response in responses:
            found.append(Opinion(response.get("value"), response.get("user_id"), str(response.get("status") or "submitted")))
    given = row.get(f"{question}.responses")
    if given is not None:
        users, states = row.get(f"{question}.responses.users"), row.get(f"{question}.responses.status")
        lists = [value for value in (given, users, states) if value is not None]
        if not all(isinstance(value, list) and len(value) == len(given) for value in lists):
            raise Unusable(f'"{question}.responses", its users and its status are not lists of one length')
        for at, value in enumerate(given):
            found.append(Opinion(value, users[at] if users else None, str(states[at]) if states else "submitted"))
    suggestions = row.get("suggestions")
    suggested = suggestions.get(question) if isinstance(suggestions, dict) else None
    if isinstance(suggested, dict) and suggested.get("value") is not None:
        found.append(Opinion(suggested["value"], suggested.get("agent"), by="ai"))
    if row.get(f"{question}.suggestion") is not None:
        found.append(Opinion(row[f"{question}.suggestion"], row.get(f"{question}.suggestion.agent"), by="ai"))
    return found


def _judged(
    opinion: Opinion, question: str, prompt: list[Message], names: list[str], answers: list[list[Message]], language: str | None
) -> list[Found]:
    if opinion.status != "submitted":
        raise Unusable(f"a response that was not submitted ({opinion.status[:20]})", skipped=True)
    annotator = None if opinion.who is None else name(opinion.who, f"{question}.responses.users")
    details: dict[str, Any] = {"annotator": annotator, "labels_by": opinion.by, "language": language}
    field = f"{question}.responses"
    if isinstance(opinion.value, list):
        places = _places(opinion.value, field)
        ranked = [Ranked(answers[_side(value, names, field)], place, _side(value, names, field)) for place, value in places]
        if len({one.shown for one in ranked}) < len(ranked) or len(ranked) < 2:
            raise Unusable(f'"{field}" ranks fewer than two answers, or one twice')
        return list(compared(prompt, ranked, "", **details))
    if len(answers) != 2:
        raise Unusable(f'"{field}" chooses one of {len(answers)} answers: no comparison of two')
    if isinstance(opinion.value, str) and opinion.value.lower() in TIES:
        return [verdict(prompt, answers[0], answers[1], 0, **details)]
    better = 1 if _side(opinion.value, names, field) else -1
    return [verdict(prompt, answers[0], answers[1], better, **details)]


def _places(value: list[Any], field: str) -> list[tuple[float, Any]]:
    """A ranking as (place, name): names best first, objects best first, or objects with ranks."""
    found = []
    for at, item in enumerate(value, 1):
        if isinstance(item, dict):
            rank = item.get("rank")
            found.append((float(at) if rank is None else number(rank, f"{field}.rank"), item.get("value")))
        else:
            found.append((float(at), item))
    return found


def _side(value: Any, names: list[str], field: str) -> int:
    """Which answer an option of the question means: by the field's name, or by the number or letter that both end in."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        shown = str(value)
        if shown in names:
            return names.index(shown)
        if shown in ("left", "right") and len(names) == 2:
            return ("left", "right").index(shown)
        endings = [_ending(option) for option in names]
        if _ending(shown) is not None and endings.count(_ending(shown)) == 1:
            return endings.index(_ending(shown))
    raise Unusable(f'"{field}" names none of {", ".join(names)} ({str(value)[:40]})')


def _ending(name: str) -> str | None:
    found = ENDING.findall(name)
    return found[-1].lower() if found else None
