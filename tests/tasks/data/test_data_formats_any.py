"""A sound row of every format, and what becomes of it when any one of its values is another: records or reasons."""

import copy
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.formats import FORMATS, Rating, Reading, Unusable, read_row
from tasks.data.records import Comparison, Demonstration, assistant, user

TALK = "\n\nHuman: Sky?\n\nAssistant: "
ASKED, BLUE, SQUARE = [user("Sky?")], [assistant("Blue.")], [assistant("Square.")]
CHOICE = {"type": "pairwise", "from_name": "pref", "to_name": "pref", "value": {"selected": "left"}}
ORDER = {"type": "ranker", "from_name": "rank", "to_name": "answers", "value": {"ranker": {"rank": ["b", "a", "c"]}}}
ITEMS = [{"id": "a", "body": "Blue."}, {"id": "b", "body": "Grey."}, {"id": "c", "body": "Square."}]
ANNOTATION = {"id": 1, "completed_by": {"id": 3}, "was_cancelled": False, "lead_time": 9.1, "created_at": "2026-11-01", "result": [CHOICE]}
REPLIES = [{"text": "Blue.", "role": "assistant", "rank": 0}, {"text": "Square.", "role": "assistant", "rank": 1, "replies": []}]

SOUND = [
    (
        "prefline",
        {"prompt": ASKED, "chosen": BLUE, "rejected": SQUARE, "tie": False, "strength": 1, "tags": ["a"], "seconds": 2, "split": "test"},
    ),
    ("prefline", {"prompt": "Sky?", "answer": "Blue.", "contract_version": 1, "language": "en", "id": 3}),
    ("hh-rlhf", {"chosen": TALK + "Blue.", "rejected": TALK + "Square.", "extra": 1}),
    (
        "ultrafeedback",
        {
            "prompt": "Sky?",
            "chosen": ASKED + BLUE,
            "rejected": ASKED + SQUARE,
            "score_chosen": 8.5,
            "score_rejected": 2,
            "prompt_id": "p",
            "system": "x",
        },
    ),
    (
        "label-studio",
        {
            "id": 1,
            "data": {"prompt": "Sky?", "answer1": "Blue.", "answer2": "Square.", "language": "en"},
            "annotations": [ANNOTATION],
            "predictions": [{"model_version": "m", "result": [CHOICE]}],
        },
    ),
    ("label-studio", {"data": {"prompt": "Sky?", "items": ITEMS}, "annotations": [ANNOTATION | {"result": [ORDER]}], "meta": {}}),
    (
        "argilla",
        {
            "prompt": "Sky?",
            "response1": "Blue.",
            "response2": "Square.",
            "preference.responses": ["response1", ["r1", {"value": "r2"}], [{"rank": 1, "value": "r2"}, {"rank": 1, "value": "r1"}]],
            "preference.responses.users": ["a", 2, None],
            "preference.responses.status": ["submitted", "submitted", "draft"],
            "preference.suggestion": "response2",
        },
    ),
    (
        "argilla",
        {
            "fields": {"prompt": ASKED, "response1": "Blue.", "response2": "Square."},
            "responses": {"preference": [{"value": "response1", "user_id": "u"}]},
            "suggestions": {"preference": {"value": "response2", "agent": "m"}},
        },
    ),
    (
        "summarize",
        {
            "info": {"post": "Long.", "title": "T", "subreddit": "pets"},
            "summaries": [{"text": "Short."}, {"text": "Shorter."}],
            "choice": 1,
            "worker": "w",
            "batch": "b",
            "split": "valid1",
            "extra": {"confidence": 7},
        },
    ),
    ("helpsteer2", {"prompt": "Sky?", "response": "Blue.", "helpfulness": 4, "verbosity": 1, "split": "train", "annotator": 1}),
    (
        "helpsteer2-preference",
        {"prompt": "Sky?", "response_1": "Blue.", "response_2": "Square.", "preference_strength": -2, "split": "val"},
    ),
    (
        "helpsteer3",
        {"domain": "d", "language": "l", "context": ASKED, "response1": "Blue.", "response2": "Square.", "overall_preference": 0},
    ),
    ("vertex", {"input_text": "Sky?", "candidate_0": "Blue.", "candidate_1": "Square.", "choice": 0}),
    (
        "pandalm",
        {
            "instruction": "Sky?",
            "input": "Up",
            "response1": True,
            "response2": "Blue.",
            "annotator1": 0,
            "annotator2": 1,
            "annotator3": 2,
            "motivation_app": "x",
        },
    ),
    (
        "fine-grained",
        {f"prediction {place}": f"Answer {place}." for place in range(1, 5)}
        | {
            "question": "Sky?",
            "passages": [["T", "One."]],
            "preference": [0, 1, 2, 0, 1, 2],
            "feedback": {"corrected-prediction": "Blue."},
        },
    ),
    ("llmbar", {"input": "Sky?", "output_1": "Blue.", "output_2": "Square.", "label": 1}),
    ("oasst", {"prompt": {"text": "Sky?", "role": "prompter", "lang": "en", "replies": REPLIES}, "message_tree_id": "t"}),
    ("self-instruct", {"instruction": "Sky?", "instances": [{"input": "", "output": "Blue."}, {"input": "Up", "output": "Blue."}]}),
    ("mt-bench", {"question_id": 1, "category": "c", "turns": ["Hi", "Sky?"], "reference": ["Hello!", "Blue."]}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}]}),
    ("alpaca", {"instruction": "Sky?", "input": "Up", "output": "Blue.", "system": "Be kind.", "history": [["Hi", "Hello!"]]}),
    ("messages", {"messages": [*ASKED, *BLUE], "extra": "x"}),
    ("completion", {"prompt": "Sky?", "response": "Blue.", "system": "Be kind."}),
    ("trl", {"prompt": ASKED, "completion": BLUE, "label": True}),
    ("trl", {"question": "Sky?", "chosen": "Blue.", "rejected": "Square."}),
    ("trl", {"chosen": ASKED + BLUE, "rejected": ASKED + SQUARE, "other": 1}),
]

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["", " ", "\ud83d", TALK, TALK + "Blue.", "left", "r1", "NaN", "assistant", 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "role", "content", "value", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value, path=()):
    """The paths to all values within a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(row, path, value, remove):
    """A copy of the row with the value at a path replaced or taken out."""
    found = holder = copy.deepcopy(row)
    for key in path[:-1]:
        holder = holder[key]
    if remove:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return found


def read(row, reading):
    try:
        return list(read_row(row, reading))
    except Unusable as fault:
        return [fault]


def sound(found):
    """Is everything a record or rating with something in every message, or a reason in words?"""
    for each in found:
        if isinstance(each, Unusable):
            assert str(each)
            continue
        assert isinstance(each, Comparison | Demonstration | Rating)
        for messages in (each.prompt, each.chosen, each.rejected) if isinstance(each, Comparison) else (each.prompt, each.answer):
            assert messages
            for turn in messages:
                assert set(turn) == {"role", "content"}
                assert turn["content"].strip()
                turn["content"].encode("utf-8")
    return bool(found)


def test_there_is_a_sound_row_of_every_format():
    assert {format for format, _ in SOUND} == set(FORMATS)


@pytest.mark.parametrize(("format", "row"), SOUND, ids=lambda value: value if isinstance(value, str) else "")
def test_sound_rows_are_recognised_by_their_shape(format, row):
    found = read(row, Reading(format))
    assert sound(found)
    assert not any(isinstance(each, Unusable) and not each.skipped for each in found)
    assert next(name for name, known in FORMATS.items() if known.recognises(row, Reading())) == format
    assert read(row, Reading()) == found or any(isinstance(each, Unusable) for each in found)


@pytest.mark.parametrize(("format", "row"), SOUND, ids=lambda value: value if isinstance(value, str) else "")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_one_value_may_be_another(format, row, data):
    row = changed(row, data.draw(st.sampled_from(list(places(row)))), data.draw(VALUES), data.draw(st.booleans()))
    for name in (format, "auto"):
        assert sound(read(row, Reading(name, {"buckets": "x,id"}, {"helpfulness": 1.0, "verbosity": -0.5})))


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=30, deadline=None)
@given(row=st.sampled_from([row for _, row in SOUND]) | VALUES | st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
def test_rows_of_another_format_give_records_or_reasons(format, row):
    assert sound(read(row, Reading(format)))


def test_long_texts_take_time_in_proportion():
    """No text makes a reader look at its beginning again and again."""
    for text in ("\n\nHuman: " * 100_000, "\n" * 1_000_000, "Human:" * 200_000, "a " * 500_000, " " * 1_000_000 + "x"):
        began = time.perf_counter()
        for row in ({"chosen": text + "a", "rejected": text + "b"}, {"prompt": text, "chosen": text, "rejected": text}):
            for format in ("auto", "hh-rlhf", "trl"):
                sound(read(row, Reading(format)))
        assert time.perf_counter() - began < 5
