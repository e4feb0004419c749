import json
from collections import Counter
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from tasks.config import BuiltInConfig, DataConfig, SplitConfig
from tasks.data import intake
from tasks.data.batches import import_batch
from tasks.data.formats import Reading
from tasks.data.importers import Reject
from tasks.data.intake import Counts, reject_line
from tasks.data.prepare import BUILT_IN, import_sources, normalise, split
from tasks.data.records import Comparison, Demonstration, assistant, digest, read_jsonl, user
from tasks.data.shop import Shop
from tasks.data.tables import code
from tasks.errors import DataRefused, PreflineError

ROOT = Path(__file__).parents[3]
SHOP = ROOT / "data" / "shop.yaml"
SMALL = BuiltInConfig(demonstrations_per_question=1, rankings_per_question=1)
LONG = (
    "Please tell me in a few words of your own how one best keeps a wooden floor clean in the winter when it snows and everybody comes in"
)
"""Of 27 words: with another last one, 26 of 32 word triples are the same, a share of 0.8125."""


def pair(prompt, chosen="Yes, it is.", rejected="No.", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more


def demonstration(prompt, answer="Yes.", **more):
    return {"prompt": prompt, "completion": answer} | more


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture
def prepared(tmp_path):
    """prepared(comparisons, demonstrations) -> the folder that the three stages make of them."""

    def prepare(rows, shown, **settings):
        write(tmp_path / "c.jsonl", rows)
        write(tmp_path / "d.jsonl", shown)
        config = DataConfig(**({"comparisons": ["c.jsonl"], "demonstrations": ["d.jsonl"]} | settings))
        import_sources(config, SHOP, tmp_path, tmp_path / "imported")
        normalise(config, tmp_path / "imported", tmp_path / "normalised")
        split(SplitConfig(), tmp_path / "normalised", tmp_path / "prepared")
        return tmp_path / "prepared"

    return prepare


def comparisons(folder):
    return list(read_jsonl(folder / "comparisons.jsonl", Comparison))


def demonstrations(folder):
    return list(read_jsonl(folder / "demonstrations.jsonl", Demonstration))


def prompts(records):
    return [record.prompt[0]["content"] for record in records]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts(folder):
    return json.loads((folder / "counts.json").read_text())


# Importing ----------------------------------------------------------------------------------------------------------


def test_every_row_is_accounted_for(prepared):
    rows = [pair("A?"), pair("A?"), "{cut", pair("B?", chosen=""), pair("C?", id="x"), pair("D?", id="x"), demonstration("E?")]
    folder = prepared(rows, [demonstration("A?")])
    assert len(comparisons(folder)) == 3
    assert [(row["line"], row["role"]) for row in lines(folder / "rejects.jsonl")] == [(n, "comparisons") for n in (3, 4, 7, 6)]
    found = counts(folder)
    assert found["rejects"]["rows"] == found["rejects"]["comparisons"] == 4
    assert sum(found["rejects"]["reasons"].values()) == 4
    assert found["rejects"]["reasons"]["another record has the same id"] == 1
    assert found["comparisons"]["rows"] == sum(found["comparisons"]["splits"].values()) == 3
    assert found["demonstrations"]["rows"] == 1


def test_what_was_refused_can_be_mended_and_imported_again(prepared, tmp_path):
    first = prepared(
        [pair("A?"), pair("B?", chosen=""), demonstration("E?"), pair("C?", id="x"), pair("D?", id="x")], [demonstration("A?")]
    )
    refused = lines(first / "rejects.jsonl")
    mended = [
        {**row, "row": row["row"] | ({"id": f"new {number}"} if "id" in row["row"] else {"chosen": "Oh yes."})}
        for number, row in enumerate(refused)
    ]
    write(tmp_path / "mended.jsonl", mended)
    sources = {"comparisons": ["c.jsonl", "mended.jsonl"], "demonstrations": ["d.jsonl", "mended.jsonl"]}
    again = prepared([pair("A?")], [demonstration("A?")], **sources)
    assert [(r.source, r.source_id) for r in comparisons(again)] == [("c.jsonl", "1"), ("c.jsonl", "2"), ("c.jsonl", "5")]
    assert prompts(demonstrations(again)) == ["B?", "E?", "D?", "A?"]  # their file comes first


def test_a_source_named_twice_counts_once(prepared, tmp_path):
    write(tmp_path / "again.jsonl", [pair("A?"), pair("Z?")])
    folder = prepared([pair("A?"), pair("B?")], [demonstration("A?")], comparisons=["c.jsonl", "again.jsonl", "c.jsonl"])
    assert prompts(comparisons(folder)) == ["A?", "B?", "Z?"]
    assert [(row["source"], row["line"], row["first"]) for row in lines(folder / "repeated.jsonl")] == [
        ("again.jsonl", "1", "c.jsonl, line 1")
    ]
    assert counts(folder)["repeated"] == 1


def test_one_file_for_both_roles(prepared):
    rows = [pair("A?"), demonstration("B?"), pair("C?", tie=True), "{cut"]
    folder = prepared(rows, ["{unused"], demonstrations=["c.jsonl"])
    assert prompts(comparisons(folder)) == ["A?", "C?"]
    assert [(record.prompt[0]["content"], record.answer[0]["content"]) for record in demonstrations(folder)] == [
        ("A?", "Yes, it is."),
        ("B?", "Yes."),
    ]
    assert [row["line"] for row in lines(folder / "rejects.jsonl")] == [4]


def test_a_chosen_answer_is_demonstrated_once(prepared):
    folder = prepared([pair("A?", rejected="No."), pair("A?", rejected="Never.")], ["{unused"], demonstrations=["c.jsonl"])
    assert len(demonstrations(folder)) == 1


def test_what_an_annotator_passed_by_is_no_fault(prepared):
    task = {
        "id": 1,
        "data": {"prompt": "A?", "answer1": "Yes.", "answer2": "No."},
        "annotations": [{"id": 1, "completed_by": 1, "was_cancelled": True, "result": []}],
    }
    folder = prepared([pair("A?"), task], [demonstration("A?")])
    assert counts(folder)["skipped"] == 1
    assert counts(folder)["rejects"]["rows"] == 0
    assert [(row["line"], row["row"]) for row in lines(folder / "skipped.jsonl")] == [(2, task)]


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
def test_a_role_without_records_is_refused_and_leaves_nothing(prepared, tmp_path, rows, shown, what, advice):
    with pytest.raises(DataRefused) as refused:
        prepared(rows, shown)
    assert what in refused.value.what
    assert advice in refused.value.advice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "d.jsonl"]


def test_a_source_that_fails_leaves_what_was_there(prepared, tmp_path):
    before = comparisons(prepared([pair("A?")], [demonstration("A?")]))
    with pytest.raises(PreflineError, match=r"none\.jsonl"):
        prepared([pair("B?")], [demonstration("B?")], demonstrations=["none.jsonl"])
    assert prompts(comparisons(tmp_path / "imported")) == prompts(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "d.jsonl", "imported", "normalised", "prepared"]


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        *product(("imported", "normalised"), ("comparisons.jsonl", "demonstrations.jsonl", "counts.json")),
        ("imported", "arrivals.json"),
        ("normalised", "groups.parquet"),
    ],
)
def test_records_lost_on_the_way_are_missed(prepared, tmp_path, stage, name):
    before = prepared([pair("A?"), pair("B?")], [demonstration("A?"), demonstration("B?")])

    def go_on():
        if stage == "imported":
            normalise(DataConfig(), tmp_path / stage, before)
        else:
            split(SplitConfig(), tmp_path / stage, before)

    path = tmp_path / stage / name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole + whole if name.endswith("jsonl") else b"x", b"", None):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        with pytest.raises(PreflineError, match=stage):
            go_on()
    assert len(comparisons(before)) == 2


@pytest.mark.parametrize("row", [{"id": 2**70}, {"text": "\ud800"}, {"when": pd.Timestamp("2026-01-01")}, "text", None])
def test_any_reject_has_a_line(row):
    line = reject_line(Reject("s", 3, "no", row), "comparisons")
    assert line.endswith(b"\n")
    assert json.loads(line)["line"] == 3
    assert json.loads(line)["row"] == (row if not isinstance(row, dict) or "when" not in row else {"when": "2026-01-01 00:00:00"})


def test_counts_of_many_reasons_keep_their_sum(monkeypatch):
    monkeypatch.setattr(intake, "REASONS", 2)
    first = Counts(Counter(comparisons=6), Counter(a=3, b=2, c=1))
    assert first.body()["rejects"]["reasons"] == {"a": 3, "b": 2, "other reasons": 1}
    again = Counts.load(first.body())
    for _ in range(5):
        again.reject("demonstrations", "d (7)")
    assert again.body()["rejects"] == {
        "rows": 11,
        "comparisons": 6,
        "demonstrations": 5,
        "reasons": {"d": 5, "a": 3, "other reasons": 3},
    }


# The built-in set ---------------------------------------------------------------------------------------------------


def test_gold_comes_with_the_built_in_set_alone(prepared):
    settings = {"builtin": SMALL}
    alone = prepared([pair("A?")], [demonstration("A?")], comparisons=[BUILT_IN], **settings)
    assert Shop.load(alone / "gold.json").facts == Shop.from_yaml(SHOP, 0).facts
    mixed = prepared([pair("A?")], [demonstration("A?")], comparisons=[BUILT_IN, "c.jsonl"], **settings)
    assert not (mixed / "gold.json").exists()


def test_a_missing_definition_is_named(tmp_path):
    with pytest.raises(PreflineError, match=r"none\.yaml can't be read"):
        import_sources(DataConfig(), tmp_path / "none.yaml", tmp_path, tmp_path / "imported")
    for text in ("items: [lamp]", "", "{", "[]", "\x00"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(PreflineError, match=r"bad\.yaml can't be read"):
            import_sources(DataConfig(), tmp_path / "bad.yaml", tmp_path, tmp_path / "imported")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    """Two times the built-in set, made apart."""
    made = [tmp_path_factory.mktemp("built-in") for _ in range(2)]
    for root in made:
        import_sources(DataConfig(builtin=SMALL), SHOP, root, root / "imported")
        normalise(DataConfig(builtin=SMALL), root / "imported", root / "normalised")
        split(SplitConfig(), root / "normalised", root / "prepared")
    return made


def test_equal_sources_give_equal_bytes(built_in):
    one, two = built_in
    files = [path for path in one.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_built_in_prompts_stay_in_groups_of_their_own(built_in):
    found = counts(built_in[0] / "prepared")
    groups = {record.group_id: record.prompt[0]["content"] for record in comparisons(built_in[0] / "prepared")}
    assert groups == {digest("prompt", prompt): prompt for prompt in groups.values()}
    assert found["near_duplicates"]["joined_prompts"] == found["near_duplicates"]["near_other_group"] == 0
    assert found["groups"]["all"] == len(groups) == found["near_duplicates"]["prompts"]


def test_built_in_splits(built_in):
    folder = built_in[0] / "prepared"
    shop = Shop.load(folder / "gold.json")
    unseen = {question.text for question in shop.questions if question.split == "test"}
    by_prompt = {}
    for record in [*comparisons(folder), *demonstrations(folder)]:
        by_prompt.setdefault(record.prompt[0]["content"], set()).add(record.split)
    assert all(len(splits) == 1 for splits in by_prompt.values())
    assert all(by_prompt[text] == {"test"} for text in unseen)
    assert sum(splits == {"test"} for splits in by_prompt.values()) >= 200


def test_each_built_in_slice_is_in_every_split(built_in):
    slices = {}
    for record in comparisons(built_in[0] / "prepared"):
        slices.setdefault(record.tags[0], set()).add(record.split)
    assert {name: len(splits) for name, splits in slices.items() if len(splits) < 4} == {"unseen phrasing": 1, "unseen combination": 1}


# Groups -------------------------------------------------------------------------------------------------------------


def test_prompts_that_nearly_repeat_an_earlier_one_are_in_its_group(prepared):
    rows = [pair(LONG), pair(LONG.replace("in", "by") + " today"), pair("A?"), pair(LONG.upper() + "!"), pair(f"{LONG[:-2]} out")]
    folder = prepared(rows, [demonstration(LONG + ".")])
    groups = [record.group_id for record in comparisons(folder)]
    assert groups[0] == groups[3] == groups[4] == demonstrations(folder)[0].group_id == digest("prompt", [user(LONG)])
    assert len(set(groups)) == 3
    apart = prepared(rows, [demonstration(LONG)], near_duplicates=0)
    assert len({record.group_id for record in comparisons(apart)}) == 5
    assert not (apart / "near.parquet").exists()
    assert counts(apart)["near_duplicates"] is None


def test_a_shared_system_message_makes_prompts_no_more_alike(prepared):
    def asked(question):
        return pair([{"role": "system", "content": LONG * 3}, user(question)], [assistant("Yes.")], [assistant("No.")])

    folder = prepared([asked("How is it?"), asked("What for?")], [demonstration("A?")])
    assert len({record.group_id for record in comparisons(folder)}) == 2


def test_groups_bear_the_name_of_the_oldest(prepared):
    rows = [pair("A?", group_id="first"), pair("B?", group_id="second"), pair("C?", group_id="second"), pair("A?", "Ja.", group_id="third")]
    folder = prepared(rows, [demonstration("C?"), demonstration("A?", group_id="second")])
    assert [record.group_id for record in comparisons(folder)] == ["first"] * 4
    assert [record.group_id for record in demonstrations(folder)] == ["first"] * 2
    assert counts(folder)["groups"] == {"all": 1, "largest": 6}
    assert len({record.split for record in [*comparisons(folder), *demonstrations(folder)]}) == 1


def near(folder):
    table = pd.read_parquet(folder / "near.parquet").set_index("id")
    return [tuple(table.loc[code(record.id)]) for record in comparisons(folder)]


def test_comparisons_that_nearly_repeat_an_earlier_one_are_marked(prepared):
    other = LONG.replace("floor", "floor,") + " here"
    rows = [
        pair("A?", LONG, "No."),
        pair("A?", other, "No."),  # nearly the first
        pair("A?", "No", LONG),  # the first, the other way round and without a full stop
        pair("A?", LONG, "No.", annotator="ben"),  # a second opinion is no repetition
        pair("A?", LONG, "Never."),  # another answer
        pair("B?", LONG, "No."),  # another prompt
        pair("A?", "No.", other, annotator="ben"),  # what repeats, again
    ]
    assert [repeats for repeats, _ in near(prepared(rows, [demonstration("A?")]))] == [False, True, True, False, False, False, True]


def test_prompts_like_one_of_another_group_are_marked(prepared):
    first, last, middle = ([f"{letter}{n}" for n in range(size)] for letter, size in (("a", 10), ("b", 10), ("m", 60)))
    rows = [pair(" ".join([*first, *middle])), pair(" ".join([*middle, *last])), pair(" ".join([*first, *middle, *last])), pair("A?")]
    folder = prepared(rows, [demonstration("A?")])
    groups = [record.group_id for record in comparisons(folder)]
    assert (groups[0] == groups[2], groups[0] == groups[1]) == (True, False)
    assert [elsewhere for _, elsewhere in near(folder)] == [False, True, True, False]
    assert counts(folder)["near_duplicates"]["near_other_group"] == 2
    together = prepared([row | {"group_id": "g"} for row in rows], [demonstration("A?")])
    assert not any(elsewhere for _, elsewhere in near(together))


# Splits -------------------------------------------------------------------------------------------------------------


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


def test_demonstrations_of_a_prompt_follow_its_comparisons(prepared):
    questions = [f"Question {n}?" for n in range(60)]
    folder = prepared([pair(p) for p in questions], [demonstration(p) for p in questions])
    assert {r.group_id: r.split for r in comparisons(folder)} == {r.group_id: r.split for r in demonstrations(folder)}
    assert len({r.split for r in comparisons(folder)}) == 4
    assert comparisons(folder)[0].group_id == digest("prompt", [user("Question 0?")])


def test_new_batches_move_nobody(prepared, tmp_path):
    """Files of a folder arrive in order, comparisons and demonstrations alike."""
    folder = tmp_path / "batches"
    folder.mkdir()
    sources = {"comparisons": ["c.jsonl", "batches"], "demonstrations": ["c.jsonl", "batches"], "near_duplicates": 0.8}
    before = {}
    for batch in range(4):
        rows = [
            pair(f"Question {n} of {batch}?", tags=[f"slice {n % 3}"]) if n % 2 else demonstration(f"Task {n % 7} of {batch}?")
            for n in range(40)
        ]
        rows += [pair(f"Task {n} of {batch - 1}?") for n in range(0, 7, 3)]  # shown in the batch before
        rows += [pair(f"{LONG} {batch}"), demonstration(f"{LONG} {batch} now")]  # nearly the first one
        write(folder / f"2026-01-0{batch + 1}.jsonl", rows)
        found = prepared([pair("A?"), demonstration("B?")], [], **sources)
        after = {record.id: record.split for record in [*comparisons(found), *demonstrations(found)]}
        assert {name: after[name] for name in before} == before
        before = after
    assert len(before) > 200


def test_records_of_a_batch_keep_the_place_that_they_came_from(tmp_path):
    write(tmp_path / "march.jsonl", [{"chosen": 1}, pair("Is it warm?"), pair("Is it red?")])
    import_batch(tmp_path, [str(tmp_path / "march.jsonl")], Reading())
    write(tmp_path / "d.jsonl", [demonstration("Is it old?")])
    config = DataConfig(comparisons=["data/batches"], demonstrations=["d.jsonl"], format="completion")  # which the batch is not
    import_sources(config, SHOP, tmp_path, tmp_path / "imported")
    places = [(found.source, found.source_id) for found in read_jsonl(tmp_path / "imported" / "comparisons.jsonl", Comparison)]
    assert places == [("march.jsonl", "2"), ("march.jsonl", "3")]
