"""Tables by hand and by second methods: codes, lengths, flags, and what a row is among the others."""

import itertools
import math
import os
import statistics as plain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.encoding import encode_answer, encode_prompt
from tasks.data.importers import import_file
from tasks.data.records import SPLITS, Comparison, Demonstration, assistant, digest, user
from tasks.data.statistics import describe, wilson
from tasks.data.tables import BETWEEN_TAGS, code, comparison_table, counts_table, demonstration_table, mark_near, mark_parted
from tasks.data.tokens import Tokens

HH = Path(os.environ.get("PREFLINE_REAL_DATA", "/nowhere")) / "hh-rlhf" / "harmless-base_test.jsonl.gz"


def comparison(n=0, prompt="Why?", chosen="Because.", rejected="No.", **more):
    def said(text):
        return text if isinstance(text, list) else [assistant(text)]

    asked = prompt if isinstance(prompt, list) else [user(prompt)]
    return Comparison(
        **{
            "id": digest(n),
            "prompt": asked,
            "chosen": said(chosen),
            "rejected": said(rejected),
            "source": "a.jsonl",
            "source_id": str(n + 1),
            "group_id": digest("group", asked),
        }
        | more
    )


def test_columns_by_hand():
    row = comparison(
        6,
        "Two words",
        "One",
        "Three more words",
        annotator="ana",
        ranking=digest("r"),
        strength=2.5,
        chosen_first=True,
        seconds=7.5,
        labels_by="people",
        language="de",
        split="test",
        tags=["hard", "maths"],
    )
    table = comparison_table([row, comparison(7, tie=True, source_id="none")])
    first, second = table.iloc[0], table.iloc[1]
    assert first["id"] == code(digest(6)) == int(digest(6), 16)
    assert first["prompt"] == code(digest(row.prompt))
    assert first["chosen"] == code(digest(row.chosen))
    assert first["group"] == code(row.group_id)
    assert first["ranking"] == code(digest("r"))
    assert (first["prompt_words"], first["chosen_words"], first["rejected_words"]) == (2, 1, 3)
    assert (first["chosen_characters"], first["rejected_characters"]) == (3, 16)
    assert first[["annotator", "source", "split", "labels_by", "language", "tag"]].tolist() == [
        "ana",
        "a.jsonl",
        "test",
        "people",
        "de",
        "hard",
    ]
    assert first["tags"] == f"hard{BETWEEN_TAGS}maths"
    assert (first["line"], first["strength"], first["chosen_first"], first["seconds"], first["longer_chosen"]) == (7, 2.5, 1, 7.5, 0)
    assert (second["ranking"], second["line"], second["tie"]) == (0, 0, True)
    missing = ["annotator", "split", "labels_by", "language", "tag", "tags", "strength", "chosen_first", "seconds", "longer_chosen"]
    assert second[missing].isna().all()
    for name in ("id", "prompt", "chosen", "rejected", "group", "ranking"):
        assert table[name].dtype == np.uint64
    for name in ("annotator", "source", "split", "labels_by", "language", "tag", "tags"):
        assert isinstance(table[name].dtype, pd.CategoricalDtype)


def test_tables_of_nothing_have_all_columns():
    some, none = comparison_table([comparison()]), comparison_table([])
    assert list(some.columns) == list(none.columns)
    assert len(none) == 0
    mark_parted(none, demonstration_table([]))
    mark_near(none, None)
    assert describe(none, demonstration_table([]))["comparisons"]["rows"] == 0


def test_tables_hold_no_text():
    rows = [comparison(0, "<script>", "<b>", "<i>", id="<u>", group_id="<a>", ranking="<s>")]
    assert "<" not in comparison_table(rows).drop(columns="source").to_csv()


@given(st.text())
def test_codes_fit_in_64_bits_and_tell_texts_apart(text):
    assert 0 <= code(text) < 2**64
    assert code(text) != code(text + "x")


@given(st.text(st.sampled_from("ab \t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u3000é."), max_size=30))
def test_words_are_those_of_split(text):
    table = comparison_table([comparison(0, text, text + "é", "a " + text)])
    wanted = [len(text.split()), len((text + "é").split()), len(("a " + text).split())]
    assert table.loc[0, ["prompt_words", "chosen_words", "rejected_words"]].tolist() == wanted


CONVERSATIONS = {
    "as it should be": ([user("a")], [assistant("b")], set()),
    "system first": ([{"role": "system", "content": "s"}, user("a")], [assistant("b")], set()),
    "several turns": ([user("a"), assistant("b"), user("c")], [assistant("d")], set()),
    "twice the user": ([user("a"), user("b")], [assistant("c")], {"turns"}),
    "assistant begins": ([assistant("a"), user("b")], [assistant("c")], {"turns"}),
    "prompt ends with the assistant": ([user("a"), assistant("b")], [assistant("c")], {"turns"}),
    "two answers": ([user("a")], [assistant("b"), assistant("c")], {"turns"}),
    "goes on after the answer": ([user("a")], [assistant("b"), user("c"), assistant("d")], {"turns", "not_by_assistant"}),
    "system in the middle": ([user("a"), {"role": "system", "content": "s"}], [assistant("b")], {"turns"}),
    "system alone": ([{"role": "system", "content": "s"}], [assistant("b")], {"turns"}),
    "user answers": ([user("a")], [user("b")], {"turns", "not_by_assistant"}),
    "unknown role": ([{"role": "customer", "content": "a"}], [assistant("b")], {"unknown_role"}),
    "empty": ([user(" \n")], [assistant("b")], {"empty"}),
}
OF_A_ROW = (
    "empty",
    "unknown_role",
    "not_by_assistant",
    "turns",
    "control_characters",
    "garbled",
    "special_tokens",
    "email",
    "phone",
    "card",
    "secret",
)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_flags_of_a_conversation(name):
    prompt, answer, flags = CONVERSATIONS[name]
    for table in (
        comparison_table([comparison(0, prompt, answer, "Fine.")]),
        comparison_table([comparison(0, prompt, "Fine.", answer)]),
        demonstration_table([Demonstration(digest(1), prompt, answer, "a.jsonl", "1", "g")]),
    ):
        assert {flag for flag in OF_A_ROW if table.loc[0, flag]} == flags


TEXTS = st.text(st.sampled_from("abcde fgh\n<|>/user.,é你😀"), max_size=60)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=6), st.integers(8, 120))
def test_too_long_as_counted_in_full(tokenizer, texts, limit):
    """The second method encodes everything as training does."""
    rows = [comparison(n, f"p{prompt}", f"c{chosen}", f"r{rejected}") for n, (prompt, chosen, rejected) in enumerate(texts)]
    wanted = [
        len(encode_prompt(tokenizer, row.prompt))
        + max(len(encode_answer(tokenizer, row.prompt, side)) for side in (row.chosen, row.rejected))
        for row in rows
    ]
    assert comparison_table(rows, Tokens(tokenizer, limit))["too_long"].tolist() == [length > limit for length in wanted]


def test_what_characters_settle_is_not_encoded(tokenizer, monkeypatch):
    counted = []
    monkeypatch.setattr(Tokens, "ask", lambda self, row, *rest: counted.append(row))
    rows = [comparison(0, "x" * 900), comparison(1, "y" * 1100), comparison(2, "你" * 300), comparison(3, "你" * 400)]
    comparison_table(rows, Tokens(tokenizer, 1000))
    assert counted == [1, 3]


def test_many_rows_are_counted_in_batches_and_each_keeps_its_own_verdict(tokenizer):
    rows = [comparison(n, f"{n} " + "word " * (1 + 40 * (n % 3 == 0))) for n in range(1300)]
    found = comparison_table(rows, Tokens(tokenizer, 60))["too_long"]
    assert found.tolist() == [n % 3 == 0 for n in range(1300)]


def test_answers_of_several_messages_are_counted_too(tokenizer):
    long = [assistant("word " * 30), user("And?"), assistant("more " * 30)]
    rows = [comparison(0, chosen=long), comparison(1, chosen=[assistant("a"), user("b"), assistant("c")])]
    row = rows[0]
    exact = len(encode_prompt(tokenizer, row.prompt)) + len(encode_answer(tokenizer, row.prompt, long))
    for limit, too_long in ((exact, False), (exact - 1, True)):
        assert comparison_table(rows, Tokens(tokenizer, limit))["too_long"].tolist() == [too_long, False]


def test_a_template_that_minds_texts_refuses_the_row_alone(tokenizer):
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}" + strict.chat_template
    rows = [comparison(0, "good " * 40), comparison(1, "bad " * 40), comparison(2, "good")]
    table = comparison_table(rows, Tokens(strict, 60))
    assert table["template_refuses"].tolist() == [False, True, False]
    assert table["too_long"].tolist() == [True, False, False]


# Among the others ---------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["ana", "ben", None])
FEW = st.sampled_from("abc")
ROWS = st.lists(
    st.tuples(FEW, FEW, FEW, NAMES, st.booleans(), st.sampled_from(["r", "s", None]), st.sampled_from(SPLITS), FEW), max_size=14
)


@given(ROWS)
def test_what_rows_are_among_the_others_by_brute_force(found):
    rows = [
        comparison(n, p, c, r, annotator=who, tie=tie, ranking=ranking and digest(ranking), split=split, group_id=digest(group))
        for n, (p, c, r, who, tie, ranking, split, group) in enumerate(found)
    ]
    table = comparison_table(rows)
    mark_parted(table)

    def key(row):
        return row.prompt, row.chosen, row.rejected, row.annotator

    def contradicts(one, other):
        turned = (one.chosen, one.rejected) == (other.rejected, other.chosen) and one.chosen != one.rejected
        return turned and one.prompt == other.prompt and one.annotator == other.annotator and not one.tie and not other.tie

    assert table["duplicate"].tolist() == [any(key(row) == key(earlier) for earlier in rows[:n]) for n, row in enumerate(rows)]
    assert table["contradicts"].tolist() == [row.annotator is not None and any(contradicts(row, other) for other in rows) for row in rows]
    assert table["mixed_ranking"].tolist() == [
        row.ranking is not None and any(row.ranking == other.ranking and row.prompt != other.prompt for other in rows) for row in rows
    ]
    parted_groups = {g for g in {row.group_id for row in rows} if len({row.split for row in rows if row.group_id == g}) > 1}
    parted_prompts = {
        p for p in {row.prompt[0]["content"] for row in rows} if len({r.split for r in rows if r.prompt[0]["content"] == p}) > 1
    }
    assert table["parted"].tolist() == [row.group_id in parted_groups or row.prompt[0]["content"] in parted_prompts for row in rows]
    share = [sum(row.annotator == other.annotator for other in rows) / len(rows) if row.annotator else 0.0 for row in rows]
    assert table["annotator_share"].tolist() == pytest.approx(share)


def test_a_prompt_parted_between_both_kinds():
    comparisons = comparison_table([comparison(0, "Both?", split="train"), comparison(1, "One?", split="test")])
    shown = Demonstration(digest(2), [user("Both?")], [assistant("Yes.")], "a.jsonl", "1", "g", split="test")
    demonstrations = demonstration_table([shown])
    mark_parted(comparisons, demonstrations)
    assert comparisons["parted"].tolist() == [True, False]
    assert demonstrations["parted"].tolist() == [True]


def test_near_flags_by_id():
    table = comparison_table([comparison(n, f"{n}?") for n in range(4)])
    near = pd.DataFrame({"id": table["id"].to_numpy()[[2, 1]], "near_duplicate": [True, False], "near_other_group": [False, True]})
    mark_near(table, near)
    assert table["near_duplicate"].tolist() == [0, 0, 1, 0]
    assert table["near_other_group"].tolist() == [0, 1, 0, 0]
    mark_near(table, None)
    assert table["near_duplicate"].isna().all()


def test_known_prompts_but_for_those_of_the_test_split():
    asked = []

    def known(prompt):
        asked.append(prompt)
        return "secret" in prompt[0]["content"]

    rows = [
        comparison(n, f"{'secret' if n % 2 else 'open'}?", split=("train", "train", "test", "test", "judge", "judge")[n]) for n in range(6)
    ]
    assert comparison_table(rows, known=known)["contaminated"].tolist() == [False, True, False, False, False, True]
    assert len(asked) == 2  # each prompt once
    assert comparison_table(rows)["contaminated"].isna().all()


def test_counts_by_hand():
    comparisons = comparison_table([comparison(n, f"{n}?", split=SPLITS[n % 2]) for n in range(6)])
    counts = counts_table(comparisons, demonstration_table([]), {"comparisons": 2}).iloc[0]
    assert (counts["comparisons"], counts["rejected_comparisons"], counts["rejected_demonstrations"]) == (6, 0.25, 0)
    assert (counts["comparisons_train"], counts["comparisons_judge"], counts["comparisons_test"]) == (3, 3, 0)


# Statistics ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.lists(FEW, min_size=1, max_size=5).map(" ".join),
            FEW,
            st.lists(FEW, min_size=1, max_size=5).map(" ".join),
            NAMES,
            st.booleans(),
            st.sampled_from([None, True, False]),
            st.sampled_from([None, 1.0, 2.5]),
            st.lists(FEW, max_size=2, unique=True),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_statistics_by_plain_counting(found):
    rows = [
        comparison(n, p, c, r, annotator=who, tie=tie, chosen_first=first, seconds=seconds, tags=tags, split=SPLITS[n % 4])
        for n, (p, c, r, who, tie, first, seconds, tags) in enumerate(found)
    ]
    figures = describe(comparison_table(rows), demonstration_table([]))["comparisons"]
    lengths = [len(row.prompt[0]["content"].split()) for row in rows]
    assert figures["rows"] == len(rows)
    assert figures["prompts"] == figures["groups"] == len({row.prompt[0]["content"] for row in rows})
    assert figures["splits"] == {name: sum(row.split == name for row in rows) for name in SPLITS}
    assert figures["words"]["prompt"] == {"mean": round(plain.fmean(lengths), 2), "median": plain.median(lengths), "longest": max(lengths)}
    names = [row.annotator or "unknown" for row in rows]
    assert figures["annotators"] == {name: names.count(name) for name in names}
    assert list(figures["annotators"].values()) == sorted(figures["annotators"].values(), reverse=True)
    tags = list(itertools.chain.from_iterable(row.tags for row in rows))
    assert figures["tags"] == {tag: tags.count(tag) for tag in tags}
    assert figures["ties"] == sum(row.tie for row in rows)
    longer = [len(c) > len(r) for _, c, r, _, tie, *_ in found if not tie and len(c) != len(r)]
    assert figures["longer_chosen"] == (round(plain.fmean(longer), 4) if longer else None)
    first = [row.chosen_first for row in rows if row.chosen_first is not None and not row.tie]
    assert figures["chosen_first"] == {"known": len(first), "share": round(plain.fmean(first), 4) if first else None}
    seconds = [row.seconds for row in rows if row.seconds is not None]
    assert figures["seconds"] == {"known": len(seconds), "median": plain.median(seconds) if seconds else None}
    assert figures["near_duplicates"] is None


def test_an_annotator_called_unknown_is_added_to_those_without_a_name():
    rows = [comparison(0, annotator="unknown"), comparison(1)]
    assert describe(comparison_table(rows), demonstration_table([]))["comparisons"]["annotators"] == {"unknown": 2}


@pytest.mark.parametrize(("successes", "rows"), [(0, 1), (1, 1), (3, 10), (55, 100), (100, 100)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_wilson_as_statsmodels_has_it(successes, rows, confidence):
    from statsmodels.stats.proportion import proportion_confint

    wanted = proportion_confint(successes, rows, alpha=1 - confidence, method="wilson")
    assert wilson(successes, rows, confidence) == pytest.approx(wanted, abs=1e-9)
    assert wilson(0, 0) == (0.0, 1.0)
    assert not math.isnan(wilson(1, 1)[0])


@pytest.mark.skipif(not HH.is_file(), reason="PREFLINE_REAL_DATA names no folder with hh-rlhf")
def test_what_real_conversations_hold():
    """Rows in which an assistant speaks twice running are known; the rest was read by people."""
    table = comparison_table(record for record in import_file(HH) if isinstance(record, Comparison))
    assert len(table) == 2308
    assert table.loc[table["turns"], "line"].tolist() == [668, 764, 1255, 1320, 1689, 1850, 1951, 1953, 2037]
    assert table.loc[table["email"], "line"].tolist() == [353, 477, 654, 1260, 2168, 2189]
    assert table["phone"].sum() == 12
    assert not table[["card", "secret", "garbled", "control_characters", "empty", "duplicate", "identical", "contradicts"]].any(axis=None)
