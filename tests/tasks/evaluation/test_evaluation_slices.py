"""Slices: which prompts belong together, and win rates that stand up to there being many of them."""

import numpy as np
import pytest

from tasks.data.records import user
from tasks.data.snapshot import Prompt
from tasks.evaluation.answers import Trait, read_answers, write_answers
from tasks.evaluation.slices import UNSEEN_PAIR, UNSEEN_WORD, describe, language_trait, length_traits, novelties, slices, writing
from tasks.training.intervals import Bootstrap

BOOTSTRAP = Bootstrap(resamples=400)


def test_slices_need_eight_prompts(make_rows):
    rows = make_rows(prompts=31, tags=("a", "b", "c", "d"))  # eight of a, b and c, seven of d
    found = slices(rows, BOOTSTRAP)
    assert [(one.name, one.prompts) for one in found] == [("a", 8), ("b", 8), ("c", 8)]
    kept = [row for row in rows if row.tags == ["a"]]
    assert found[0].win_rate.wins == sum(row.judge == "win" for row in kept)
    assert found[0].policy_length == pytest.approx(np.mean([row.policy.length for row in kept]))


def test_the_worst_of_many_slices_is_given_the_benefit_of_their_number(make_rows):
    names = [f"s{i}" for i in range(10)]
    rows = make_rows(prompts=400, tags=tuple(names), gain=0.0)
    ten, one = slices(rows, BOOTSTRAP), slices([row for row in rows if row.tags == ["s0"]], BOOTSTRAP)
    assert ten[0].win_rate.high == one[0].win_rate.high < ten[0].highest
    assert one[0].highest == pytest.approx(one[0].win_rate.high, abs=0.03)  # of a single slice there is nothing to correct


def test_fair_slices_are_rarely_refused_and_a_bad_one_is(make_rows):
    """Forty worlds of twenty slices of 24 groups where nothing is worse than a coin; then one slice that loses eleven in twelve."""
    rng = np.random.default_rng(3)
    rows = make_rows(prompts=480, tags=tuple(f"s{i:02}" for i in range(20)))
    plain = corrected = 0
    for _ in range(40):
        for row in rows:
            row.judge = "win" if rng.random() < 0.5 else "loss"
        found = slices(rows, Bootstrap(resamples=200))
        plain += min(one.win_rate.high for one in found) < 0.45
        corrected += min(one.highest for one in found) < 0.45
    assert corrected <= 4 < plain
    for place, row in enumerate(row for row in rows if row.tags == ["s07"]):
        row.judge = "win" if place % 12 == 0 else "loss"
    assert min(slices(rows, BOOTSTRAP), key=lambda one: one.highest).name == "s07"
    assert min(one.highest for one in slices(rows, BOOTSTRAP)) < 0.45


def test_thirds_by_length():
    names = [trait.name for trait in length_traits([5, 9, 30, 6, 12, 7, 10, 31, 8])]
    short, middle, long = "prompt: 5 to 7 tokens", "prompt: 8 to 10 tokens", "prompt: 12 to 31 tokens"
    assert names == [short, middle, long, short, long, short, middle, long, middle]
    assert {trait.name for trait in length_traits([4, 4, 4])} == {"prompt: 4 tokens"}
    assert [trait.name for trait in length_traits([4, 4, 4, 9])] == ["prompt: 4 tokens"] * 3 + ["prompt: 9 tokens"]


@pytest.mark.parametrize(
    ("text", "script"),
    [("How much?", "Latin"), ("Сколько стоит lamp?", "Cyrillic"), ("灯多少钱", "Han"), ("كم الثمن", "Arabic"), ("12?", "None")],
)
def test_writing(text, script):
    assert writing(text) == script


def test_language_as_the_record_names_it_or_by_its_letters():
    assert language_trait(Prompt([user("Wie viel?")], "a", (), language="de")) == Trait("language", "language: de")
    assert language_trait(Prompt([user("Сколько?")], "a", ())) == Trait("language", "writing: Cyrillic")


def test_novelties_by_hand():
    learnt = [[user("How much is the lamp?")], [user("Please tell me the price of the rug.")], [user("How much is the rug?")]]
    asked = [
        "How much is the LAMP",  # known, whatever case and mark
        "How much is the vase?",  # an item that nobody asked for
        "Tell me the price of the lamp.",  # words that are known; nobody began with "tell"
        "How much is the price of the lamp?",  # all its pairs are known
    ]
    found = novelties([[user(text)] for text in asked], learnt)
    assert found == [[], [UNSEEN_WORD, UNSEEN_PAIR], [UNSEEN_PAIR], []]


def test_traits_become_slices_where_they_say_something_new(make_rows, tmp_path):
    rows = make_rows(prompts=48)
    prompts = [
        Prompt(row.prompt, row.group_id, (), "march.jsonl" if place < 30 else "april.jsonl", "en" if place < 30 else "de")
        for place, row in enumerate(rows)
    ]
    describe(rows, prompts, [5 + place // 8 for place in range(48)], [row.prompt for row in rows])
    found = slices(rows, BOOTSTRAP)
    assert [(one.kind, one.name, one.prompts) for one in found] == [
        ("tag", "policy", 16),
        ("tag", "price", 16),
        ("tag", "refuse", 16),
        ("length", "prompt: 5 to 6 tokens", 16),
        ("length", "prompt: 7 to 8 tokens", 16),
        ("length", "prompt: 9 to 10 tokens", 16),
        ("language", "language: de", 18),
        ("language", "language: en", 30),
    ]  # the sources are the languages once more, and no prompt is new
    write_answers(tmp_path, rows)
    assert read_answers(tmp_path) == rows


def test_lengths_come_in_their_order(make_rows):
    rows = make_rows(prompts=30, tags=("all",))
    describe(rows, [Prompt(row.prompt, row.group_id, ()) for row in rows], [8 + place for place in range(30)], [])
    names = [one.name for one in slices(rows, BOOTSTRAP) if one.kind == "length"]
    assert names == ["prompt: 8 to 17 tokens", "prompt: 18 to 27 tokens", "prompt: 28 to 37 tokens"]
