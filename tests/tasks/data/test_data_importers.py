import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.formats import FORMATS, Reading
from tasks.data.importers import RATED_TOGETHER, Reject, import_file, place
from tasks.data.records import Comparison, Demonstration, assistant, user, write_jsonl
from tasks.errors import ConfigError, EnvironmentRefused, PreflineError

ROOT = Path(__file__).parents[3]
PAIR = {"prompt": "Is it red?", "chosen": "Yes.", "rejected": "No."}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rejects_of(path, found):
    """The rejects among what was found, written as the commands write them."""
    write_jsonl(path, [dataclasses.asdict(row) | {"role": "comparisons"} for row in found if isinstance(row, Reject)])
    return path


# Records ------------------------------------------------------------------------------------------------------------


def test_records_that_prefline_wrote_come_back_the_same(tmp_path):
    ours = PAIR | {
        "annotator": "ana",
        "tie": True,
        "chosen_first": False,
        "seconds": 2.5,
        "labels_by": "people",
        "language": "en",
        "tags": ["colour"],
    }
    first, shown = import_file(
        write(tmp_path / "a.jsonl", ours, {"messages": [user("Hi"), assistant("Hello.")], "language": "en"}), name="a.jsonl"
    )
    assert (first.annotator, first.chosen_first, first.seconds, first.tags, shown.language) == ("ana", False, 2.5, ["colour"], "en")
    again = list(import_file(write(tmp_path / "b.jsonl", dataclasses.asdict(first), dataclasses.asdict(shown)), name="b.jsonl"))
    assert [dataclasses.replace(record, source="a.jsonl") for record in again] == [first, shown]


def test_ids_follow_the_content_and_copies_stay_apart(tmp_path):
    one = write(tmp_path / "one.jsonl", PAIR, PAIR)
    grown = write(tmp_path / "grown.jsonl", {"prompt": "New?", "chosen": "Yes.", "rejected": "No."}, PAIR, PAIR, PAIR)
    first, copy = [record.id for record in import_file(one)]
    assert first != copy
    ids = [record.id for record in import_file(grown)]
    assert ids[1:3] == [first, copy]
    assert len(set(ids)) == 4


def test_verdicts_that_differ_have_ids_that_differ(tmp_path):
    other = {"prompt": "Is it red?", "chosen": "No.", "rejected": "Yes."}
    rows = [PAIR, other, PAIR | {"tie": True}, PAIR | {"annotator": "ana"}, PAIR | {"annotator": "bob"}]
    found = list(import_file(write(tmp_path / "a.jsonl", *rows)))
    assert len({record.id for record in found}) == 5
    assert len({record.group_id for record in found}) == 1
    turned = list(import_file(write(tmp_path / "b.jsonl", *rows[::-1])))
    assert [record.id for record in turned] == [record.id for record in found][::-1]


def test_a_group_and_an_id_of_its_own_are_kept(tmp_path):
    (record,) = import_file(write(tmp_path / "a.jsonl", PAIR | {"id": "mine", "group_id": "ours"}))
    assert (record.id, record.group_id, record.source_id) == ("mine", "ours", "1")


def test_a_folder_names_its_files(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.json", "deep/c.jsonl"):
        write(tmp_path / name, PAIR)
    found = list(import_file(tmp_path, name="mine/"))
    assert [record.source for record in found] == ["mine/a.json", "mine/b.jsonl", "mine/deep/c.jsonl"]
    assert len({record.id for record in found}) == 1  # copies are counted file by file


def test_place_names_lines_and_rows():
    assert place("data/a.jsonl.gz", 3) == "data/a.jsonl.gz, line 3"
    assert place("data/a.csv", 3) == "data/a.csv, line 3"
    assert place("data/a.json", "3") == "data/a.json, row 3"
    assert place("a.parquet", "3") == "a.parquet, row 3"


# Rated answers ------------------------------------------------------------------------------------------------------


def rated(prompt, response, helpfulness, **more):
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness} | more


def test_rated_answers_to_one_prompt_make_comparisons(tmp_path):
    rows = [
        rated("A?", "good", 4),
        rated("A?", "bad", 1),
        rated("B?", "alone", 3),
        rated("C?", "first", 2),
        rated("C?", "best", 3),
        rated("C?", "same", 2),
    ]
    found = list(import_file(write(tmp_path / "a.jsonl", *rows), name="a.jsonl"))
    assert [
        (r.source_id, r.chosen[0]["content"], r.rejected[0]["content"], r.tie, r.strength) for r in found if isinstance(r, Comparison)
    ] == [
        ("1", "good", "bad", False, 3.0),
        ("4", "best", "first", False, 1.0),
        ("4", "first", "same", True, None),
        ("4", "best", "same", False, 1.0),
    ]
    assert [(r.line, r.row, r.reason) for r in found if isinstance(r, Reject)] == [
        (3, rows[2], "a rated answer without another one to its prompt beside it")
    ]
    assert len({r.ranking for r in found if isinstance(r, Comparison) and r.source_id == "4"}) == 1


def test_rated_answers_are_compared_within_an_annotator(tmp_path):
    rows = [rated("A?", "x", 1, annotator="ana"), rated("A?", "x", 3, annotator="bob"), rated("A?", "y", 2, annotator="ana"), {"chosen": 1}]
    found = list(import_file(write(tmp_path / "a.jsonl", *rows)))
    assert sorted((type(r).__name__, getattr(r, "annotator", None)) for r in found) == [
        ("Comparison", "ana"),
        ("Reject", None),
        ("Reject", None),
    ]


def test_pairs_of_rated_answers_grow_no_faster_than_the_file(tmp_path):
    count = 3 * RATED_TOGETHER
    found = list(import_file(write(tmp_path / "a.jsonl", *[rated("A?", f"answer {n}", n % 5) for n in range(count)])))
    assert len(found) == 3 * RATED_TOGETHER * (RATED_TOGETHER - 1) // 2


def test_another_attribute_may_be_asked_for(tmp_path):
    path = write(tmp_path / "a.jsonl", rated("A?", "x", 4, verbosity=1), rated("A?", "y", 1, verbosity=3))
    (record,) = import_file(path, Reading(rating={"verbosity": 2.0}))
    assert (record.chosen[0]["content"], record.strength) == ("y", 4.0)


# Rejects ------------------------------------------------------------------------------------------------------------


def test_rejects_hold_the_row_itself(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "x", "chosen": 1, "big": [1, {"a": null}]}\n{"prompt": NaN}\n{"prompt": "Is it re')
    parsed, number, cut = import_file(path, name="rows.jsonl")
    assert parsed.row == {"prompt": "x", "chosen": 1, "big": [1, {"a": None}]}
    assert (number.row, number.reason) == ('{"prompt": NaN}', 'not JSON ("prompt" is NaN, which is no number)')
    assert (cut.row, "was it cut short?" in cut.reason) == ('{"prompt": "Is it re', True)


def test_of_a_very_long_row_an_excerpt_is_kept(tmp_path):
    (reject,) = import_file(write(tmp_path / "a.jsonl", {"prompt": "x" * 1_000_001}))
    assert reject.row == '{"prompt":"' + "x" * 489


def test_rejects_are_mended_and_imported_again(tmp_path):
    source = tmp_path / "march.jsonl"
    source.write_bytes(
        json.dumps(PAIR).encode() + b'\n{"prompt": "Sky?", "chosen": "Blue."}\n{"prompt": "2+2?", "chosen": "4", "rejected\n'
    )
    whole, *others = import_file(source, name="data/raw/march.jsonl")
    path = rejects_of(tmp_path / "rejects.jsonl", others)

    unmended = list(import_file(path, name="data/rejects.jsonl"))
    assert [(r.source, r.line, r.reason, r.row) for r in unmended] == [(r.source, r.line, r.reason, r.row) for r in others]

    first, second = map(json.loads, path.read_text().splitlines())
    first["row"]["rejected"] = "Green."
    second["row"] += '": "5"}'
    mended = list(import_file(write(path, first, second), name="data/rejects.jsonl"))
    assert [(r.source, r.source_id, r.chosen[0]["content"], r.rejected[0]["content"]) for r in mended] == [
        ("data/raw/march.jsonl", "2", "Blue.", "Green."),
        ("data/raw/march.jsonl", "3", "4", "5"),
    ]
    mended_at_the_source = list(import_file(write(source, PAIR, first["row"]), name="data/raw/march.jsonl"))
    assert mended_at_the_source == [whole, mended[0]]


def test_a_row_that_was_rejected_twice_for_its_parts_is_not_doubled(tmp_path):
    def annotation(person, selected):
        value = {"type": "pairwise", "from_name": "p", "to_name": "p", "value": {"selected": selected}}
        return {"completed_by": person, "was_cancelled": False, "result": [value]}

    task = {
        "id": 1,
        "data": {"prompt": "Egg?", "answer1": "8 minutes.", "answer2": "Fridge."},
        "annotations": [annotation(1, "left"), annotation(2, "middle"), annotation(3, "nowhere")],
    }
    found = list(import_file(write(tmp_path / "a.jsonl", task), name="a.jsonl"))
    assert [type(r).__name__ for r in found] == ["Comparison", "Reject", "Reject"]
    path = rejects_of(tmp_path / "rejects.jsonl", found)
    rejects = [json.loads(line) for line in path.read_text().splitlines()]
    rejects[0]["row"]["annotations"][1] = annotation(2, "left")
    rejects[1]["row"]["annotations"][2] = annotation(3, "right")
    again = list(import_file(write(path, *rejects)))
    assert sorted(r.annotator for r in again if isinstance(r, Comparison)) == ["1", "2", "3"]
    assert found[0].id in {r.id for r in again if isinstance(r, Comparison)}


@pytest.mark.parametrize("odd", [{"source": 1}, {"line": "x"}, {"line": True}, {"line": 2**40}, {"source": None, "line": None}])
def test_a_reject_without_a_place_takes_that_of_its_line(tmp_path, odd):
    (record,) = import_file(write(tmp_path / "a.jsonl", {"source": "b", "line": 7, "reason": "", "row": PAIR} | odd), name="a.jsonl")
    assert (record.source, record.source_id) == ("a.jsonl", "1")


# Hub ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["hub:", "hub:name", "hub:a/b/c/d", "hub:../x", "hub:a/b@", "hub:a b/c"])
def test_an_address_that_names_no_data_set(address):
    with pytest.raises(ConfigError, match="names no data set"):
        list(import_file(address))


def test_without_library_or_network_the_hub_is_refused_soon():
    begin = time.monotonic()
    with pytest.raises(EnvironmentRefused, match=r"hub:owner/name@main/test: .*(not installed|can't be reached)"):
        list(import_file("hub:owner/name@main/test"))
    assert time.monotonic() - begin < 20


# Anything at all ----------------------------------------------------------------------------------------------------

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "
NAMES = [
    "prompt", "chosen", "rejected", "messages", "completion", "answer", "label", "id", "tie", "strength", "split", "tags",
    "annotator", "other", "role", "content", "x", "data", "annotations", "predictions", "result", "value", "selected", "ranker",
    "was_cancelled", "completed_by", "response", "helpfulness", "response1", "response2", "preference_strength",
    "overall_preference", "context", "individual_preference", "info", "summaries", "choice", "worker", "extra", "text",
    "input_text", "candidate_0", "candidate_1", "instruction", "instances", "input", "output", "conversations", "from",
    "question_id", "turns", "reference", "annotator1", "annotator2", "annotator3", "message_id", "parent_id", "replies", "rank",
    "lang", "output_1", "output_2", "question", "preference", "feedback", "source", "line", "reason", "row", "score_chosen",
    "score_rejected", "preference.responses", "preference.responses.status", "preference.responses.users",
]  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from([HUMAN + "Hi" + ASSISTANT + "Yes.", HUMAN, ASSISTANT, "user", "assistant", "left", "submitted", "1", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("format", ["auto", *FORMATS])
@given(rows=st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6) | VALUES, min_size=1, max_size=4))
def test_any_json_gives_records_or_rejects(format, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    found = list(import_file(write(folder / "rows.jsonl", *rows), Reading(format=format)))
    assert all(isinstance(row, Comparison | Demonstration | Reject) for row in found)
    assert [orjson.loads(orjson.dumps(row)) for row in found] == [dataclasses.asdict(row) for row in found]
    assert list(import_file(write(folder / "twice.jsonl", *rows), Reading(format=format), name=str(folder / "rows.jsonl"))) == found


@given(rows=st.lists(st.dictionaries(st.sampled_from(NAMES[:20]), VALUES, max_size=6) | VALUES, min_size=1, max_size=4))
def test_rejects_that_nobody_mended_are_rejects_again(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("again")
    found = list(import_file(write(folder / "rows.jsonl", *rows), name="rows.jsonl"))
    rejects = [row for row in found if isinstance(row, Reject)]
    ids = {row.id for row in found if not isinstance(row, Reject)}
    if rejects:
        again = list(import_file(rejects_of(folder / "rejects.jsonl", rejects)))
        assert {(r.source, r.line) for r in again if isinstance(r, Reject)} == {(r.source, r.line) for r in rejects}
        assert {r.id for r in again if not isinstance(r, Reject)} <= ids


# A large file -------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from tasks.data.importers import import_file
count = sum(1 for _ in import_file(Path(sys.argv[1])))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(count, int(peak.split()[1]) // 1024)
"""


def test_importing_takes_little_memory(tmp_path):
    """What is kept of a record is a number, for telling copies: far below 200 bytes each."""
    words = "a word and another " * 15
    for name, count in (("small", 1_000), ("large", 61_000)):
        write(tmp_path / f"{name}.jsonl", *[{"prompt": f"{n}", "chosen": f"{n} {words}", "rejected": words} for n in range(count)])
    sizes = []
    for name in ("small", "large"):
        command = [sys.executable, "-c", MEASURE, tmp_path / f"{name}.jsonl"]
        sizes.append(int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[1]))
    assert sizes[1] - sizes[0] <= 12 + 4  # MB: 60,000 records, and the buffers


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    write(tmp_path / "secret.jsonl", PAIR).chmod(0)
    with pytest.raises(PreflineError, match="can't be read"):
        list(import_file(tmp_path / "secret.jsonl"))
