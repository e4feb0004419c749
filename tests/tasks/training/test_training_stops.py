"""When training ends early: what broke raises, and what has nothing more to gain ends."""

import math

import pytest

from tasks.errors import PreflineError
from tasks.training.onlooker import Look
from tasks.training.rollouts import Episode
from tasks.training.stops import refuse_broken, why_ended
from tasks.training.trees import Tree
from tasks.training_config import PolicyConfig


def settings(**changes):
    return PolicyConfig(**({"answers": 8, "minibatch": 8} | changes))


def episode(score=1.0, logprob=-1.0, reference=-1.0, tokens=4):
    return Episode(Tree([2], [[5] * tokens]), True, score, 0.0, [logprob] * tokens, [reference] * tokens, [])


def look(number, judge=0.0, stopped=1.0):
    return Look(number, kl=0.0, length=1.0, stopped=stopped, own=[0.0], judge=[judge], gold=None)


def rounds(count, kl=1.0, distinct=1.0, no_stop=0.0):
    return [{"kl": kl, "distinct": distinct, "no_stop": no_stop}] * count


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_with_their_round_and_number(score):
    refuse_broken([episode()] * 3, 7)
    with pytest.raises(PreflineError, match=r"Round 7: the reward model's score is .* for 2 of 3 answers"):
        refuse_broken([episode(score), episode(), episode(score)], 7)


@pytest.mark.parametrize("reference", [-22.0, -math.inf, math.nan])
def test_a_kl_that_has_run_away_is_refused(reference):
    with pytest.raises(PreflineError, match=r"Round 3: the policy is .* nats a token from its reference"):
        refuse_broken([episode(reference=reference)], 3)


def test_a_policy_that_hacks_its_reward_without_a_penalty_is_let_go_on():
    refuse_broken([episode(reference=-6.0, tokens=48)], 3)  # 240 nats a sequence: our worst hack has about 100


@pytest.mark.parametrize(("kl", "ended"), [(4.9, False), (5.1, True)])
def test_the_kls_bound_is_in_nats_a_sequence_and_of_the_newest_round(kl, ended):
    history = [*rounds(1, kl=9.0), *rounds(1, kl=kl)]
    found = why_ended(2, history, [look(0)], settings(stop_kl=5.0))
    assert found == ("Round 2: KL 5.1 nats a sequence, and stop_kl is 5." if ended else "")
    assert why_ended(2, history, [look(0)], settings()) == ""


@pytest.mark.parametrize(
    ("judged", "ended"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 0.5], False),
        ([1.0, 0.5, 1.0], True),  # as good is not better
        ([1.0, 0.5, 1.1], False),
        ([1.0, 1.1, 0.5, 0.6], True),
    ],
)
def test_it_ends_after_so_many_looks_in_which_the_judge_saw_nothing_better(judged, ended):
    looks = [look(0, 9.0), *(look(3 * i, judge) for i, judge in enumerate(judged, 1))]  # round 0 is nothing to keep
    assert bool(why_ended(6, rounds(2), looks, settings(stop_judge=2))) == ended
    assert why_ended(6, rounds(2), looks, settings()) == ""


@pytest.mark.parametrize(("recent", "ended"), [([1 / 8] * 3, True), ([1 / 8] * 2, False), ([1 / 8, 1 / 4, 1 / 8], False)])
def test_it_ends_when_all_answers_have_been_one_for_three_rounds(recent, ended):
    history = [rounds(1, distinct=share)[0] for share in recent]
    assert ("one and the same" in why_ended(3, history, [look(0)], settings())) == ended


@pytest.mark.parametrize(
    ("no_stop", "at_first", "ended"),
    [([1.0] * 3, 0.9, True), ([1.0] * 2, 0.9, False), ([1.0, 0.99, 1.0], 0.9, False), ([1.0] * 3, 0.1, False)],
)
def test_it_ends_when_no_answer_has_stopped_for_three_rounds_though_the_sft_models_do(no_stop, at_first, ended):
    history = [rounds(1, no_stop=share)[0] for share in no_stop]
    assert ("no answer has ended" in why_ended(3, history, [look(0, stopped=at_first)], settings())) == ended


def test_before_the_first_round_nothing_has_ended():
    assert why_ended(0, [], [], settings(stop_kl=1e-9, stop_judge=1)) == ""
