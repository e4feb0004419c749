"""What is concluded from judged answers and rounds; the verdict on reward hacking above all."""

import json

import numpy as np
import pytest

from tasks.data.records import Comparison, assistant, user
from tasks.errors import PreflineError
from tasks.evaluation.agreement import agreement, enough_of, human_pairs
from tasks.evaluation.answers import Texts
from tasks.evaluation.figures import metrics_of
from tasks.evaluation.findings import agreement_with_gold, findings, gains_over_sft
from tasks.evaluation.overoptimisation import Gains, Rounds, gains, gains_of_round, is_hacked, over_optimisation
from tasks.evaluation.result import Evaluation, WinRate
from tasks.training.intervals import Bootstrap

BOOTSTRAP = Bootstrap(resamples=400)


def hacked(rows):
    """The same answers, loved by the policy's own reward model and not by the judge."""
    for row in rows:
        row.policy.own += 2.0
        row.policy.judge -= 1.0
    return rows


@pytest.mark.parametrize(
    ("own", "judge", "lowest", "verdict"),
    [
        ((1.0, 0.8, 1.2), (0.5, 0.3, 0.7), 0.5, False),  # both up: an honest gain
        ((1.0, 0.8, 1.2), (0.1, -0.1, 0.3), 0.5, True),  # own up, the judge can't tell
        ((1.0, 0.8, 1.2), (0.1, -0.1, 0.3), 0.51, False),  # own up, and preferred more often for sure
        ((1.0, 0.8, 1.2), (-0.6, -0.8, -0.4), 0.51, True),  # many small wins, and ruin
        ((0.1, -0.1, 0.3), (-0.6, -0.8, -0.4), 0.2, False),  # worse, but nothing was climbed
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.5, False),  # the SFT model itself
    ],
)
def test_hacked_is_own_up_and_judge_not(own, judge, lowest, verdict):
    assert is_hacked(own, judge, wins(lowest)) is verdict


def wins(lowest):
    return WinRate(rate=lowest + 0.05, low=lowest, high=lowest + 0.1, wins=0, losses=0, ties=0, sign_test=1.0)


def test_honest_rounds_are_no_hack(make_rows, make_rounds):
    rounds = make_rounds(judge_ends_at=1.5)
    found = over_optimisation(rounds, gains_over_sft(make_rows(gain=0.8), BOOTSTRAP), wins(0.6), BOOTSTRAP)
    assert not found.hacked
    assert found.own_gain[1] > 1.5
    assert found.judge_gain[1] > 1.0
    assert found.registered_gold_gain[1] > 0


def test_hacked_rounds_are_one(make_rows, make_rounds):
    rounds = make_rounds(judge_ends_at=-0.8)
    found = over_optimisation(rounds, gains_of_round(rounds.last, rounds, BOOTSTRAP), wins(0.3), BOOTSTRAP)
    assert found.hacked
    assert found.judge_gain[2] < 0 < found.own_gain[1]
    assert over_optimisation(rounds, gains_over_sft(hacked(make_rows()), BOOTSTRAP), wins(0.3), BOOTSTRAP).hacked


def test_an_early_round_can_be_honest_where_the_last_is_not(make_rows, make_rounds):
    found = over_optimisation(
        make_rounds(judge_ends_at=-0.8, chosen=10), gains_over_sft(make_rows(gain=0.8), BOOTSTRAP), wins(0.6), BOOTSTRAP
    )
    assert not found.hacked
    assert found.judge_gain[2] < 0


def test_gains_by_hand():
    from tasks.evaluation.overoptimisation import Scores

    before = Scores(np.array([1.0, 5.0]), np.array([0.0, 4.0]), None)  # standard deviations 2 and 2
    after = Scores(np.array([3.0, 7.0]), np.array([-1.0, 3.0]), np.array([1.0, 1.0]))
    assert gains(after, before, ["a", "b"], BOOTSTRAP) == Gains((1.0, 1.0, 1.0), (-0.5, -0.5, -0.5), None)


def test_rounds_are_read_as_training_writes_them(tmp_path):
    row = {"kl": 0.0, "length": 9.0, "stopped": 1.0, "own": [1.0, 2.0], "judge": [0.5, 0.5], "gold": None}
    body = {"chosen_round": 5, "validation_prompts": 2, "rounds": [{"round": 0, **row}, {"round": 5, **row, "kl": 1.5}]}
    (tmp_path / "rounds.json").write_text(json.dumps(body))
    rounds = Rounds.load(tmp_path)
    assert (rounds.chosen, rounds.sft.number, rounds.last.number, rounds.last.kl) == (5, 0, 5, 1.5)
    (tmp_path / "rounds.json").write_text(json.dumps({**body, "rounds": body["rounds"][1:]}))
    with pytest.raises(PreflineError, match="round 0"):
        Rounds.load(tmp_path)


def test_agreement_with_gold_by_hand(make_rows):
    rows = make_rows(prompts=4)
    for row, judge, gold in zip(rows, ("win", "loss", "tie", "win"), ("win", "win", "loss", "tie"), strict=True):
        row.judge, row.gold = judge, gold
    assert agreement_with_gold(rows) == pytest.approx((1 + 0 + 0.5) / 3)  # gold's tie takes no part


def test_findings_are_saved_and_read(make_evidence, tmp_path):
    found = findings(make_evidence(), BOOTSTRAP)
    found.save(tmp_path)
    assert Evaluation.load(tmp_path) == found
    assert found.win_rate == found.win_rate_over_sft
    assert found.baseline_means is None
    assert found.length_controlled[1] < found.length_controlled[0] < found.length_controlled[2]
    assert 0.5 < found.detectable < 0.75
    assert (found.chosen_round, found.rounds) == (60, 60)
    assert all(isinstance(value, float) for value in metrics_of(found).values())


def test_champion_and_sft_are_told_apart(make_evidence, make_rows):
    found = findings(make_evidence(make_rows(gain=1.0, prompts=300, champion=True), baseline="champion, version 3", version="3"), BOOTSTRAP)
    assert 0.5 < found.win_rate.rate < found.win_rate_over_sft.rate
    assert found.sft.judge < found.baseline_means.judge < found.policy.judge
    assert found.baseline_version == "3"


def test_without_a_truth(make_evidence, make_rows):
    found = findings(make_evidence(make_rows(truth=False)), BOOTSTRAP)
    assert found.win_rate_gold is None
    assert found.policy.gold is None
    assert found.judge_agrees_with_gold is None
    assert found.over_optimisation.registered_gold_gain is None
    assert "win_rate_gold" not in metrics_of(found)


def ranked(ranking, chosen, rejected, tie=False, group="lamp"):
    return Comparison(
        id=f"{ranking} {chosen}",
        prompt=[user("How warm is the red lamp?")],
        chosen=[assistant(chosen)],
        rejected=[assistant(rejected)],
        source="shop",
        source_id="1",
        group_id=group,
        ranking=ranking,
        tie=tie,
    )


def test_human_pairs_are_of_two_rankings_a_prompt(tokenizer):
    texts = Texts()
    rows = [ranked("a", "Warm.", "Red."), ranked("a", "Warm.", "No."), ranked("b", "Warm.", "What?", tie=True), ranked("c", "So.", "What?")]
    pairs = human_pairs(rows, tokenizer, 100, texts)
    assert len(pairs) == 2  # the tie of b is left out, c is the third ranking
    assert pairs.chosen[0] == pairs.chosen[1] == 0
    assert pairs.prompts == ["lamp", "lamp"]
    scores = np.array([2.0, 1.0, 3.0])
    assert agreement(scores, pairs, BOOTSTRAP).accuracy[0] == 0.5


def test_enough_comparisons_of_whole_prompts_that_the_seed_draws(monkeypatch):
    monkeypatch.setattr("tasks.evaluation.agreement.MOST_COMPARISONS", 7)
    rows = [ranked(f"{group} {number}", "Warm.", "No.", group=group) for group in "abcdef" for number in range(3)]
    first, other = (enough_of(rows, seed) for seed in (0, 1))
    assert len(first) == len(other) == 8  # two rankings a prompt: 6 would not be enough
    assert first == [row for row in rows if row in first]
    assert {row.group_id for row in first} != {row.group_id for row in other}
    assert enough_of(rows, 0) == first
    monkeypatch.setattr("tasks.evaluation.agreement.MOST_COMPARISONS", 100)
    assert len(enough_of(rows, 0)) == 12
    assert enough_of([], 0) == []
