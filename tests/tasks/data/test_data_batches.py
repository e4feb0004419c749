"""Batches: what is new comes in once, what can't be used can be mended, and no kill leaves half of anything."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import batches
from tasks.data.batches import BATCHES, REFUSED, REJECTS, WORK, import_batch, take_out
from tasks.data.formats import Reading
from tasks.data.records import Comparison, Demonstration
from tasks.errors import EnvironmentRefused, PreflineError

ROOT = Path(__file__).parents[3]
READING = Reading()


def pair(number, **more):
    return {"prompt": f"Question {number}?", "chosen": f"Yes, {number}.", "rejected": f"No, {number}."} | more


def write(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def everything(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()}


def test_new_records_become_a_batch_once(tmp_path):
    source = write(tmp_path / "march.jsonl", pair(1), pair(2), {"prompt": "Hello?", "completion": "Hello!"})
    found = import_batch(tmp_path, [source], READING)
    assert (found.rows, found.comparisons, found.demonstrations, found.known, found.rejects) == (3, 2, 1, 0, None)
    rows = rows_of(tmp_path / found.batch)
    records = [Comparison(**row) if "chosen" in row else Demonstration(**row) for row in rows]
    assert [record.source for record in records] == ["march.jsonl"] * 3
    assert [record.source_id for record in records] == ["1", "2", "3"]

    before = everything(tmp_path)
    again = import_batch(tmp_path, [source], READING)
    assert (again.batch, again.comparisons, again.known, again.usable) == (None, 0, 3, True)
    assert everything(tmp_path) == before

    write(tmp_path / "march.jsonl", pair(1), pair(2), pair(3), pair(4))
    grown = import_batch(tmp_path, [source], READING)
    assert (grown.comparisons, grown.known) == (2, 2)
    assert [row["prompt"][0]["content"] for row in rows_of(tmp_path / grown.batch)] == ["Question 3?", "Question 4?"]
    assert sorted([found.batch, grown.batch]) == [found.batch, grown.batch]


def test_what_cannot_be_used_is_mended_and_imported_again(tmp_path):
    source = write(tmp_path / "march.jsonl", pair(1), pair(2, chosen=7), '{"prompt": "cut\n', pair(3, rejected=""))
    found = import_batch(tmp_path, [source], READING)
    assert (found.comparisons, sum(reason.rows for reason in found.rejected.values())) == (1, 3)
    assert found.rows == 4
    rejects = rows_of(tmp_path / found.rejects)
    assert [(row["source"], row["line"]) for row in rejects] == [("march.jsonl", 2), ("march.jsonl", 3), ("march.jsonl", 4)]
    assert rejects[0]["row"] == pair(2, chosen=7)
    assert all(reason.first.startswith("march.jsonl, line ") for reason in found.rejected.values())

    before = everything(tmp_path)
    assert import_batch(tmp_path, [source], READING).rejects == found.rejects
    assert everything(tmp_path) == before

    rejects[0]["row"]["chosen"] = "Seven."
    mended = import_batch(tmp_path, [write(tmp_path / "mended.jsonl", rejects[0])], READING)
    assert (mended.comparisons, mended.rejected) == (1, {})
    (record,) = rows_of(tmp_path / mended.batch)
    assert (record["source"], record["source_id"]) == ("march.jsonl", "2")


def test_the_same_id_with_another_claim_is_told(tmp_path):
    own = {"id": "a-1", "prompt": "Red?", "chosen": "Yes.", "rejected": "No.", "annotator": "ana"}
    import_batch(tmp_path, [write(tmp_path / "one.jsonl", own)], Reading("prefline"))
    other = own | {"chosen": "No.", "rejected": "Yes."}
    found = import_batch(tmp_path, [write(tmp_path / "two.jsonl", own, other)], Reading("prefline"))
    assert (found.known, found.batch) == (1, None)
    assert list(found.rejected) == ["another record has the same id"]
    (reject,) = rows_of(tmp_path / found.rejects)
    assert (reject["source"], reject["line"], reject["reason"]) == ("two.jsonl", 2, "another record has the same id (a-1)")
    assert reject["row"]["chosen"][0]["content"] == "No."


def test_ties_are_kept_and_skipped_tasks_counted(tmp_path):
    task = {
        "id": 1,
        "data": {"prompt": "Red?", "answer1": "Yes.", "answer2": "No."},
        "annotations": [
            {"id": 1, "completed_by": 1, "was_cancelled": True, "result": []},
            {
                "id": 2,
                "completed_by": 2,
                "result": [{"from_name": "c", "to_name": "a", "type": "pairwise", "value": {"selected": "left"}}],
            },
        ],
    }
    source = tmp_path / "tasks.json"
    source.write_text(json.dumps([task]))
    found = import_batch(tmp_path, [str(source), write(tmp_path / "t.jsonl", {"id": "t", **pair(1), "tie": True})], READING)
    assert sum(reason.rows for reason in found.skipped.values()) == 1
    assert (found.rejected, found.rejects) == ({}, None)
    assert found.ties == 1


def test_a_source_that_is_damaged_leaves_everything_as_it_was(tmp_path):
    good = write(tmp_path / "good.jsonl", pair(1))
    import_batch(tmp_path, [good], READING)
    before = everything(tmp_path)
    write(tmp_path / "more.jsonl", pair(2))
    with pytest.raises(PreflineError, match=r"gone\.jsonl: no such file"):
        import_batch(tmp_path, [str(tmp_path / "more.jsonl"), str(tmp_path / "gone.jsonl")], READING)
    assert everything(tmp_path) == before
    assert not (tmp_path / WORK).exists()


def test_names_sort_as_batches_arrive_even_if_a_clock_goes_back(tmp_path):
    (tmp_path / BATCHES).mkdir(parents=True)
    (tmp_path / BATCHES / "20990101-000000-00000000.jsonl").write_text("")
    (tmp_path / BATCHES / "zebra.jsonl").write_text("not a batch\n")
    found = import_batch(tmp_path, [write(tmp_path / "a.jsonl", pair(1))], READING)
    assert found.batch.name.startswith("20990101-000001-")


def test_a_batch_that_somebody_edited_is_named(tmp_path):
    found = import_batch(tmp_path, [write(tmp_path / "a.jsonl", pair(1), pair(2))], READING)
    lines = (tmp_path / found.batch).read_text().splitlines()
    (tmp_path / found.batch).write_text(lines[0] + "\n" + lines[1][:20])
    with pytest.raises(PreflineError, match=rf"{found.batch}, line 2: not a whole record"):
        import_batch(tmp_path, [write(tmp_path / "b.jsonl", pair(3))], READING)


def test_a_batch_that_was_taken_out_can_come_in_again(tmp_path):
    source = write(tmp_path / "a.jsonl", pair(1), pair(2))
    found = import_batch(tmp_path, [source], READING)
    body = (tmp_path / found.batch).read_bytes()
    place = take_out(tmp_path, found.batch)
    assert (place.parent, list((tmp_path / BATCHES).iterdir())) == (REFUSED, [])
    again = import_batch(tmp_path, [str(tmp_path / place)], READING)
    assert again.comparisons == 2
    assert [row["id"] for row in rows_of(tmp_path / again.batch)] == [json.loads(line)["id"] for line in body.splitlines()]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batches, "known_records", full)
    with pytest.raises(EnvironmentRefused, match="no space left"):
        import_batch(tmp_path, [write(tmp_path / "a.jsonl", pair(1))], READING)
    assert not (tmp_path / WORK).exists()


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=5)
ROWS = st.lists(
    st.fixed_dictionaries({"prompt": TEXT, "chosen": st.one_of(TEXT, st.integers()), "rejected": TEXT}, optional={"annotator": TEXT}),
    min_size=1,
    max_size=8,
)


@given(ROWS, ROWS)
def test_nothing_is_lost_and_nothing_comes_twice(tmp_path_factory, first, second):
    root = tmp_path_factory.mktemp("project")
    sources = [write(root / "a.jsonl", *first), write(root / "b.jsonl", *second)]
    found = import_batch(root, sources, Reading("prefline"))
    rejected = sum(reason.rows for reason in found.rejected.values())
    assert found.rows == len(first) + len(second) == found.comparisons + found.known + rejected
    kept = rows_of(root / found.batch) if found.batch else []
    assert len({row["id"] for row in kept}) == len(kept) == found.comparisons
    again = import_batch(root, sources, Reading("prefline"))
    assert (again.comparisons, again.batch, again.known + rejected) == (0, None, found.rows)


SCRIPT = """
import sys
from pathlib import Path
from tasks.data.batches import import_batch
from tasks.data.formats import Reading
import_batch(Path(sys.argv[1]), [sys.argv[2]], Reading("prefline"))
"""


def test_a_killed_import_leaves_nothing_and_the_next_one_does_all(tmp_path):
    """Real kills, at moments spread over the whole import."""
    source = write(tmp_path / "many.jsonl", *(pair(number) for number in range(30_000)), *(pair(n, chosen=1) for n in range(1_000)))
    states = set()
    for pause in (0.0, 0.05, 0.1, 0.2, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), source], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        while process.poll() is None and not (tmp_path / WORK).exists():
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        files = [path.name for path in (tmp_path / BATCHES).glob("*")] if (tmp_path / BATCHES).exists() else []
        states.add((len(files), (tmp_path / WORK).exists()))
        if files:
            break
    assert (0, True) in states  # at least one came in the middle of the work
    found = import_batch(tmp_path, [source], Reading("prefline"))
    assert found.comparisons + found.known == 30_000
    assert sum(len(rows_of(path)) for path in (tmp_path / BATCHES).iterdir()) == 30_000
    assert len(list((tmp_path / REJECTS).iterdir())) == 1
    assert not (tmp_path / WORK).exists()
