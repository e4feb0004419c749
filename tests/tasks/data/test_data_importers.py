import contextlib
import dataclasses
import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.formats import Unusable, read_row
from tasks.data.importers import Reject, import_file, place
from tasks.data.records import Comparison, Demonstration, assistant, user
from tasks.errors import PreflineError

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "
PAIR = {"prompt": "Is it red?", "chosen": "Yes.", "rejected": "No."}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(row, format="auto"):
    """Prompt, chosen and rejected, as (role, content) pairs."""
    record = read_row(row, format)
    texts = (record.prompt, record.chosen, record.rejected) if isinstance(record, Comparison) else (record.prompt, record.answer)
    return tuple([(m["role"], m["content"]) for m in messages] for messages in texts)


def reason(row, format="auto"):
    with pytest.raises(Unusable) as refused:
        read_row(row, format)
    return str(refused.value)


# hh-rlhf ---------------------------------------------------------------------------------------------------------


def transcript(*turns):
    return "".join((HUMAN, ASSISTANT)[i % 2] + turn for i, turn in enumerate(turns))


def test_hh_prompt_is_the_longest_common_run_of_turns():
    row = {
        "chosen": transcript("Is rain wet?", "Yes.", "Why?", "Water."),
        "rejected": transcript("Is rain wet?", "Yes.", "Why?", "Who knows."),
    }
    assert read(row) == (
        [("user", "Is rain wet?"), ("assistant", "Yes."), ("user", "Why?")],
        [("assistant", "Water.")],
        [("assistant", "Who knows.")],
    )


def test_hh_answers_that_begin_alike_are_not_cut():
    row = {"chosen": transcript("Is rain wet?", "Yes, it is."), "rejected": transcript("Is rain wet?", "Yes, on Sundays.")}
    assert read(row)[1:] == ([("assistant", "Yes, it is.")], [("assistant", "Yes, on Sundays.")])


def test_hh_two_assistant_turns_on_one_side():
    row = {"chosen": transcript("Hi", "Hello!") + ASSISTANT + "How are you?", "rejected": transcript("Hi", "No.")}
    assert read(row) == ([("user", "Hi")], [("assistant", "Hello!"), ("assistant", "How are you?")], [("assistant", "No.")])


def test_hh_one_side_goes_on_after_what_the_other_says():
    row = {"chosen": transcript("Hi", "Hello!"), "rejected": transcript("Hi", "Hello!") + ASSISTANT + "Hello!"}
    assert read(row)[1:] == ([("assistant", "Hello!")], [("assistant", "Hello!"), ("assistant", "Hello!")])


def test_hh_identical_texts_are_a_comparison_for_the_contract_to_judge():
    same = transcript("Hi", "Hello!", "Bye", "Bye.")
    assert read({"chosen": same, "rejected": same})[1:] == ([("assistant", "Bye.")], [("assistant", "Bye.")])


def test_hh_inline_speakers_are_text():
    text = 'He wrote "Human: no" and\nAssistant: yes\n\nHuman:no'
    assert read({"chosen": transcript(text, "Aha. Human: so?"), "rejected": transcript(text, "I see.")}) == (
        [("user", text)],
        [("assistant", "Aha. Human: so?")],
        [("assistant", "I see.")],
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        ("Is rain wet? Yes.", transcript("Is rain wet?", "No."), "has no"),
        (transcript("Is rain wet?", "Yes."), transcript("Is snow wet?", "Yes."), "prompts of"),
        (transcript("Hi", "Yes.", "Why?"), transcript("Hi", "No."), "ends with a human turn"),
        (transcript("Hi", ""), transcript("Hi", "No."), 'last reply of "chosen" is empty'),
        (transcript("Hi", "Yes."), "\n\nHuman: Hi\n\nAssistant:", 'last reply of "rejected" is empty'),
        (transcript("", "Yes."), transcript("", "No."), "empty turn"),
        ("Once upon a time" + transcript("Hi", "Yes."), transcript("Hi", "No."), "text before its first turn"),
        (ASSISTANT + "Yes.", ASSISTANT + "No.", "no prompt"),
        (transcript("Hi", "Yes.", "And?", "More."), transcript("Hi", "No."), "prompts of"),
        (transcript("Hi", "Yes."), None, 'no field "rejected"'),
        (transcript("Hi", "Yes."), 7, '"rejected" is a number'),
    ],
)
def test_hh_rows_that_give_no_comparison(chosen, rejected, why):
    assert why in reason({"chosen": chosen, "rejected": rejected}, "hh-rlhf")


# TRL -------------------------------------------------------------------------------------------------------------


def test_trl_explicit_text():
    assert read({"prompt": "The sky is", "chosen": " blue.", "rejected": " square."}, "trl") == (
        [("user", "The sky is")],
        [("assistant", "blue.")],
        [("assistant", "square.")],
    )


def test_trl_explicit_conversation_and_other_columns():
    row = {
        "prompt": [user("Sky?")],
        "chosen": [assistant("Blue.")],
        "rejected": [assistant("Square.")],
        "score_chosen": 8.5,
        "split": "train_prefs",
    }
    assert read(row) == ([("user", "Sky?")], [("assistant", "Blue.")], [("assistant", "Square.")])


def test_trl_answers_that_repeat_the_prompt():
    row = {"prompt": "2+2?", "chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), assistant("22")]}
    assert read(row) == ([("user", "2+2?")], [("assistant", "4")], [("assistant", "22")])


def test_trl_implicit_conversation():
    row = {"chosen": [user("Sky?"), assistant("Blue.")], "rejected": [user("Sky?"), assistant("Square.")]}
    assert read(row) == ([("user", "Sky?")], [("assistant", "Blue.")], [("assistant", "Square.")])


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [
        ("The sky is blue.", "The sky is square.", ("The sky is", "blue.", "square.")),
        ("The sky is blue.", "The sky is black.", ("The sky is", "blue.", "black.")),
        ("The sky is", "The sky is blue.", ("The sky", "is", "is blue.")),
        ("The sky is blue.", "The sky is blue.", ("The sky is", "blue.", "blue.")),
        ("One\n\ntwo three", "One\n\ntwo four", ("One\n\ntwo", "three", "four")),
    ],
)
def test_trl_implicit_text_is_cut_at_a_word(chosen, rejected, parts):
    prompt, better, worse = parts
    assert read({"chosen": chosen, "rejected": rejected}) == ([("user", prompt)], [("assistant", better)], [("assistant", worse)])


def test_trl_prompt_as_a_transcript():
    row = {"prompt": transcript("Hi", "Hello!", "Sky?") + "\n\nAssistant:", "chosen": " Blue.", "rejected": " Square."}
    assert read(row) == ([("user", "Hi"), ("assistant", "Hello!"), ("user", "Sky?")], [("assistant", "Blue.")], [("assistant", "Square.")])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": "Blue.", "rejected": "Square."}, "prompts of"),
        ({"prompt": "Sky?", "completion": "Blue.", "label": True}, "a verdict on one answer"),
        ({"prompt": "Sky?", "chosen": "Blue."}, 'no field "rejected"'),
        ({"prompt": " ", "chosen": "Blue.", "rejected": "Square."}, '"prompt" is empty'),
        ({"prompt": "Sky?", "chosen": "", "rejected": "Square."}, '"chosen" is empty'),
        ({"prompt": "Sky?", "chosen": [], "rejected": "Square."}, '"chosen" is empty'),
        ({"prompt": "Sky?", "chosen": ["Blue."], "rejected": "Square."}, "a message without"),
        ({"prompt": "Sky?", "chosen": [{"role": "assistant", "content": None}], "rejected": "Square."}, "is null, expected text"),
        ({"prompt": 5, "chosen": "Blue.", "rejected": "Square."}, '"prompt" is a number'),
        ({"chosen": "Blue.", "rejected": [assistant("Square.")]}, '"rejected" is a list'),
        ({"prompt": "Sky?", "chosen": "half \ud83d", "rejected": "Square."}, "half a character"),
        ({"text": "Blue."}, "neither a comparison"),
        ([1, 2], "the row is a list"),
        (None, "the row is null"),
    ],
)
def test_rows_that_give_no_record(row, why):
    assert why in reason(row)


# Demonstrations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("Sky?"), assistant("Blue.")]},
        {"prompt": "Sky?", "completion": "Blue."},
        {"prompt": [user("Sky?")], "completion": [assistant("Blue.")]},
        {"prompt": "Sky?", "answer": [assistant("Blue.")], "split": "train"},
    ],
)
def test_demonstrations(row):
    assert read(row) == ([("user", "Sky?")], [("assistant", "Blue.")])


def test_a_conversation_demonstrates_its_last_answer():
    row = {"messages": [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Hello!"), user("Sky?"), assistant("Blue.")]}
    assert read(row)[1] == [("assistant", "Blue.")]
    assert "does not end with an answer" in reason({"messages": [user("Sky?")]})
    assert "does not end with an answer" in reason({"messages": [assistant("Blue.")]})


# Our own records -------------------------------------------------------------------------------------------------


def test_our_own_record_keeps_what_it_says():
    row = PAIR | {"id": 7, "annotator": 3, "strength": 2, "tie": False, "split": "test", "tags": ["colour"], "group_id": "g"}
    record = read_row(row, "auto")
    assert (record.id, record.annotator, record.strength, record.split, record.tags, record.group_id) == (
        "7",
        "3",
        2.0,
        "test",
        ["colour"],
        "g",
    )


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"annotater": "ana", "tie": False}, "no such field (annotater)"),
        ({"split": "dev"}, "none of train"),
        ({"tie": "no"}, '"tie" is text'),
        ({"strength": "much"}, '"strength" is not a number'),
        ({"strength": True}, '"strength" is not a number'),
        ({"strength": 1e300}, '"strength" is not a number'),
        ({"tags": "colour"}, '"tags" is text'),
        ({"id": {}}, '"id" is an object'),
        ({"contract_version": 99}, "another contract version"),
    ],
)
def test_our_own_record_with_a_fault(extra, why):
    assert why in reason(PAIR | extra)


def test_records_that_prefline_wrote_come_back_the_same(tmp_path):
    first = next(import_file(write(tmp_path / "a.jsonl", PAIR | {"annotator": "ana", "tie": True}), name="a.jsonl"))
    again = next(import_file(write(tmp_path / "b.jsonl", dataclasses.asdict(first)), name="b.jsonl"))
    assert dataclasses.replace(again, source="a.jsonl") == first


# Files -----------------------------------------------------------------------------------------------------------


def test_ids_follow_the_content_and_copies_stay_apart(tmp_path):
    one = write(tmp_path / "one.jsonl", PAIR, PAIR)
    grown = write(tmp_path / "grown.jsonl", {"prompt": "New?", "chosen": "Yes.", "rejected": "No."}, PAIR, PAIR)
    first, copy = [record.id for record in import_file(one)]
    assert first != copy
    assert [record.id for record in import_file(grown)][1:] == [first, copy]


def test_rejects_say_where_and_why(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r\n"
        b"\n"
        b'{"prompt": "Is it red?", "chosen": NaN}\n'
        b'\xff\xfe{"prompt": "x"}\n' + b"[" * 100_000 + b"\n"
        b'{"prompt": "Is it re'
    )
    first, *others = import_file(path, name="rows.jsonl")
    assert (first.source, first.source_id) == ("rows.jsonl", "1")
    assert [(other.line, other.reason.split(" (")[0]) for other in others] == [
        (3, "not JSON"),
        (4, "not UTF-8 text"),
        (5, "not JSON"),
        (6, "not JSON"),
    ]
    assert "was it cut short?" in others[-1].reason
    assert others[-1].row == '{"prompt": "Is it re'
    assert len(others[2].row) <= 500


def test_the_same_rows_in_every_kind_of_file(tmp_path):
    rows = [PAIR, {"prompt": "Is it blue?", "chosen": "No.", "rejected": "Yes."}, {"chosen": 1}]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "d.json").write_bytes((tmp_path / "a.jsonl").read_bytes())
    found = [[getattr(row, "id", "reject") for row in import_file(path)] for path in sorted(tmp_path.iterdir())]
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][2] == "reject"


def test_a_folder_gives_its_data_files_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.jsonl", "a.json", "deep/c.jsonl", ".hidden/d.jsonl", "notes.txt"):
        write(tmp_path / name, PAIR)
    assert [record.source for record in import_file(tmp_path, name="mine/")] == ["mine/a.json", "mine/b.jsonl", "mine/deep/c.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("empty.jsonl", b"", "holds no rows"),
        ("blank.jsonl", b"\n \n", "holds no rows"),
        ("empty.json", b"[]", "holds no rows"),
        ("blank.json", b"", "holds no rows"),
        ("number.json", b"17", "holds a number, not a list"),
        ("cut.json", b'[{"prompt": "Is it', "not JSON"),
        ("deep.json", b"[" * 100_000, "nested too deeply"),
        ("plain.jsonl.gz", b"{}\n", "damaged or cut short"),
        ("cut.jsonl.gz", gzip.compress(json.dumps(PAIR).encode() * 50)[:-9], "damaged or cut short"),
        ("table.xlsx", b"PK", "not a kind of file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PreflineError, match=what) as refused:
        list(import_file(tmp_path / name, name=f"data/{name}"))
    assert f"data/{name}" in refused.value.what
    assert refused.value.advice


def test_missing_files_and_folders_without_data(tmp_path):
    with pytest.raises(PreflineError, match="no such file"):
        list(import_file(tmp_path / "nowhere.jsonl"))
    with pytest.raises(PreflineError, match="no data file in this folder"):
        list(import_file(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    write(tmp_path / "secret.jsonl", PAIR).chmod(0)
    with pytest.raises(PreflineError, match="can't be read"):
        list(import_file(tmp_path / "secret.jsonl"))


def test_place_names_lines_and_rows():
    assert place("data/a.jsonl.gz", 3) == "data/a.jsonl.gz, line 3"
    assert place("data/a.json", "3") == "data/a.json, row 3"


# Anything at all -------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([transcript("Hi", "Yes."), HUMAN, ASSISTANT]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "completion",
    "answer",
    "label",
    "id",
    "tie",
    "strength",
    "split",
    "tags",
    "annotator",
    "other",
]


@pytest.mark.parametrize("format", ["auto", "prefline", "hh-rlhf", "trl"])
@given(rows=st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6) | VALUES, min_size=1, max_size=4))
def test_any_json_gives_a_record_or_a_reason(format, rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = list(import_file(path, format))
    assert len(found) == len(rows)
    for row in found:
        assert isinstance(row, Comparison | Demonstration | Reject)
        json.dumps(row.reason if isinstance(row, Reject) else row.prompt, ensure_ascii=False).encode("utf-8")


@given(content=st.binary(min_size=1, max_size=200))
def test_any_bytes_give_records_rejects_or_one_clear_error(content, tmp_path_factory):
    for name in ("a.jsonl", "a.json", "a.jsonl.gz"):
        path = tmp_path_factory.mktemp("bytes") / name
        path.write_bytes(content)
        with contextlib.suppress(PreflineError):
            assert all(isinstance(row, Reject) for row in import_file(path))
