"""Scorecards: planted weaknesses are named, figures agree with a plain count, weights are what they should be."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from tasks.data import annotator_plots
from tasks.data.annotators import annotator_weights, study
from tasks.data.records import Comparison, assistant, user
from tasks.data.shop import Shop, comparisons
from tasks.data.tables import comparison_table

ROOT = Path(__file__).parents[3]
PLANTED = {
    "coin": {"skill": 0.0, "length": 0.0, "share": 15},
    "screen": {"skill": 2.0, "length": 0.0, "share": 15, "position": 0.8},
    "liar": {"skill": -2.0, "length": 0.0, "share": 8},
}


@pytest.fixture(scope="module")
def planted():
    """The built-in set with its own annotators and three more, and what the study says of it."""
    definition = yaml.safe_load((ROOT / "data" / "shop.yaml").read_text())
    definition["annotators"] |= PLANTED
    rows = comparisons(Shop(definition, 0), 8, seed=0, second_opinions=0.2)
    frame = comparison_table(rows)
    return rows, frame, study(frame)


@pytest.fixture(scope="module")
def cards(planted):
    return {card.name: card for card in planted[2].scorecards}


def row(number, prompt, chosen, rejected, annotator="ann", **more):
    return Comparison(
        id=f"{number:016x}",
        prompt=[user(prompt)],
        chosen=[assistant(chosen)],
        rejected=[assistant(rejected)],
        source="march.jsonl",
        source_id=str(number),
        group_id=f"{len(prompt):016x}",
        annotator=annotator,
        **more,
    )


# Planted people -------------------------------------------------------------------------------------------------------


def test_planted_annotators_come_out_in_the_right_order(cards):
    best_first = ["expert", "regular", "careless", "coin", "liar"]
    for figure in (lambda card: card.reliability.value, lambda card: card.accuracy, lambda card: card.consensus.value):
        found = [figure(cards[name]) for name in best_first]
        assert found == sorted(found, reverse=True), found
    assert cards["regular"].others.value > cards["careless"].others.value > cards["coin"].others.value > cards["liar"].others.value
    weights = [cards[name].weight for name in best_first]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] > 1 > weights[2] > weights[3] + 0.1
    assert weights[4] == 0


def test_at_chance_are_the_coin_and_the_liar_and_nobody_else(planted, cards):
    assert {card.name for card in cards.values() if card.at_chance} == {"coin", "liar"}
    frame = planted[1]
    assert planted[2].at_chance == pytest.approx(frame["annotator"].isin(["coin", "liar"]).mean())
    assert cards["coin"].others.value == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("coin", "coin's"),
        ("liar", "swapped"),
        ("careless", "less reliable"),
        ("careless", "seconds"),
        ("screen", "shown first"),
        ("wordlover", "longer answer"),
    ],
)
def test_each_weakness_is_named_with_its_owner_and_with_nobody_else(cards, name, words):
    assert [card.name for card in cards.values() if any(words in advice for advice in card.advice)] == [name]


def test_the_best_are_left_alone(cards):
    assert cards["expert"].advice == cards["regular"].advice == ("Nothing to do.",)


def test_one_who_prefers_what_is_shown_last_is_told_so():
    rows = [row(n, f"Question {n}", "Yes", "No", chosen_first=n % 10 == 0) for n in range(200)]
    (card,) = study(comparison_table(rows)).scorecards
    assert any("shown last" in advice and "90%" in advice for advice in card.advice)


# Figures --------------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_a_plain_count(planted):
    rows, _, found = planted
    mine = [one for one in rows if one.annotator == "screen"]
    card = next(one for one in found.scorecards if one.name == "screen")
    lengths = [(len(one.chosen[0]["content"]), len(one.rejected[0]["content"])) for one in mine]
    assert card.comparisons == len(mine)
    assert card.share == pytest.approx(len(mine) / len(rows))
    assert card.first.value == pytest.approx(np.mean([one.chosen_first for one in mine]))
    assert card.longer.value == pytest.approx(np.mean([a > b for a, b in lengths if a != b]))
    assert (card.ties, card.seconds) == (0.0, None)
    careless = [one.seconds for one in rows if one.annotator == "careless"]
    assert next(one for one in found.scorecards if one.name == "careless").seconds == pytest.approx(np.median(careless))
    assert sum(card.comparisons for card in found.scorecards) == found.comparisons == len(rows)


def test_agreement_with_others_is_that_of_the_pairs():
    """Ann and bob agree on 2 of 3, ann and cem on 1 of 2; nobody saw what ann judged alone."""
    verdicts = {"ann": "11111", "bob": "112..", "cem": ".21.."}
    rows = []
    for annotator, said in verdicts.items():
        for place, one in enumerate(said):
            if one != ".":
                sides = ("A", "B") if one == "1" else ("B", "A")
                rows.append(row(len(rows), f"Question {place}", *sides, annotator))
    found = {card.name: card for card in study(comparison_table(rows)).scorecards}
    # of her items: with bob alone 1; with bob and cem (1 + 0) / 2 and (0 + 1) / 2
    assert found["ann"].others.value == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert (found["ann"].comparisons, found["ann"].shared, found["cem"].shared) == (5, 3, 2)
    assert found["cem"].others.value == pytest.approx(0.25)
    assert any("give 30 or more to a second annotator" in advice for advice in found["ann"].advice)


def test_intervals_of_shares_are_wilsons_where_every_row_is_of_its_own():
    rows = [row(n, "Q" * (n + 1), "Yes", "No", chosen_first=n % 4 == 0) for n in range(400)]
    (card,) = study(comparison_table(rows)).scorecards
    assert (card.first.low, card.first.high) == pytest.approx(proportion_confint(100, 400, method="wilson"), abs=1e-3)


def test_rows_of_one_prompt_widen_the_interval():
    apart = [row(n, "Q" * (n + 1), "Yes", "No", chosen_first=n % 2 == 0) for n in range(100)]
    repeated = [row(n, "Q" * (n // 4 + 1), f"Yes {n}", "No", chosen_first=n // 4 % 2 == 0) for n in range(400)]
    one, four = (study(comparison_table(rows)).scorecards[0].first for rows in (apart, repeated))
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.02)


def test_repetitions_and_contradictions_by_hand():
    rows = [row(1, "Q", "A", "B"), row(2, "Q", "B", "A"), row(3, "Q", "A", "B"), row(4, "R", "A", "B"), row(5, "R", "A", "B")]
    rows += [row(6, "S", "A", "B"), row(7, "S", "A", "B", tie=True), row(8, "T", "A", "B"), row(9, "Q", "B", "A", "bob")]
    found = {card.name: card for card in study(comparison_table(rows)).scorecards}
    assert (found["ann"].repeated, found["ann"].contradictions) == (3, 1)
    assert (found["bob"].repeated, found["bob"].contradictions) == (0, 0)
    assert found["ann"].ties == pytest.approx(1 / 8)


def test_one_who_answers_differently_each_time_is_told_so():
    rows = []
    for n in range(40):
        rows += [row(2 * n, f"Question {n}", "A", "B"), row(2 * n + 1, f"Question {n}", *("BA" if n % 4 else "AB"))]
    (card,) = study(comparison_table(rows)).scorecards
    assert (card.repeated, card.contradictions) == (40, 30)
    assert any("30 came out the other way round" in advice for advice in card.advice)


def test_ai_and_people_without_a_name_take_no_part_and_are_counted():
    rows = [row(1, "Q", "A", "B"), row(2, "Q", "A", "B", None), row(3, "Q", "A", "B", "gpt", labels_by="ai"), row(4, "Q", "A", "B", None)]
    found = study(comparison_table(rows))
    assert (found.comparisons, found.unnamed, found.ai) == (1, 2, 1)
    assert [card.name for card in found.scorecards] == ["ann"]
    assert found.overall.items == 0


@pytest.mark.parametrize("rows", [[], [row(1, "Q", "A", "B", None)], [row(1, "Q", "A", "A")], [row(1, "Q", "A", "B", tie=True)]])
def test_hardly_any_data(rows):
    found = study(comparison_table(rows))
    assert found.overall.alpha.value is None
    assert found.at_chance == 0
    assert annotator_plots.pairs(found) is None
    assert set(annotator_weights(comparison_table(rows)).values()) <= {1.0}


verdicts = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from("ABC"), st.sampled_from("ABC"), st.sampled_from(["ann", "bob", None]), st.booleans()),
    max_size=25,
)


@given(verdicts)
def test_any_verdicts_give_a_study_whose_figures_are_in_range(found):
    rows = [row(n, "Q" * prompt, a, b, who, tie=tie, chosen_first=n % 2 == 0) for n, (prompt, a, b, who, tie) in enumerate(found)]
    frame = comparison_table(rows)
    result = json.loads(orjson.dumps(study(frame)))
    assert result["comparisons"] + result["unnamed"] + result["ai"] == len(rows)
    for card in result["scorecards"]:
        assert card["advice"]
        for name in ("others", "consensus", "first", "longer"):
            one = card[name]
            assert one["value"] is None or 0 <= one["low"] <= one["value"] <= one["high"] <= 1
    weights = annotator_weights(frame)
    used = [weights[one.annotator] for one in rows if one.annotator and not one.tie and one.chosen != one.rejected]
    assert all(weight >= 0 for weight in used)
    assert not used or np.mean(used) == pytest.approx(1)


# Weights --------------------------------------------------------------------------------------------------------------


def test_weights_are_proportional_to_reliability_and_1_on_average(planted, cards):
    weights = annotator_weights(planted[1])
    used = [weights[one.annotator] for one in planted[0]]
    assert np.mean(used) == pytest.approx(1)
    assert weights["careless"] / weights["expert"] == pytest.approx(cards["careless"].reliability.value / cards["expert"].reliability.value)
    assert weights == pytest.approx({name: card.weight for name, card in cards.items()})
    assert weights["liar"] == 0


def test_annotators_whom_nobody_checks_count_1_and_do_not_shift_the_others():
    rows = []
    for n in range(60):
        rows += [row(3 * n + k, f"Question {n}", *("AB" if n % 10 or k != 2 else "BA"), who) for k, who in enumerate(["ann", "bob", "cem"])]
    before = annotator_weights(comparison_table(rows))
    alone = [row(1000 + n, f"Nobody else's {n}", "A", "B", "dee") for n in range(50)]
    after = annotator_weights(comparison_table([*rows, *alone]))
    assert after.pop("dee") == 1.0
    assert after == pytest.approx(before, abs=1e-3)
    assert before["cem"] < before["ann"] == pytest.approx(before["bob"])


def test_where_nobody_agrees_everybody_counts_alike():
    """Two who always contradict one another: neither is reliable, and a mean of 0 has no proportions."""
    rows = [row(2 * n + k, f"Question {n}", *("AB" if k else "BA"), who) for n in range(300) for k, who in enumerate(["ann", "bob"])]
    weights = annotator_weights(comparison_table(rows))
    assert all(weight >= 0 for weight in weights.values())
    assert np.mean(list(weights.values())) == pytest.approx(1)


# Much data, and pictures ----------------------------------------------------------------------------------------------


def test_skill_from_a_sample_of_the_prompts_is_about_that_from_all(planted, monkeypatch):
    whole = {card.name: card.reliability.value for card in planted[2].scorecards}
    monkeypatch.setattr("tasks.data.annotators.MOST_LABELS", len(planted[1]) // 2)
    part = {card.name: card for card in study(planted[1]).scorecards}
    assert sum(card.judged for card in part.values()) < 0.7 * sum(card.judged for card in planted[2].scorecards)
    assert [part[name].reliability.value for name in whole] == pytest.approx(list(whole.values()), abs=0.5)


def test_who_judged_little_is_never_sampled_away(monkeypatch):
    """Ann, bob and cem judged 300 prompts, dee 20 of them."""
    rows = [row(4 * n + k, "Q" * (n + 1), "A", "B", who) for n in range(300) for k, who in enumerate(["ann", "bob", "cem"])]
    rows += [row(4 * n + 3, "Q" * (n + 1), "A", "B", "dee") for n in range(0, 300, 15)]
    monkeypatch.setattr("tasks.data.annotators.MOST_LABELS", 200)
    kept = {card.name: card.judged for card in study(comparison_table(rows)).scorecards}
    monkeypatch.setattr("tasks.data.annotators.RARE", 0)
    drawn = {card.name: card.judged for card in study(comparison_table(rows)).scorecards}
    assert (kept["dee"], drawn["dee"] < 15) == (20, True)
    assert 40 < drawn["ann"] < kept["ann"] < 150


def test_pictures_are_png_whatever_the_names(recwarn):
    names = ["$x$", "<script>", "日本", "a\nb\x07" * 30]
    pairs = combinations(range(len(names)), 2)
    rows = [row(10 * n + k, f"Question {n}", "A", "B", names[who]) for n, pair in enumerate(pairs) for k, who in enumerate(pair)]
    found = study(comparison_table(rows))
    for picture in (annotator_plots.scorecards(found), annotator_plots.pairs(found)):
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 200_000
    assert not [str(one.message) for one in recwarn if "Glyph" in str(one.message)]
    assert annotator_plots.scorecards(study(pd.DataFrame(comparison_table([])))) is None
