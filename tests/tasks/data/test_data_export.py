"""What is exported comes back the same when it is imported, as far as the format can hold it; the rest is counted."""

import csv
import dataclasses
import gzip
import json
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.export import KINDS, export
from tasks.data.formats import FORMATS, Reading
from tasks.data.formats.writers import WRITERS
from tasks.data.importers import import_file
from tasks.data.records import Comparison, Demonstration, assistant, user
from tasks.errors import ConfigError, EnvironmentRefused

OF_COMPARISONS = ("prefline", "trl", "hh-rlhf", "vertex", "ultrafeedback", "helpsteer3", "argilla", "label-studio")
OF_DEMONSTRATIONS = ("prefline", "trl", "messages", "sharegpt", "alpaca")
TABLES = (".csv", ".parquet")
SYSTEM = {"role": "system", "content": "Be kind."}


def comparison(number=0, **more):
    record = Comparison(
        id=f"{number:016x}",
        prompt=[user("Sky?")],
        chosen=[assistant("Blue.")],
        rejected=[assistant("Square.")],
        source="a.jsonl",
        source_id="1",
        group_id="g",
    )
    return dataclasses.replace(record, **more)


def demonstration(**more):
    shown = Demonstration(id="d", prompt=[user("Sky?")], answer=[assistant("Blue.")], source="a.jsonl", source_id="1", group_id="g")
    return dataclasses.replace(shown, **more)


def again(records, format, kind=".jsonl"):
    """Records as they come back from a file of a kind, and what was left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{kind}"
        exported = export(records, format, path)
        found = list(import_file(path, Reading(format))) if exported.written else []
        assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing stays beside it
    assert len(found) == exported.written
    assert exported.written + sum(exported.left_out.values()) == len(records)
    return found, exported.left_out


def texts(record):
    sides = (record.prompt, record.chosen, record.rejected) if isinstance(record, Comparison) else (record.prompt, record.answer)
    return [[(turn["role"], turn["content"].strip()) for turn in messages] for messages in sides]


# Properties ------------------------------------------------------------------------------------------------------

PLAIN = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S"), include_characters=" \n"), min_size=1, max_size=30).filter(
    lambda text: text.strip() and ":" not in text and text[0] not in "[{"
)
SPECIAL = ["\n\nHuman: Hi", "\n\nAssistant: Yo", "Human: a\n\nAssistant: b", '[{"role": "user"}]', "[1]", '{"a": 1}', "true", "1", "a\rb"]
ANY = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from([*SPECIAL, 'say "so", then', "\x00", "  "])
NAMES = st.none() | st.sampled_from(["ana", "7", "007", "b c", "x,y"])


def turns(text):
    roles = st.sampled_from(["user", "assistant", "system", "tool"])
    return st.lists(st.builds(lambda role, content: {"role": role, "content": content}, roles, text), min_size=1, max_size=3)


def comparisons(text, lists):
    """lists: conversations of any shape, too."""
    prompts = turns(text) if lists else text.map(lambda said: [user(said)])
    answers = turns(text) if lists else text.map(lambda said: [assistant(said)])
    return st.builds(
        comparison,
        number=st.integers(0, 99),
        prompt=prompts,
        chosen=answers,
        rejected=answers,
        tie=st.booleans() if lists else st.just(False),
        annotator=NAMES,
        ranking=NAMES,
        strength=st.none() | st.sampled_from([1.0, 2.5, 3.0]),
        chosen_first=st.none() | st.booleans(),
        seconds=st.none() | st.sampled_from([0.5, 12.0]),
        labels_by=st.sampled_from([None, "people", "ai"]),
        language=st.none() | st.just("en"),
        created_at=st.none() | st.just("2026-11-01T10:00:00Z"),
        split=st.none() | st.just("judge"),
        tags=st.lists(st.sampled_from(["pets", "a, b", "[x]"]), max_size=2),
    )


def demonstrations(text, lists):
    prompts = turns(text) if lists else text.map(lambda said: [user(said)])
    return st.builds(demonstration, prompt=prompts, answer=turns(text) if lists else text.map(lambda said: [assistant(said)]))


@pytest.mark.parametrize("format", OF_COMPARISONS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_comparison_comes_back_the_same_or_is_counted(format, data):
    record = data.draw(comparisons(ANY, lists=True))
    found, left_out = again([record], format, data.draw(st.sampled_from([".jsonl", ".json"])))
    if not left_out:
        assert texts(found[0]) == texts(record)
        assert found[0].tie == record.tie


@pytest.mark.parametrize("format", OF_DEMONSTRATIONS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_demonstration_comes_back_the_same_or_is_counted(format, data):
    record = data.draw(demonstrations(ANY, lists=True))
    found, left_out = again([record], format, ".jsonl")
    if not left_out:
        assert texts(found[0]) == texts(record)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("format", [name for name in OF_COMPARISONS if WRITERS[name].columns])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_comparison_in_a_table_comes_back_the_same_or_is_counted(format, kind, data):
    record = data.draw(comparisons(ANY, lists=True))
    found, left_out = again([record], format, kind)
    if not left_out:
        assert texts(found[0]) == texts(record)
        assert found[0].tie == record.tie


DETAILS = {
    "prefline": tuple(field.name for field in dataclasses.fields(Comparison) if not field.name.startswith("source")),
    "trl": (),
    "hh-rlhf": (),
    "vertex": ("chosen_first",),
    "ultrafeedback": (),
    "helpsteer3": ("chosen_first", "language"),
    "argilla": ("chosen_first", "annotator"),
    "label-studio": ("chosen_first", "annotator", "language"),
}
"""What a format has a place for beside the texts. A side that was not known is made up where a format needs one."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", OF_COMPARISONS)
@settings(max_examples=10, deadline=None)
@given(records=st.lists(comparisons(PLAIN, lists=False), min_size=1, max_size=4))
def test_plain_comparisons_come_back_with_all_that_the_format_holds(format, kind, records):
    if kind in TABLES and WRITERS[format].columns is None:
        return
    records = [dataclasses.replace(record, id=f"{number:016x}") for number, record in enumerate(records)]
    found, left_out = again(records, format, kind)
    assert not left_out
    for back, record in zip(found, records, strict=True):
        assert texts(back) == texts(record)
        for field in DETAILS[format]:
            if field != "chosen_first" or record.chosen_first is not None or format == "prefline":
                assert getattr(back, field) == getattr(record, field), field
        if format == "helpsteer3":
            assert back.strength == (record.strength or 1.0)
        if format == "label-studio" and record.labels_by != "ai":
            assert (back.seconds, back.created_at, back.labels_by) == (record.seconds, record.created_at, "people")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", OF_DEMONSTRATIONS)
@settings(max_examples=10, deadline=None)
@given(records=st.lists(demonstrations(PLAIN, lists=False), min_size=1, max_size=3))
def test_plain_demonstrations_come_back(format, kind, records):
    found, left_out = again(records, format, kind)
    assert not left_out
    assert [texts(back) for back in found] == [texts(record) for record in records]


@settings(deadline=None)
@given(record=comparisons(ANY.filter(str.strip), lists=True), kind=st.sampled_from(list(KINDS)))
def test_our_own_format_holds_everything(record, kind):
    found, left_out = again([record], "prefline", kind)
    assert not left_out
    assert dataclasses.replace(found[0], source=record.source, source_id=record.source_id) == record


# Rows by hand ----------------------------------------------------------------------------------------------------

TWO_TURNS = [SYSTEM, user("Hi"), assistant("Hello!"), user("Sky?")]


@pytest.mark.parametrize(
    ("format", "record", "row"),
    [
        ("trl", comparison(), {"prompt": [user("Sky?")], "chosen": [assistant("Blue.")], "rejected": [assistant("Square.")]}),
        ("trl", demonstration(), {"prompt": [user("Sky?")], "completion": [assistant("Blue.")]}),
        (
            "hh-rlhf",
            comparison(prompt=TWO_TURNS[1:]),
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: Blue.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: Square.",
            },
        ),
        ("vertex", comparison(chosen_first=False), {"input_text": "Sky?", "candidate_0": "Square.", "candidate_1": "Blue.", "choice": 1}),
        (
            "ultrafeedback",
            comparison(strength=2.0, labels_by="ai"),
            {
                "prompt": "Sky?",
                "prompt_id": "g",
                "chosen": [user("Sky?"), assistant("Blue.")],
                "rejected": [user("Sky?"), assistant("Square.")],
                "score_chosen": 2.0,
                "score_rejected": 0.0,
            },
        ),
        (
            "helpsteer3",
            comparison(prompt=TWO_TURNS, chosen_first=True, strength=2.0, language="english", tags=["general"]),
            {
                "domain": "general",
                "language": "english",
                "context": TWO_TURNS,
                "response1": "Blue.",
                "response2": "Square.",
                "overall_preference": -2.0,
            },
        ),
        (
            "argilla",
            comparison(tie=True, annotator="u7"),
            {
                "id": f"{0:016x}",
                "prompt": [user("Sky?")],
                "response1": "Blue.",
                "response2": "Square.",
                "preference.responses": ["tie"],
                "preference.responses.users": ["u7"],
                "preference.responses.status": ["submitted"],
            },
        ),
        (
            "label-studio",
            comparison(chosen_first=False, annotator="3", seconds=9.1),
            {
                "data": {"prompt": "Sky?", "answer1": "Square.", "answer2": "Blue."},
                "annotations": [
                    {
                        "completed_by": 3,
                        "was_cancelled": False,
                        "lead_time": 9.1,
                        "result": [{"type": "pairwise", "from_name": "pref", "to_name": "pref", "value": {"selected": "right"}}],
                    }
                ],
                "predictions": [],
            },
        ),
        ("messages", demonstration(prompt=TWO_TURNS), {"messages": [*TWO_TURNS, assistant("Blue.")]}),
        ("sharegpt", demonstration(), {"conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}]}),
        ("alpaca", demonstration(prompt=[SYSTEM, user("Sky?")]), {"system": "Be kind.", "instruction": "Sky?", "output": "Blue."}),
    ],
)
def test_rows_as_the_tools_write_them(format, record, row, tmp_path):
    export([record], format, tmp_path / "a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_text()) == row
    found, _ = again([record], format)
    assert texts(found[0]) == texts(record)


@pytest.mark.parametrize(
    ("format", "record", "why"),
    [
        ("hh-rlhf", comparison(tie=True), "a tie"),
        ("trl", comparison(tie=True), "a tie"),
        ("vertex", comparison(tie=True), "a tie"),
        ("ultrafeedback", comparison(tie=True), "a tie that no model gave"),
        ("hh-rlhf", comparison(prompt=TWO_TURNS), "a turn that is neither the user's nor the assistant's"),
        ("hh-rlhf", comparison(chosen=[assistant("So.\n\nHuman: No.\n\nAssistant: Yes.")]), "texts that would be read back otherwise"),
        ("vertex", comparison(prompt=TWO_TURNS), "a prompt of several turns"),
        ("vertex", comparison(chosen=[assistant("A"), assistant("B")]), "an answer of several messages"),
        ("alpaca", demonstration(prompt=TWO_TURNS), "a prompt of several turns"),
        ("messages", demonstration(answer=[assistant("A"), assistant("B")]), "texts that would be read back otherwise"),
        ("helpsteer3", comparison(strength=7.0), "a strength beyond 3"),
        ("messages", comparison(), "a comparison, where the format holds demonstrations"),
        ("argilla", demonstration(), "a demonstration, where the format holds comparisons"),
    ],
)
def test_what_a_format_cannot_hold_is_counted(format, record, why, tmp_path):
    assert export([record, record], format, tmp_path / "a.json").left_out == Counter({why: 2})
    assert json.loads((tmp_path / "a.json").read_text()) == []


def test_sides_that_are_not_known_fall_evenly():
    records = [comparison(number) for number in range(2000)]
    found, _ = again(records, "vertex")
    assert 900 < sum(back.chosen_first for back in found) < 1100  # 4.5 standard deviations of 2,000 throws of a coin
    assert [back.chosen_first for back in again(records, "vertex")[0]] == [back.chosen_first for back in found]


def test_a_text_that_a_cell_would_make_a_list_is_left_out_of_csv_only():
    record = comparison(chosen=[assistant('[{"role": "user", "content": "x"}]')], chosen_first=True)
    assert again([record], "vertex", ".csv")[1] == {"texts that would be read back otherwise": 1}
    assert not again([record], "vertex", ".json")[1]


# Files -----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_others_read(tmp_path):
    for kind in KINDS:
        export([comparison(1, chosen_first=True), comparison(2, chosen_first=False)], "vertex", tmp_path / f"a{kind}")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["choice"] for row in rows] == [0, 1]
    assert json.loads((tmp_path / "a.json").read_text()) == rows
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == (tmp_path / "a.jsonl").read_bytes()
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == rows
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [row | {"choice": str(row["choice"])} for row in rows]


def test_many_rows_in_batches_and_equal_bytes(tmp_path):
    records = [comparison(number, chosen_first=True) for number in range(2501)]
    assert export(iter(records), "trl", tmp_path / "a.parquet").written == 2501
    assert pq.read_metadata(tmp_path / "a.parquet").num_rows == 2501
    export(records, "trl", tmp_path / "a.jsonl.gz")
    first = (tmp_path / "a.jsonl.gz").read_bytes()
    export(records, "trl", tmp_path / "a.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == first


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.jsonl"
    export([comparison()], "trl", path)
    before = path.read_bytes()

    def broken():
        yield comparison()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(broken(), "trl", path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_formats_files_and_folders_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match='"tlr" is no format'):
        export([comparison()], "tlr", tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match="not a kind of file that Prefline writes"):
        export([comparison()], "trl", tmp_path / "a.xlsx")
    with pytest.raises(ConfigError, match="does not fit into a table"):
        export([comparison()], "label-studio", tmp_path / "a.csv")
    with pytest.raises(EnvironmentRefused, match="can't be written: No such file or directory"):
        export([comparison()], "trl", tmp_path / "nowhere" / "a.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_every_format_that_is_written_is_read():
    assert set(WRITERS) <= set(FORMATS)
    assert set(WRITERS) == {*OF_COMPARISONS, *OF_DEMONSTRATIONS}
