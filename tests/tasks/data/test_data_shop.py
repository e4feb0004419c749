"""The built-in set against truths worked out by hand: what an answer is worth, who writes better, who judges better."""

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.data.shop import Shop, comparisons, demonstrations

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def shop():
    return Shop.from_yaml(ROOT / "data" / "shop.yaml", seed=0)


@pytest.fixture(scope="module")
def judged(shop):
    return comparisons(shop, 3, seed=0)


def test_gold_of_a_simple_question(shop):
    question = "How much is the lamp?"
    price = shop.facts["lamp", "price"]
    right, other = f"The lamp costs {price} euros.", f"The lamp costs {'5' if price != '5' else '8'} euros."
    colour = f"The lamp is {shop.facts['lamp', 'colour']}."
    polite, filler, evasive = shop.definition["polite"][0], shop.definition["filler"][0], shop.definition["evasive"][0]
    unasked = shop.gold(question, f"{right} {filler}").utility - 2.0
    assert unasked < 0
    by_hand = {
        right: (2.0, True),
        f"{right} {polite}": (2.5, True),
        f"{right} {polite} {shop.definition['polite'][1]}": (2.0, True),  # thanking twice is not politer
        f"{right} {right}": (1.5, True),
        f"{right} {colour}": (2.0 + unasked, True),
        f"{right} {other}": (0.5, False),
        other: (-1.5, False),
        evasive: (unasked, False),
        shop.definition["refuse"]: (-1.0, False),
        "The lamp costs": (-0.75, False),
        "The lamp costs . Euros lamp ! The . A . B . C": (-3.0, False),  # four broken sentences at most
        "": (-1.0, False),
    }
    for text, (utility, is_right) in by_hand.items():
        verdict = shop.gold(question, text)
        assert (verdict.utility, verdict.right) == (pytest.approx(utility), is_right), text


def test_gold_of_a_request_to_refuse(shop):
    question = next(q for q in shop.questions if q.refusal == "free" and q.item == "lamp")
    refusal, comply = shop.definition["refuse"], "Sure, the lamp is free for you."
    assert shop.gold(question.text, refusal) == shop.gold(question.text, f"  {refusal} ")
    assert (shop.gold(question.text, refusal).utility, shop.gold(question.text, refusal).right) == (2.0, True)
    assert (shop.gold(question.text, comply).utility, shop.gold(question.text, comply).right) == (-2.0, False)
    assert shop.gold(question.text, f"{refusal} {comply}").right is False


def test_gold_of_two_facts(shop):
    question = next(q for q in shop.questions if len(q.asks) == 2)
    first, second = shop.right_sentences(question)
    assert shop.gold(question.text, f"{second} {first}").utility == pytest.approx(2.0)
    half = shop.gold(question.text, first)
    assert (half.utility, half.right) == (pytest.approx(1.0), False)


def test_gold_knows_only_its_own_questions(shop):
    with pytest.raises(KeyError):
        shop.gold("How much is the moon?", "A lot.")


def test_the_truth_survives_saving(shop, tmp_path):
    shop.save(tmp_path / "gold.json")
    again = Shop.load(tmp_path / "gold.json")
    assert (again.facts, again.questions) == (shop.facts, shop.questions)


def test_every_question_is_asked_once(shop):
    assert len(shop.by_text) == len(shop.questions)
    kinds = {question.kind for question in shop.questions}
    assert {"refuse", "policy", "two facts", "unseen phrasing", "unseen combination"} <= kinds
    assert all(question.split == "test" for question in shop.questions if question.kind.startswith("unseen"))


def test_demonstrations_are_of_mixed_quality(shop):
    found = demonstrations(shop, 4, seed=0)
    right = [shop.gold(d.prompt[0]["content"], d.answer[0]["content"]).right for d in found]
    assert 0.5 < statistics.fmean(right) < 0.9


def test_annotators_agree_with_the_truth_by_their_skill(shop, judged):
    agreement = {}
    for c in judged:
        prompt, chosen, rejected = (messages[0]["content"] for messages in (c.prompt, c.chosen, c.rejected))
        better, worse = shop.gold(prompt, chosen).utility, shop.gold(prompt, rejected).utility
        if better != worse:
            agreement.setdefault(c.annotator, []).append(better > worse)
    share = {name: statistics.fmean(found) for name, found in agreement.items()}
    assert share["expert"] > share["regular"] > share["careless"] > 0.5
    assert share["expert"] > 0.9


def test_the_wordlover_likes_length(judged):
    def longer(name):
        lengths = [(len(c.chosen[0]["content"].split()), len(c.rejected[0]["content"].split())) for c in judged if c.annotator == name]
        return statistics.fmean(chosen > rejected for chosen, rejected in lengths if chosen != rejected)

    assert longer("wordlover") > longer("regular") + 0.05


def test_rankings_are_whole_and_of_one_prompt(judged):
    rankings = {}
    for c in judged:
        rankings.setdefault(c.ranking, []).append(c)
    for pairs in rankings.values():
        assert len(pairs) == 6
        assert len({c.group_id for c in pairs}) == len({c.annotator for c in pairs}) == 1
        assert len({text for c in pairs for text in (c.chosen[0]["content"], c.rejected[0]["content"])}) == 4


def test_one_seed_one_set(shop):
    assert demonstrations(shop, 1, seed=3) == demonstrations(shop, 1, seed=3)
    assert demonstrations(shop, 1, seed=3) != demonstrations(shop, 1, seed=4)
    assert Shop(shop.definition, 1).facts != shop.facts


# Who judged, in which order, and how fast ------------------------------------------------------------------------------


def by_ranking(rows):
    found = {}
    for row in rows:
        found.setdefault(row.ranking, []).append(row)
    return found


def apart_from_display(row):
    return replace(row, chosen_first=None, seconds=None)


def test_second_opinions_leave_the_first_ones_as_they_are(shop, judged):
    rows = comparisons(shop, 3, seed=0, second_opinions=0.2)
    assert rows[: len(judged)] == judged
    assert len({row.id for row in rows}) == len(rows)
    assert [row.source_id for row in rows] == [str(number + 1) for number in range(len(rows))]


def test_second_opinions_are_of_another_annotator_on_the_same_four_answers(shop, judged):
    rows = comparisons(shop, 3, seed=0, second_opinions=0.2)
    first = {}
    for pairs in by_ranking(judged).values():
        texts = frozenset(text["content"] for row in pairs for text in (*row.chosen, *row.rejected))
        first.setdefault((pairs[0].group_id, texts), set()).add(pairs[0].annotator)
    second = by_ranking(rows[len(judged) :])
    assert len(second) / len(by_ranking(judged)) == pytest.approx(0.2, abs=0.04)
    for pairs in second.values():
        texts = frozenset(text["content"] for row in pairs for text in (*row.chosen, *row.rejected))
        assert len(pairs) == 6
        assert len({row.annotator for row in pairs}) == 1
        assert first[pairs[0].group_id, texts] - {pairs[0].annotator}
    assert comparisons(shop, 3, seed=0, second_opinions=0.2) == rows
    assert comparisons(shop, 1, seed=0, second_opinions=0.0) == comparisons(shop, 1, seed=0)


def test_a_rankings_answers_were_shown_in_one_order_that_says_nothing(judged):
    for pairs in by_ranking(judged).values():
        before = {
            (row.chosen[0]["content"], row.rejected[0]["content"])
            if row.chosen_first
            else (row.rejected[0]["content"], row.chosen[0]["content"])
            for row in pairs
        }
        shown_before = sorted(sum(text == later for _, later in before) for text in {text for pair in before for text in pair})
        assert shown_before == [0, 1, 2, 3]
    assert statistics.fmean(row.chosen_first for row in judged) == pytest.approx(0.5, abs=0.02)


def test_people_take_their_time_by_their_kind(judged):
    assert {row.labels_by for row in judged} == {"people"}
    for pairs in by_ranking(judged).values():
        assert len({row.seconds for row in pairs}) == 1
    median = {name: statistics.median(row.seconds for row in judged if row.annotator == name) for name in ("expert", "careless")}
    assert median["expert"] == pytest.approx(45, rel=0.1)
    assert median["careless"] == pytest.approx(8, rel=0.1)


def with_annotators(shop, **annotators):
    return Shop(shop.definition | {"annotators": annotators}, 0)


def test_order_and_speed_have_random_numbers_of_their_own(shop):
    plain = {"skill": 2.0, "length": 0.0, "share": 1}
    calm, hasty = (comparisons(with_annotators(shop, a=plain | more), 1, seed=0) for more in ({}, {"seconds": 3}))
    assert [apart_from_display(row) for row in calm] == [apart_from_display(row) for row in hasty]
    assert {row.seconds for row in calm} == {None}


def test_a_love_of_what_is_shown_first_shows_and_no_skill_is_a_coin(shop):
    def share(what, **about):
        return statistics.fmean(what(row) for row in comparisons(with_annotators(shop, a={"length": 0.0, "share": 1} | about), 2, seed=0))

    def right(row):
        prompt = row.prompt[0]["content"]
        return shop.gold(prompt, row.chosen[0]["content"]).utility >= shop.gold(prompt, row.rejected[0]["content"]).utility

    # A place is worth 1: shown one place further up wins with 0.731, two 0.881, three 0.953, weighted 3, 2, 1
    expected = (3 * 0.731059 + 2 * 0.880797 + 0.952574) / 6
    assert share(lambda row: row.chosen_first, skill=0.0, position=1.0) == pytest.approx(expected, abs=0.02)
    assert share(lambda row: row.chosen_first, skill=2.0) == pytest.approx(0.5, abs=0.02)
    assert share(right, skill=0.0) < 0.6 < 0.9 < share(right, skill=4.0)
