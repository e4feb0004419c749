"""Exports of Label Studio (JSON): two texts and a choice (Pairwise), or a list in an order (Ranker).

The server checks nothing of what it is sent, so everything is checked here. Nothing of a person is kept but a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.data.formats.rankings import Ranked, compared
from tasks.data.formats.reading import Found, Reading, Row, Unusable
from tasks.data.formats.sides import answers_of, asked
from tasks.data.formats.values import kind_of, language, present, reply, said, seconds, verdict, when
from tasks.data.records import digest

VERDICTS = ("pairwise", "ranker")
BETTER = {"left": -1, "right": 1}


def is_label_studio(row: Row, reading: Reading) -> bool:
    return isinstance(row.get("data"), dict) and ("annotations" in row or "predictions" in row)


def read_label_studio(row: Row, reading: Reading) -> Iterator[Found]:
    """One verdict for each annotation; what a model predicted counts as a label by an AI."""
    data = present(row, "data")
    if not isinstance(data, dict):
        raise Unusable(f'"data" is {kind_of(data)}, expected an object')
    annotations = _listed(row, "annotations")
    predictions = [each for each in _listed(row, "predictions") if isinstance(each, dict)]  # some exports list their numbers only
    if not annotations and not predictions:
        raise Unusable("nobody has annotated this task", skipped=True)
    for field, given in (("annotations", annotations), ("predictions", predictions)):
        for annotation in given:
            try:
                yield from _judged(data, annotation, field, reading)
            except Unusable as fault:
                yield fault


def _listed(row: Row, field: str) -> list[Any]:
    value = row.get(field) or []
    if not isinstance(value, list):
        raise Unusable(f'"{field}" is {kind_of(value)}, expected a list')
    return value


def _judged(data: Row, annotation: Any, field: str, reading: Reading) -> list[Found]:
    """What one annotation says. Raises Unusable where that is nothing."""
    if not isinstance(annotation, dict):
        raise Unusable(f'"{field}" holds {kind_of(annotation)}, expected an object')
    if annotation.get("was_cancelled") is True:
        raise Unusable("skipped by the annotator", skipped=True)
    result = annotation.get("result")
    if not isinstance(result, list):
        raise Unusable(f'"{field}.result" is {kind_of(result)}, expected a list')
    details: dict[str, Any] = {"labels_by": "people" if field == "annotations" else "ai", "language": language(data)}
    details["annotator"] = _who(annotation, field)
    if annotation.get("lead_time") is not None:
        details["seconds"] = seconds(annotation["lead_time"], f"{field}.lead_time")
    if annotation.get("created_at") is not None:
        details["created_at"] = when(annotation["created_at"], f"{field}.created_at")
    item = _verdict(result, field, reading)
    if item is None and field == "predictions":
        raise Unusable('"predictions.result" is empty')
    if (item or {}).get("type", "ranker" if _items_field(data, reading) else "pairwise") == "ranker":
        return list(_ranked(data, item and item["value"], f"{field}.value", annotation, reading, details))
    better = 0 if item is None else _better(item["value"], f"{field}.value")
    left, right = _two(data, item, reading)
    return [verdict(asked(data, reading), reply(data[left], left), reply(data[right], right), better, **details)]


def _who(annotation: Row, field: str) -> str | None:
    """Who annotated. Of an object (with a person's name and mail) only the number is kept; a mail address becomes a code."""
    who = annotation.get("completed_by", annotation.get("model_version"))
    if isinstance(who, dict):
        who = who.get("id")
    if who is None:
        return None
    if isinstance(who, int) and not isinstance(who, bool):
        return str(who)
    found = said(who, f"{field}.completed_by")
    return digest("annotator", found) if "@" in found else found


def _verdict(result: list[Any], field: str, reading: Reading) -> Row | None:
    """The one control that holds the verdict; None where the annotator left it empty."""
    if not all(isinstance(item, dict) for item in result):
        raise Unusable(f'"{field}.result" holds something that is not an object')
    control = reading.fields.get("control")
    found = [item for item in result if item.get("type") in VERDICTS and control in (None, item.get("from_name"))]
    if len(found) > 1:
        raise Unusable(f'"{field}.result" holds {len(found)} verdicts: name the control that counts with --field control=NAME')
    if not found and result:
        kinds = ", ".join(str(item.get("type")) for item in result)
        raise Unusable(f'"{field}.result" has no control that compares answers ({kinds[:60]})')
    if found and not isinstance(found[0].get("value"), dict):
        raise Unusable(f'"{field}.value" is {kind_of(found[0].get("value"))}, expected an object')
    return found[0] if found else None


def _better(value: Row, field: str) -> int:
    selected = value.get("selected")
    if not isinstance(selected, str) or selected not in BETTER:
        raise Unusable(f'"{field}.selected" is neither left nor right ({str(selected)[:40]})')
    return BETTER[selected]


def _two(data: Row, item: Row | None, reading: Reading) -> tuple[str, str]:
    """The names of the left and the right text. Older exports say them where newer ones name the control."""
    names = str((item or {}).get("to_name")).split(",")
    if "left" in reading.fields or len(names) != 2 or any(data.get(name) is None for name in names):
        names = answers_of(data, reading)
    if len(names) != 2:
        raise Unusable(
            f"{len(names)} texts where two are compared: name them with --field left=NAME --field right=NAME ({', '.join(names)[:60]})"
        )
    return names[0], names[1]


def _items_field(data: Row, reading: Reading) -> str | None:
    """The field that holds the answers to rank: a list of objects with ids."""
    if "items" in reading.fields:
        return reading.fields["items"]
    return next((field for field, value in data.items() if isinstance(value, list) and value and _is_item(value[0])), None)


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and "id" in value and "role" not in value


def _ranked(data: Row, value: Row | None, field: str, annotation: Row, reading: Reading, details: dict[str, Any]) -> Iterator[Found]:
    """Comparisons from an order of items. Items in one bucket are equals; only the user knows the order of several buckets."""
    order = None if value is None else value.get("ranker")
    if isinstance(order, dict) and len(order) > 1:
        places = _buckets(order, f"{field}.ranker", reading)
    else:
        listed = next(iter(order.values()), None) if isinstance(order, dict) else order
        if not listed:
            raise Unusable("the ranking is empty")
        if not isinstance(listed, list):
            raise Unusable(f'"{field}.ranker" is {kind_of(listed)}, expected a list')
        places = [[name] for name in listed]
    shown = _items(data, reading)
    ranked: list[Ranked] = []
    for place, names in enumerate(places):
        for name in names:
            if str(name) not in shown:
                raise Unusable(f'"{field}.ranker" names an item that the task has not, or names it twice ({str(name)[:40]})')
            position, answer = shown.pop(str(name))
            ranked.append(Ranked(reply(answer, "items"), place, position))
    if len(ranked) < 2:
        raise Unusable("the ranking has fewer than two answers")
    yield from compared(asked(data, reading), ranked, str(annotation.get("id")), **details)


def _buckets(order: Row, field: str, reading: Reading) -> list[list[Any]]:
    names = [name.strip() for name in reading.fields.get("buckets", "").split(",") if name.strip()]
    if sorted(names) != sorted(order):
        given = ", ".join(map(str, order))[:60]
        raise Unusable(f'"{field}" has several lists: say which is best with --field buckets=BEST,...,WORST ({given})')
    buckets = [order[name] for name in names]
    if not all(isinstance(bucket, list) for bucket in buckets):
        raise Unusable(f'"{field}" holds something that is not a list')
    return buckets


def _items(data: Row, reading: Reading) -> dict[str, tuple[int, Any]]:
    """By id: the place of an item on the screen, and its text."""
    field = _items_field(data, reading)
    items = data.get(field) if field else None
    if not isinstance(items, list) or not all(_is_item(item) for item in items):
        raise Unusable("no field holds a list of items with ids: name it with --field items=NAME")
    texts = ("body", "text", "html", "content", "title")
    return {str(item["id"]): (at, next((item[key] for key in texts if item.get(key)), None)) for at, item in enumerate(items)}
