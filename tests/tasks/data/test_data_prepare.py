import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import BuiltInConfig, DataConfig, SplitConfig
from tasks.data.prepare import BUILT_IN, make_builtin, normalise, split
from tasks.data.records import Comparison, Demonstration, assistant, digest, read_jsonl, user
from tasks.data.shop import Shop
from tasks.data.splits import Groups, split_of
from tasks.data.statistics import longer_chosen
from tasks.errors import DataRefused

ROOT = Path(__file__).parents[3]
SMALL = BuiltInConfig(demonstrations_per_question=1, rankings_per_question=1)


def pair(prompt, chosen="Yes, it is.", rejected="No.", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more


def demonstration(prompt, answer="Yes.", **more):
    return {"prompt": prompt, "completion": answer} | more


@pytest.fixture
def prepared(tmp_path):
    """prepared(comparisons, demonstrations) -> the folder that `normalise` and `split` make of them."""

    def prepare(rows, shown, **files):
        for name, content in {"c.jsonl": rows, "d.jsonl": shown}.items():
            (tmp_path / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content))
        config = DataConfig(**({"comparisons": ["c.jsonl"], "demonstrations": ["d.jsonl"]} | files))
        normalise(config, tmp_path / "raw", tmp_path, tmp_path / "imported")
        split(SplitConfig(), tmp_path / "imported", tmp_path / "prepared")
        return tmp_path / "prepared"

    return prepare


def comparisons(folder):
    return list(read_jsonl(folder / "comparisons.jsonl", Comparison))


def demonstrations(folder):
    return list(read_jsonl(folder / "demonstrations.jsonl", Demonstration))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Importing ----------------------------------------------------------------------------------------------------------


def test_every_row_is_accounted_for(prepared):
    rows = [pair("A?"), pair("A?"), "{cut", pair("B?", chosen=""), pair("C?", id="x"), pair("D?", id="x"), demonstration("E?")]
    folder = prepared(rows, [demonstration("A?")])
    assert len(comparisons(folder)) == 3
    assert [(row["line"], row["role"]) for row in lines(folder / "rejects.jsonl")] == [(n, "comparisons") for n in (3, 4, 6, 7)]
    statistics = json.loads((folder / "statistics.json").read_text())
    assert statistics["rejects"]["rows"] == statistics["rejects"]["comparisons"] == 4
    assert sum(statistics["rejects"]["reasons"].values()) == 4
    assert statistics["rejects"]["reasons"]['"chosen" is empty'] == 1
    assert statistics["comparisons"]["sources"] == {"c.jsonl": 3}


def test_a_source_named_twice_counts_once(prepared, tmp_path):
    (tmp_path / "again.jsonl").write_text(json.dumps(pair("A?")) + "\n" + json.dumps(pair("Z?")) + "\n")
    folder = prepared([pair("A?"), pair("B?")], [demonstration("A?")], comparisons=["c.jsonl", "again.jsonl", "c.jsonl"])
    assert [record.prompt[0]["content"] for record in comparisons(folder)] == ["A?", "B?", "Z?"]
    assert [(row["source"], row["line"], row["first"]) for row in lines(folder / "repeated.jsonl")] == [
        ("again.jsonl", "1", "c.jsonl, line 1")
    ]
    assert json.loads((folder / "statistics.json").read_text())["repeated"] == 1


def test_one_file_for_both_roles(prepared):
    rows = [pair("A?"), demonstration("B?"), pair("C?", tie=True), "{cut"]
    folder = prepared(rows, ["{unused"], demonstrations=["c.jsonl"])
    assert [record.prompt[0]["content"] for record in comparisons(folder)] == ["A?", "C?"]
    assert [(record.prompt[0]["content"], record.answer[0]["content"]) for record in demonstrations(folder)] == [
        ("A?", "Yes, it is."),
        ("B?", "Yes."),
    ]
    assert [row["line"] for row in lines(folder / "rejects.jsonl")] == [4]


def test_a_chosen_answer_is_demonstrated_once(prepared):
    folder = prepared([pair("A?", rejected="No."), pair("A?", rejected="Never.")], ["{unused"], demonstrations=["c.jsonl"])
    assert len(demonstrations(folder)) == 1


@pytest.mark.parametrize(
    ("rows", "shown", "what", "advice"),
    [
        (
            [demonstration("A?")],
            [demonstration("A?")],
            "No comparisons in data.comparisons",
            "c.jsonl, line 1: a demonstration among the comparisons",
        ),
        (
            [pair("A?")],
            [pair("A?", tie=True)],
            "No demonstrations in data.demonstrations",
            "d.jsonl, line 1: a tie among the demonstrations",
        ),
        (["{cut", "{cut"], [demonstration("A?")], "No comparisons", "c.jsonl, line 1: not JSON"),
    ],
)
def test_a_role_without_records_is_refused(prepared, rows, shown, what, advice):
    with pytest.raises(DataRefused) as refused:
        prepared(rows, shown)
    assert what in refused.value.what
    assert advice in refused.value.advice


def test_gold_comes_with_the_built_in_set_alone(tmp_path, prepared):
    make_builtin(SMALL, ROOT / "data" / "shop.yaml", tmp_path / "raw")
    alone = prepared([pair("A?")], [demonstration("A?")], comparisons=[BUILT_IN])
    assert Shop.load(alone / "gold.json").facts == Shop.from_yaml(ROOT / "data" / "shop.yaml", 0).facts
    mixed = prepared([pair("A?")], [demonstration("A?")], comparisons=[BUILT_IN, "c.jsonl"])
    assert not (mixed / "gold.json").exists()


def test_equal_sources_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        make_builtin(SMALL, ROOT / "data" / "shop.yaml", tmp_path / name / "raw")
        normalise(DataConfig(builtin=SMALL), tmp_path / name / "raw", tmp_path, tmp_path / name / "imported")
        split(SplitConfig(), tmp_path / name / "imported", tmp_path / name / "prepared")
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


# Splits -------------------------------------------------------------------------------------------------------------


def test_split_of_by_hand():
    place = int(hashlib.sha256(b"split a").hexdigest()[:13], 16) / 16**13
    bounds = [("test", 0.18), ("validation", 0.30), ("judge", 0.60), ("train", 1.0)]
    assert split_of("a", SplitConfig()) == next(name for name, bound in bounds if place < bound)


def test_shares_of_splits():
    shares = SplitConfig(judge=0.3, validation=0.12, test=0.18)
    counts = [split_of(str(n), shares) for n in range(20_000)]
    for name, share in (("train", 0.4), ("judge", 0.3), ("validation", 0.12), ("test", 0.18)):
        assert counts.count(name) / 20_000 == pytest.approx(share, abs=0.012)


def record(group, prompt, split=None):
    return Comparison("", [user(prompt)], [assistant("a")], [assistant("b")], "s", "1", group, split=split)


SOME = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("PQRSTUVW")), min_size=1, max_size=20)


@given(rows=SOME)
def test_no_group_and_no_prompt_is_in_two_splits(rows):
    groups = Groups()
    for group, prompt in rows:
        groups.add(record(group, prompt))
    splits = groups.splits(SplitConfig())
    for _, prompt in rows:
        assert len({splits[group] for group, other in rows if other == prompt}) == 1


@given(rows=st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=20), more=st.lists(st.sampled_from("abcxyz"), max_size=20))
def test_splits_stay_as_data_grows(rows, more):
    before, after = Groups(), Groups()
    for group in rows:
        before.add(record(group, f"prompt {group}"))
    for group in [*rows, *more]:
        after.add(record(group, f"prompt {group}"))
    grown = after.splits(SplitConfig())
    assert all(grown[group] == split for group, split in before.splits(SplitConfig()).items())


@given(rows=SOME, more=SOME)
def test_appended_rows_that_join_two_groups_move_the_younger_one(rows, more):
    before, after = Groups(), Groups()
    for group, prompt in rows:
        before.add(record(group, prompt))
    for group, prompt in [*rows, *more]:
        after.add(record(group, prompt))
    oldest = rows[0][0]
    assert before.splits(SplitConfig())[oldest] == after.splits(SplitConfig())[oldest]


def test_given_splits_are_kept_and_followed(prepared):
    rows = [
        pair("A?", split="validation"),
        pair("A?", rejected="Never."),
        pair("B?", split="train", group_id="g"),
        pair("C?", group_id="g"),
    ]
    folder = prepared(rows, [demonstration("A?"), demonstration("C?", group_id="g"), demonstration("D?", split="test")])
    assert [r.split for r in comparisons(folder)] == ["validation", "validation", "train", "train"]
    assert [r.split for r in demonstrations(folder)] == ["validation", "train", "test"]


def test_given_splits_that_disagree_are_kept_for_the_contract_to_refuse(prepared):
    folder = prepared(
        [pair("A?", split="train"), pair("A?", rejected="Never.", split="test"), pair("A?", rejected="Nope.")], [demonstration("B?")]
    )
    assert [r.split for r in comparisons(folder)] == ["train", "test", "test"]


def test_built_in_splits(tmp_path):
    make_builtin(SMALL, ROOT / "data" / "shop.yaml", tmp_path / "raw")
    normalise(DataConfig(builtin=SMALL), tmp_path / "raw", tmp_path, tmp_path / "imported")
    split(SplitConfig(), tmp_path / "imported", tmp_path / "prepared")
    shop = Shop.load(tmp_path / "prepared" / "gold.json")
    unseen = {question.text for question in shop.questions if question.split == "test"}
    by_prompt = {}
    for r in [*comparisons(tmp_path / "prepared"), *demonstrations(tmp_path / "prepared")]:
        by_prompt.setdefault(r.prompt[0]["content"], set()).add(r.split)
    assert all(len(splits) == 1 for splits in by_prompt.values())
    assert all(by_prompt[text] == {"test"} for text in unseen)
    assert sum(splits == {"test"} for splits in by_prompt.values()) >= 200


# Figures ------------------------------------------------------------------------------------------------------------


def test_statistics_by_hand(prepared):
    rows = [
        pair("Is it red?", "Yes, it is.", "No.", annotator="ana"),
        pair("Is it red?", "No.", "Not at all.", annotator="ana"),
        pair("Is it blue?", "Yes.", "Nope", annotator="ben"),
        pair("Is it blue?", "Yes, very.", "No.", annotator="ben", tie=True),
        pair("Is it big?", "Yes, very.", "No."),
    ]
    found = json.loads((prepared(rows, [demonstration("Is it red?", "Yes it is")]) / "statistics.json").read_text())
    first = found["comparisons"]
    assert (first["rows"], first["groups"], first["ties"]) == (5, 3, 1)
    assert first["annotators"] == {"ana": 2, "ben": 2, "unknown": 1}
    assert first["longer_chosen"] == pytest.approx(2 / 3, abs=1e-4)  # rows 1 and 5 against 2; row 3 is as long, row 4 a tie
    assert first["words"]["chosen"] == {"mean": 1.8, "median": 2, "longest": 3}
    assert sum(first["splits"].values()) == 5
    assert found["demonstrations"]["words"]["answer"]["mean"] == 3


def test_longer_chosen_knows_when_it_cannot_tell():
    one = record("g", "P")
    assert longer_chosen(one) is None
    one.chosen = [assistant("much longer")]
    assert longer_chosen(one) is True
    one.tie = True
    assert longer_chosen(one) is None


def test_demonstrations_of_a_prompt_follow_its_comparisons(prepared):
    prompts = [f"Question {n}?" for n in range(60)]
    folder = prepared([pair(p) for p in prompts], [demonstration(p) for p in prompts])
    assert {r.group_id: r.split for r in comparisons(folder)} == {r.group_id: r.split for r in demonstrations(folder)}
    assert len({r.split for r in comparisons(folder)}) == 4
    assert comparisons(folder)[0].group_id == digest("prompt", [user("Question 0?")])
