"""Estimators against sums by hand, exact enumeration and a plain second way of writing them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.estimators import (
    AdaptiveKL,
    explained_variance,
    gae,
    group_advantages,
    kl_estimate,
    leave_one_out_advantages,
    masked_mean,
    token_rewards,
    whiten,
)

MASK = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])


def random_rows(seed, *names):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(MASK.shape, generator=generator, dtype=torch.float64) for _ in names]


# KL --------------------------------------------------------------------------------------------------------------

POLICY = torch.tensor([3 / 4, 1 / 8, 1 / 8], dtype=torch.float64)
REFERENCE = torch.tensor([1 / 2, 1 / 4, 1 / 4], dtype=torch.float64)
KL = 0.75 * math.log(3 / 2) - 0.25 * math.log(2)
"""KL(policy || reference) = 0.130812; the other way round it is 0.143841."""


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_have_the_kl_as_their_exact_mean(kind):
    assert (POLICY * kl_estimate(POLICY.log(), REFERENCE.log(), kind)).sum().item() == pytest.approx(KL, abs=1e-12)


def test_k2_is_biased_by_what_the_sum_says():
    # 1/2 (3/4 ln(3/2)^2 + 1/4 ln(2)^2) = 0.121707
    assert (POLICY * kl_estimate(POLICY.log(), REFERENCE.log(), "k2")).sum().item() == pytest.approx(0.121707, abs=1e-6)


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_k3_is_never_negative(logprob, ref_logprob):
    found = kl_estimate(torch.tensor(logprob, dtype=torch.float64), torch.tensor(ref_logprob, dtype=torch.float64), "k3")
    assert found.item() >= -1e-12


def test_each_estimate_as_a_loss_has_the_gradient_that_its_docstring_names():
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)

    def gradient(loss):
        return torch.autograd.grad(loss(logits.log_softmax(-1)), logits)[0]

    def as_loss(kind):
        return gradient(lambda logprobs: (logprobs.exp().detach() * kl_estimate(logprobs, REFERENCE.log(), kind)).sum())

    forward = gradient(lambda logprobs: (logprobs.exp() * (logprobs - REFERENCE.log())).sum())
    backward = gradient(lambda logprobs: (REFERENCE * (REFERENCE.log() - logprobs)).sum())
    torch.testing.assert_close(as_loss("k1"), torch.zeros_like(forward))
    torch.testing.assert_close(as_loss("k2"), forward)
    torch.testing.assert_close(as_loss("k3"), backward)
    assert forward.abs().max() > 0.1
    assert (forward - backward).abs().max() > 0.01


# Means and whitening ----------------------------------------------------------------------------------------------


def test_masked_mean_is_over_tokens_and_not_over_rows():
    values = torch.tensor([[1.0, 2.0, 3.0, 99.0], [10.0, 99.0, 99.0, 99.0]])
    assert masked_mean(values, MASK[:2]).item() == pytest.approx(16 / 4)  # the mean of the rows' means would be 6


@pytest.mark.parametrize(("keep_mean", "shift"), [(False, 0.0), (True, 2.0)])
def test_whiten_by_hand(keep_mean, shift):
    # 1, 2, 3: mean 2, variance 2/3, so -sqrt(3/2), 0, sqrt(3/2); 100 is padding
    white = whiten(torch.tensor([[1.0, 2.0, 3.0, 100.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]]), keep_mean)
    assert white[0].tolist() == pytest.approx([shift - 1.224745, shift, shift + 1.224745, 0.0], abs=1e-5)


@pytest.mark.parametrize("keep_mean", [False, True])
def test_whitened_values_have_variance_one_over_the_mask(keep_mean):
    (values,) = random_rows(1, "values")
    kept = whiten(5 + 3 * values, MASK, keep_mean)[MASK.bool()]
    assert kept.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert kept.mean().item() == pytest.approx((5 + 3 * values)[MASK.bool()].mean().item() if keep_mean else 0, abs=1e-6)


def test_whitening_equal_values_gives_zero_and_not_nan():
    assert whiten(torch.full((1, 3), 7.0), torch.ones(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


# Rewards ----------------------------------------------------------------------------------------------------------


def test_token_rewards_by_hand_put_the_score_at_the_last_real_token():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [-1.0, -1.0, -1.0, -1.0]])
    reference = torch.tensor([[-1.5, -2.0, -2.0, 0.0], [-2.0, 0.0, 0.0, 0.0], [-1.0, -1.0, -1.0, -3.0]])
    found = token_rewards(torch.tensor([10.0, 20.0, 30.0]), logprobs - reference, MASK, beta=0.1)
    expected = [[-0.05, 0.0, 10.1, 0.0], [19.9, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 29.8]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_rows_rewards_sum_to_its_score_less_beta_times_its_kl():
    (kl,) = random_rows(2, "kl")
    scores = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = token_rewards(scores, kl, MASK.double(), beta=0.3)
    torch.testing.assert_close(found.sum(1), scores - 0.3 * (kl * MASK).sum(1))


def test_a_row_without_tokens_gets_no_reward():
    found = token_rewards(torch.tensor([7.0, 5.0]), torch.ones(2, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0]]), beta=0.5)
    assert found.tolist() == [[0.0, 0.0], [4.5, 0.0]]


# Advantages -------------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    # gamma 1, lambda 0.95, after the end 0. deltas: 0.6 - 0.5, 0.7 - 0.6, 1 - 0.7
    # A_2 = 0.3, A_1 = 0.1 + 0.95 * 0.3 = 0.385, A_0 = 0.1 + 0.95 * 0.385 = 0.46575
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=0.95)
    assert advantages[0].tolist() == pytest.approx([0.46575, 0.385, 0.3], abs=1e-6)
    assert returns[0].tolist() == pytest.approx([0.96575, 0.985, 1.0], abs=1e-6)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.9, 1.0), (1.0, 0.0)])
def test_gae_equals_the_double_sum_of_its_definition(gamma, lam):
    rewards, values = random_rows(3, "rewards", "values")
    advantages, returns = gae(rewards * MASK, values, MASK.double(), gamma, lam)
    for row in range(len(MASK)):
        length = int(MASK[row].sum())
        after = [*values[row, :length].tolist(), 0.0]
        deltas = [rewards[row, t].item() + gamma * after[t + 1] - after[t] for t in range(length)]
        expected = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
        assert advantages[row].tolist() == pytest.approx(expected + [0.0] * (4 - length), abs=1e-12)
        assert returns[row].tolist() == pytest.approx([a + v for a, v in zip(expected, after, strict=False)] + [0.0] * (4 - length))


def test_gae_with_lambda_1_is_the_return_to_come_minus_the_value():
    rewards, values = random_rows(4, "rewards", "values")
    rewards = rewards * MASK
    advantages, returns = gae(rewards, values, MASK.double(), gamma=1.0, lam=1.0)
    to_come = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_come * MASK)
    torch.testing.assert_close(advantages, (to_come - values) * MASK)


# Advantages by group --------------------------------------------------------------------------------------------------

THERE = torch.ones(6, dtype=torch.bool)
REWARDS = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
"""Two prompts of three answers each."""


def test_leave_one_out_by_hand():
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2; equal answers teach nothing
    assert leave_one_out_advantages(REWARDS, THERE, 3).tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]


def test_group_advantages_by_hand():
    # mean 3, squares 4 + 1 + 9 = 14 over n - 1 = 2: deviation sqrt(7) = 2.645751
    assert group_advantages(REWARDS, THERE, 3, scale=False).tolist() == [-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]
    scaled = group_advantages(REWARDS, THERE, 3, scale=True)
    assert scaled.tolist() == pytest.approx([-2 / 2.645751, -1 / 2.645751, 3 / 2.645751, 0, 0, 0], abs=1e-4)


@given(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4))
def test_the_mean_of_all_is_the_leave_one_out_baseline_but_for_a_factor(rewards):
    """R - mean of the others = n / (n - 1) (R - mean of all)."""
    rewards, there = torch.tensor(rewards, dtype=torch.float64), torch.ones(4, dtype=torch.bool)
    mine = leave_one_out_advantages(rewards, there, 4)
    torch.testing.assert_close(mine, group_advantages(rewards, there, 4, scale=False) * 4 / 3)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_scaled_advantages_of_nearly_equal_answers_stay_small_and_those_of_others_do_not_depend_on_the_unit(unit):
    found = group_advantages(REWARDS[:3] * unit, THERE[:3], 3, scale=True)
    assert found.abs().max().item() < 0.04 if unit == 1e-6 else found[2].item() == pytest.approx(3 / 2.645751, abs=1e-3)


ADVANTAGES = {
    "rloo": leave_one_out_advantages,
    "grpo": lambda *given: group_advantages(*given, scale=True),
    "grpo, not scaled": lambda *given: group_advantages(*given, scale=False),
}


@pytest.mark.parametrize("advantages", ADVANTAGES.values(), ids=ADVANTAGES)
def test_a_row_without_tokens_does_not_shift_the_baseline(advantages):
    rewards = torch.tensor([1.0, 2.0, 6.0, -99.0])
    found = advantages(rewards, torch.tensor([True, True, True, False]), 4)
    assert found.tolist() == pytest.approx([*advantages(rewards[:3], THERE[:3], 3).tolist(), 0.0])
    alone = torch.tensor([False, True, False, False])
    assert advantages(rewards, alone, 4).tolist() == [0.0] * 4  # nobody to compare with


@pytest.mark.parametrize("advantages", ADVANTAGES.values(), ids=ADVANTAGES)
@pytest.mark.parametrize("group", [1, 4])
def test_a_group_of_one_or_a_broken_one_is_refused(advantages, group):
    with pytest.raises(ValueError, match=f"6 rewards in groups of {group}"):
        advantages(REWARDS, THERE, group)


# Padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimate",
    [
        lambda x, y, mask: masked_mean(x, mask),
        lambda x, y, mask: whiten(x, mask),
        lambda x, y, mask: whiten(x, mask, keep_mean=True),
        lambda x, y, mask: token_rewards(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), x, mask, 0.1),
        lambda x, y, mask: torch.stack(gae(x, y, mask)),
        lambda x, y, mask: torch.tensor(explained_variance(x, y, mask)),
    ],
    ids=["masked_mean", "whiten", "whiten, mean kept", "token_rewards", "gae", "explained_variance"],
)
def test_what_stands_on_padding_changes_nothing(estimate):
    x, y, other_x, other_y = random_rows(5, "x", "y", "other x", "other y")
    kept = MASK.bool()
    found = estimate(x, y, MASK.double())
    changed = estimate(torch.where(kept, x, 100 * other_x), torch.where(kept, y, 100 * other_y), MASK.double())
    torch.testing.assert_close(changed, found, rtol=0, atol=0)


# The critic's and the controller's figures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], 1.0),
        ([9.0, 9.0, 9.0], 0.0),
        ([1.0, 2.0, 2.0], 2 / 3),  # residuals 0, 0, 1 have variance 1/3, returns 1
        ([3.0, 2.0, 1.0], -3.0),  # residuals -2, 0, 2 have variance 4
    ],
)
def test_explained_variance_of_returns_1_2_3_by_hand(values, expected):
    found = explained_variance(
        torch.tensor([[*values, 50.0]]), torch.tensor([[1.0, 2.0, 3.0, -50.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    )
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tokens", [1, 3])
def test_explained_variance_without_spread_is_zero(tokens):
    assert explained_variance(torch.rand(1, tokens), torch.ones(1, tokens), torch.ones(1, tokens)) == 0.0


@pytest.mark.parametrize(
    ("kl", "beta"),
    [  # beta 0.1, target 6, 128 episodes, horizon 10,000: 0.1 * (1 + e * 0.0128)
        (6.0, 0.1),
        (6.6, 0.100128),  # e = 0.1
        (5.4, 0.099872),
        (12.0, 0.100256),  # e = clip(1, 0.2)
        (60.0, 0.100256),
        (0.0, 0.099744),
        (-1.0, 0.099744),  # a k1 estimate may be negative
    ],
)
def test_adaptive_kl_by_hand_in_nats_a_sequence(kl, beta):
    controller = AdaptiveKL(beta=0.1, target=6.0, horizon=10_000)
    controller.update(kl, episodes=128)
    assert controller.beta == pytest.approx(beta, abs=1e-9)


def test_adaptive_kl_compounds_over_updates():
    controller = AdaptiveKL(beta=0.1, target=6.0, horizon=1000)
    controller.update(12.0, episodes=100)
    controller.update(12.0, episodes=100)
    assert controller.beta == pytest.approx(0.1 * 1.02**2)


def test_without_a_target_the_kl_weight_stays_as_it_is():
    controller = AdaptiveKL(beta=0.1, target=None, horizon=10_000)
    controller.update(1000.0, episodes=128)
    assert controller.beta == 0.1
