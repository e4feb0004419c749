"""What stages are given of a snapshot, and where the snapshot of given data lies."""

import json
from pathlib import Path

import pytest

from flows.settings import load_config
from tasks.data.batches import BATCHES, import_batch
from tasks.data.formats import Reading
from tasks.data.records import Comparison, Demonstration
from tasks.data.snapshot import dataset, read_snapshot, snapshot, standing
from tasks.errors import DataRefused, PreflineError
from tasks.stage import Context

OTHER = "data.builtin.seed=1"
MINE = ("data.comparisons=[data/mine]", "data.demonstrations=[data/mine]")


def take(root, *overrides):
    result = snapshot.run(load_config(root, (), overrides), {}, Context(root, root / "runs"))
    return result, read_snapshot(result)


def where(root, *overrides):
    return standing(load_config(root, (), overrides).data, root)


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pair(number, **more):
    return {"prompt": f"Is {number} odd?", "chosen": f"Yes, {number} is.", "rejected": "No."} | more


def test_dataset(project):
    result, seen = take(project, OTHER)
    data = dataset(result, project)
    assert len(data.comparisons()) == seen.comparisons == data.counts()["comparisons"]["rows"]
    assert {c.split for c in data.comparisons("train", "judge")} == {"train", "judge"}
    assert len(data.comparisons("test")) == seen.splits["test"]
    prompts = data.prompts("test")
    assert len({json.dumps(prompt.messages) for prompt in prompts}) == len(prompts)
    assert prompts == data.prompts("test")
    shop = data.shop()
    assert all(shop.by_text[prompt.messages[-1]["content"]].kind == prompt.tags[0] for prompt in prompts)
    assert {d.split for d in data.demonstrations("train")} == {"train"}


def test_records_come_one_by_one(project):
    write(project / "data" / "mine" / "a.jsonl", *(pair(number, split="test" if number < 3 else "train") for number in range(9)))
    result, _ = take(project, *MINE)
    data = dataset(result, project)
    first = next(data.stream(Comparison))
    assert (first.source, first.source_id, first.split) == ("data/mine/a.jsonl", "1", "test")
    assert [record.source_id for record in data.stream(Comparison, "test")] == ["1", "2", "3"]
    assert len(list(data.stream(Demonstration, "train"))) == 6
    lines = (data.folder / "comparisons.jsonl").read_bytes().splitlines(keepends=True)
    (data.folder / "comparisons.jsonl").chmod(0o644)
    (data.folder / "comparisons.jsonl").write_bytes(b"".join([*lines[:4], b"cut\n"]))
    stream = data.stream(Comparison)  # what comes before the damage is there before it is seen
    assert [next(stream).source_id for _ in range(4)] == ["1", "2", "3", "4"]
    with pytest.raises(PreflineError, match="line 5: not a comparison"):
        next(stream)


def test_where_a_snapshot_stands_is_known_before_it_is_taken(project):
    assert where(project) == Path("data/prepared")
    write(project / "data" / "mine" / "a.jsonl", *map(pair, range(5)))
    before = where(project, *MINE)
    assert take(project, *MINE)[1].folder == before
    write(project / "data" / "mine" / "b.jsonl", pair(5))
    (project / "data" / "mine" / "notes.txt").write_text("not data\n")
    after = where(project, *MINE)
    assert after != before
    (project / "data" / "mine" / "notes.txt").write_text("still not data\n")
    assert where(project, *MINE) == after
    assert where(project, *MINE, "data.near_duplicates=0") != after
    (project / "data" / "mine" / "b.jsonl").unlink()
    assert where(project, *MINE) == before
    hub = [where(project, f"data.comparisons=[hub:owner/{name}]") for name in ("one", "two")]
    assert hub[0] != hub[1]


def test_a_source_without_a_record_is_refused_and_nothing_stays(project, git):
    write(project / "data" / "mine" / "a.jsonl", pair(1, chosen=5))
    with pytest.raises(DataRefused, match=r"No comparisons in data\.comparisons") as refused:
        take(project, *MINE)
    assert "data/mine/a.jsonl, line 1" in refused.value.advice
    assert [path.name for path in (project / "data" / "snapshots").iterdir()] == [".gitignore"]
    assert git(project, "status", "--short") == "?? data/mine/\n"


def test_batches_are_read_as_what_they_are_whatever_format_the_next_import_has(project):
    write(project.parent / "a.jsonl", *map(pair, range(5)))
    import_batch(project, [str(project.parent / "a.jsonl")], Reading())
    names = [f"data.{role}=[{BATCHES}]" for role in ("comparisons", "demonstrations")]
    assert take(project, *names, "data.format=label-studio")[1].comparisons == 5
