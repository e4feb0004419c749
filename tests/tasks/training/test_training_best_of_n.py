"""Best of n against every subset written out, against an exact small distribution, and against plain sampling."""

import itertools
import math
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import PreflineError
from tasks.training.best_of_n import answer_all, batches_of_answers, best_of_n_curve, best_of_n_kl, expected_best, rank_weights
from tasks.training.models import RewardModel, score_texts
from tasks.training.sampling import Sampling, sample

EOS = 1
PROMPTS = [[3, 4, 5, 6, 7], [8], [3, 2, 4]]


# What it costs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "nats"), [(1, 0.0), (2, 0.193147), (4, 0.636294), (16, 1.835089)])
def test_kl_by_hand(n, nats):
    # ln 2 - 1/2, ln 4 - 3/4, ln 16 - 15/16
    assert best_of_n_kl(n) == pytest.approx(nats, abs=1e-6)


@pytest.mark.parametrize("n", [2, 5])
def test_kl_is_that_of_the_distribution_of_the_best(n):
    # Many equally likely answers: the i-th from below is the best of n with (i^n - (i - 1)^n) / N^n
    count = 20_000
    ranks = np.arange(count + 1) / count
    best = np.diff(ranks**n)
    assert float((best * np.log(best * count)).sum()) == pytest.approx(best_of_n_kl(n), abs=1e-3)


# What it gains ---------------------------------------------------------------------------------------------------------


def by_subsets(proxy, values, n):
    """The mean over all choices of n answers; those that the proxy likes best alike are picked as often."""
    means = []
    for chosen in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in chosen)
        means.append(np.mean([values[i] for i in chosen if proxy[i] == top]))
    return float(np.mean(means))


def test_the_best_of_two_of_three_by_hand():
    # pairs (1, 2), (1, 3), (2, 3) by proxy: picked are 2, 3, 3, worth 10, -4, -4
    assert expected_best(np.array([0.3, 0.1, 0.2]), np.array([-4.0, 7.0, 10.0]), 2) == pytest.approx(2 / 3)


@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=1, max_size=8),
    n=st.integers(1, 8),
)
def test_the_estimate_is_the_mean_over_all_subsets_ties_included(rows, n):
    n = min(n, len(rows))
    proxy, values = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    assert expected_best(proxy, values, n) == pytest.approx(by_subsets(proxy, values, n), abs=1e-9)


@pytest.mark.parametrize(("answers", "n"), [(1, 1), (7, 1), (7, 7), (100, 3), (5_000, 64), (100_000, 50_000)])
def test_the_weights_of_ranks_are_ratios_of_binomials_and_never_overflow(answers, n):
    found = rank_weights(answers, n)
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert (found[: n - 1] == 0).all()
    for rank in {n, (n + answers) // 2, answers}:
        exact = math.exp(
            math.lgamma(rank)
            - math.lgamma(n)
            - math.lgamma(rank - n + 1)
            - math.lgamma(answers + 1)
            + math.lgamma(n + 1)
            + math.lgamma(answers - n + 1)
        )
        assert found[rank - 1] == pytest.approx(exact, rel=1e-5, abs=1e-300)


def test_the_estimate_is_unbiased():
    # Best of 3 throws of a fair die: the mean of the highest is sum k (k^3 - (k - 1)^3) / 216 = 4.9583
    rng = np.random.default_rng(0)
    throws = rng.integers(1, 7, (20_000, 9)).astype(float)
    found = [expected_best(row, row, 3) for row in throws]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - sum(k * (k**3 - (k - 1) ** 3) for k in range(1, 7)) / 216) < 4 * error
    assert error < 0.01


# Sampling --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_at_once", [1, 40, 10_000])
def test_answers_are_the_same_however_they_are_batched(make_llama, tokens_at_once):
    model, sampling = make_llama(12), Sampling(6)
    batches = batches_of_answers(PROMPTS, 4, sampling, tokens_at_once)
    found = {}
    for batch in batches:
        assert len(batch) == 1 or len(batch) * batch[0].width <= tokens_at_once
        for wanted, answer in zip(batch, answer_all(model, batch, sampling, EOS, seed=3), strict=True):
            found[wanted.place, wanted.number] = answer.tokens
    alone = {
        (wanted.place, wanted.number): answer_all(model, [wanted], sampling, EOS, seed=3)[0].tokens
        for wanted in itertools.chain(*batches_of_answers(PROMPTS, 4, sampling, 1))
    }
    assert found == alone
    assert len({tuple(tokens) for tokens in alone.values()}) > 6  # and each has chance of its own


def test_answers_are_drawn_from_the_model(make_llama):
    model, sampling, prompt = make_llama(5, spread=0.6), Sampling(1), [3, 2]
    (batch,) = batches_of_answers([prompt], 4000, sampling, 10**6)
    found = np.bincount([answer.tokens[0] for answer in answer_all(model, batch, sampling, EOS, seed=0)], minlength=5) / 4000
    with torch.inference_mode():
        likely = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()
    assert np.abs(found - likely).max() < 4 * 0.5 / math.sqrt(4000)


# The curve -------------------------------------------------------------------------------------------------------------


class Onlooker(SimpleNamespace):
    """What the curve reads of an onlooker, over a vocabulary of 12; the truth about an answer is its length."""

    def gold(self, places, said):
        return [float(len(text)) for text in said] if self.known else None


class Letters:
    eos_token_id = EOS

    def decode(self, tokens, skip_special_tokens):
        return "".join(chr(97 + token) for token in tokens if token != EOS)


@pytest.fixture
def onlooker(make_llama, make_scorer):
    return Onlooker(
        tokens=PROMPTS,
        reference=partial(nullcontext, make_llama(12)),
        reward_model=make_scorer(3),
        judge=make_scorer(4),
        sampling=Sampling(5),
        tokenizer=Letters(),
        known=True,
    )


@pytest.fixture
def make_scorer(make_llama, tmp_path):
    def make(seed):
        make_llama(12).save_pretrained(tmp_path / "body")
        return RewardModel.from_policy(tmp_path / "body", seed)

    return make


def test_the_curve_against_every_subset_of_the_answers(onlooker):
    found = best_of_n_curve(onlooker, answers=6, ns=[1, 2, 4], seed=5)
    (batch,) = batches_of_answers(PROMPTS, 6, onlooker.sampling, 10**6)
    answers = {
        (w.place, w.number): a.tokens
        for w, a in zip(batch, answer_all(onlooker.reference().enter_result, batch, onlooker.sampling, EOS, 5), strict=True)
    }
    for point in found:
        assert point.kl == best_of_n_kl(point.n)
        for place, prompt in enumerate(PROMPTS):
            said = [answers[place, number] for number in range(6)]
            own, judge = (score_texts(model, [prompt + tokens for tokens in said]) for model in (onlooker.reward_model, onlooker.judge))
            own = [round(score, 4) for score in own]  # equal texts may differ by rounding
            gold = [len(Letters().decode(tokens, True)) for tokens in said]
            assert point.own[place] == pytest.approx(by_subsets(own, own, point.n), abs=1e-3)
            assert point.judge[place] == pytest.approx(by_subsets(own, judge, point.n), abs=1e-3)
            assert point.gold[place] == pytest.approx(by_subsets(own, gold, point.n), abs=1e-3)
    assert [point.n for point in found] == [1, 2, 4]
    assert sum(found[2].own) > sum(found[1].own) > sum(found[0].own)


def test_the_best_of_one_is_the_model_itself(onlooker):
    (point,) = best_of_n_curve(onlooker, answers=500, ns=[1], seed=0)
    fresh = [
        sample(onlooker.reference().enter_result, [prompt] * 500, onlooker.sampling, EOS, onlooker.sampling.noise(500, 99))
        for prompt in PROMPTS
    ]
    for place, prompt in enumerate(PROMPTS):
        scores = score_texts(onlooker.judge, [prompt + answer.tokens for answer in fresh[place]])
        assert point.judge[place] == pytest.approx(np.mean(scores), abs=5 * np.std(scores) * math.sqrt(2 / 500))


def test_without_a_truth_there_is_no_gold(onlooker):
    onlooker.known = False
    assert best_of_n_curve(onlooker, 4, [2], seed=0)[0].gold is None


def test_more_of_n_than_answers_is_refused(onlooker):
    with pytest.raises(PreflineError, match="best of 16 can't be told from 8 answers"):
        best_of_n_curve(onlooker, 8, [2, 16], seed=0)
