"""What a judge's word is worth, by hand, by other libraries, and on real comparisons whose figures are published."""

import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tasks.data.importers import import_file
from tasks.data.records import Comparison, user
from tasks.evaluation.answers import Verdict, conversation
from tasks.evaluation.judges.judge import ByScore
from tasks.evaluation.judges.pairs import HumanPair, Pair, Side, at_most, of_policy
from tasks.evaluation.judges.quality import (
    Heard,
    accuracy,
    agreement,
    agreement_decided,
    ask_about,
    kappa,
    orders_disagree,
    prefers_first,
    prefers_longer,
    report,
)
from tasks.training.intervals import Bootstrap

REAL = Path(os.environ.get("PREFLINE_REAL_DATA", "/nowhere"))
BOOTSTRAP = Bootstrap(resamples=200)


def human(said, lengths=(5, 3), group="g", scores=(None, None)):
    one, other = (Side("x" * length + mark, length, score) for length, mark, score in zip(lengths, "ab", scores, strict=True))
    return HumanPair(Pair([user("?")], one, other), said, group)


def heard(*rows):
    """heard((people's word, the judge's), ...), each of a prompt of its own."""
    return [Heard(human(said, group=str(place)), Verdict("language_model", judged)) for place, (said, judged) in enumerate(rows)]


ROWS = [("win", "win"), ("win", "loss"), ("loss", "tie"), ("tie", "tie"), ("tie", "win"), ("win", "tie")]


def test_accuracy_and_agreement_by_hand():
    found = heard(*ROWS)
    assert accuracy(found, BOOTSTRAP)[0] == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)  # people named a winner in four
    assert agreement(found, BOOTSTRAP)[0] == pytest.approx(2 / 6)
    assert agreement_decided(found, BOOTSTRAP)[0] == pytest.approx(1 / 2)
    assert all(low <= value <= high for value, low, high in (accuracy(found, BOOTSTRAP), agreement(found, BOOTSTRAP)))


def test_kappa_is_that_of_scikit_learn():
    assert kappa(heard(*ROWS))[0] == pytest.approx(cohen_kappa_score(*zip(*ROWS, strict=True)))


def test_nothing_heard_is_nothing_known():
    assert {accuracy([], BOOTSTRAP), agreement([], BOOTSTRAP), kappa([]), prefers_first([]), orders_disagree([])} == {None}
    assert accuracy(heard(("tie", "win")), BOOTSTRAP) is None
    assert kappa(heard(("win", "win"))) is None  # all labels alike


def test_who_always_ties_is_at_chance_for_sure():
    assert accuracy(heard(*[(said, "tie") for said in ("win", "loss") * 20]), BOOTSTRAP) == (0.5, 0.5, 0.5)


def test_position():
    verdicts = [
        Verdict("language_model", "tie", ("win", "loss")),  # the first shown, twice
        Verdict("language_model", "win", ("win", "win")),  # once
        Verdict("language_model", "tie", (None, "tie")),  # half of the only one that can be read
        Verdict("language_model", "tie"),  # equal answers, not asked about
    ]
    assert prefers_first(verdicts) == pytest.approx((2 + 1 + 0.5) / 5)
    assert orders_disagree(verdicts) == pytest.approx(1 / 2)


def test_length():
    found = [Heard(human("win", lengths), Verdict("reward_model", judged)) for lengths, judged in (((5, 3), "loss"), ((3, 5), "loss"))]
    found += [Heard(human("win", (4, 4)), Verdict("reward_model", "win")), Heard(human("tie", (9, 4)), Verdict("reward_model", "tie"))]
    assert prefers_longer(found, lambda one: one.verdict.outcome) == pytest.approx(1 / 2)
    assert prefers_longer(found, lambda one: one.pair.said) == pytest.approx(1 / 2)


def test_at_most_takes_prompts_before_more_of_one():
    pairs = [human("win", (place, 3), group) for group in "abcdef" for place in range(10)]
    drawn = at_most(pairs, 8, seed=0)
    assert len(drawn) == 8
    assert {pair.group for pair in drawn} == set("abcdef")
    assert at_most(pairs, 8, seed=0) == drawn != at_most(pairs, 8, seed=1)
    assert len(at_most(pairs, 1000, seed=0)) == 60
    assert at_most([], 5, 0) == []


def test_a_report_of_scores(make_rows):
    rows = make_rows(prompts=40, champion=True)
    judge = ByScore("gold", "the truth")
    for row in rows:
        row.verdicts = judge.verdicts([of_policy(row, row.rival)])
        row.verdicts_over_sft = judge.verdicts([of_policy(row, row.sft)])
    found = report(judge, rows, [], BOOTSTRAP)
    assert found.win_rate.wins == sum(row.gold == "win" for row in rows)
    assert found.win_rate_over_sft.losses == sum(row.gold_over_sft == "loss" for row in rows)
    assert (found.prompts, found.orders, found.unparsable, found.prefers_first, found.accuracy) == (40, 0, 0, None, None)


# Real comparisons --------------------------------------------------------------------------------------------------------


def real(name):
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"PREFLINE_REAL_DATA does not name a folder with {name}")
    return [record for record in import_file(path) if isinstance(record, Comparison)]


def by_length(comparisons):
    """People's pairs, whose "score" is their length, and so what "the longest wins" says of them."""
    pairs = []
    for record in comparisons:
        sides = [Side(text, len(text), float(len(text))) for text in (record.chosen[-1]["content"], record.rejected[-1]["content"])]
        turned = sides[0].text > sides[1].text
        said = "tie" if record.tie else "loss" if turned else "win"
        pairs.append(HumanPair(Pair(record.prompt, *(sides[::-1] if turned else sides)), said, record.group_id))
    return ask_about(ByScore("reward_model", "the longest wins"), pairs)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("hh-rlhf/harmless-base_test.jsonl.gz", 0.445),
        ("finegrained_rlhf/dev_feedback.json", 0.512),
        ("oasst/en_100_tree.jsonl", 0.698),
    ],
)
def test_the_longest_wins_as_published(name, published):
    found = by_length(real(name))
    unequal = [one for one in found if one.pair.pair.one.length != one.pair.pair.other.length]
    value, low, high = accuracy(unequal, BOOTSTRAP)
    assert value == pytest.approx(published, abs=0.0005)
    assert low < value < high
    assert prefers_longer(found, lambda one: one.pair.said) == pytest.approx(value)
    assert prefers_longer(found, lambda one: one.verdict.outcome) == 1.0
    trustworthy = low > 0.5
    assert trustworthy == (name.startswith("oasst"))  # only there would it be let decide


def test_one_of_pandalms_annotators_as_judge_of_the_others():
    """Its authors give Cohen's kappas of 0.85, 0.88 and 0.86. Here one annotator is the judge, and another the people."""
    said = {}
    for record in real("pandalm/testset-v1.json"):
        key = (str(record.prompt), *sorted(conversation(answer) for answer in (record.chosen, record.rejected)), record.source_id)
        outcome = "tie" if record.tie else "win" if conversation(record.chosen) == key[1] else "loss"
        said.setdefault(key, {})[record.annotator] = outcome
    whole = [labels for labels in said.values() if len(labels) == 3]

    def heard_by(judge, people):
        return heard(*[(labels[people], labels[judge]) for labels in whole])

    names = ("annotator1", "annotator2", "annotator3")
    pairs = [(names[a], names[b]) for a, b in permutations(range(3), 2)]
    kappas = {pair: kappa(heard_by(*pair))[0] for pair in pairs}
    assert sorted({round(value, 2) for value in kappas.values()}) == pytest.approx([0.85, 0.86, 0.88], abs=0.011)
    for one, other in pairs:  # both setups of Zheng et al. 2023, counted another way
        labels = [(row[one], row[other]) for row in whole]
        decided = [pair for pair in labels if "tie" not in pair]
        assert agreement(heard_by(one, other), BOOTSTRAP)[0] == pytest.approx(np.mean([a == b for a, b in labels]))
        assert agreement_decided(heard_by(one, other), BOOTSTRAP)[0] == pytest.approx(np.mean([a == b for a, b in decided]))
        assert agreement_decided(heard_by(one, other), BOOTSTRAP)[0] > agreement(heard_by(one, other), BOOTSTRAP)[0] > 0.85


def test_the_longest_wins_on_mt_bench_in_both_setups():
    """LLMBar's 200 pairs of MT-Bench, with the majority of its experts: people called no tie, and five pairs are of equal length."""
    comparisons = real("llmbar/Processed_MT-Bench.json")
    found = by_length(comparisons)
    lengths = [(len(record.chosen[-1]["content"]), len(record.rejected[-1]["content"])) for record in comparisons]
    right, equal = sum(chosen > rejected for chosen, rejected in lengths), sum(chosen == rejected for chosen, rejected in lengths)
    assert (right, equal, len(found)) == (136, 5, 200)
    assert agreement(found, BOOTSTRAP)[0] == pytest.approx(136 / 200)
    assert agreement_decided(found, BOOTSTRAP)[0] == pytest.approx(136 / 195)
    assert accuracy(found, BOOTSTRAP)[0] == pytest.approx((136 + 5 / 2) / 200)
