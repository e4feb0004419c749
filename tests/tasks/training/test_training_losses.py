"""Losses against numbers worked out by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.losses import (
    bradley_terry_loss,
    clipped_value_loss,
    dpo_loss,
    ipo_loss,
    ppo_policy_loss,
    rao_kupper_loss,
    token_logprobs,
    token_logprobs_and_entropy,
)


def test_bradley_terry_by_hand():
    # sigmoid(2) = 0.880797 and sigmoid(-1) = 0.268941; their negative logs
    loss = bradley_terry_loss(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert loss.tolist() == pytest.approx([0.126928, 1.313262], abs=1e-6)


def test_bradley_terry_with_a_margin_by_hand():
    # sigmoid(3 - 1 - 0.5) = 0.817574; sigmoid(0 - 1 - 1) = 0.119203
    loss = bradley_terry_loss(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]), margin=torch.tensor([0.5, 1.0]))
    assert loss.tolist() == pytest.approx([0.201413, 2.126928], abs=1e-6)


def test_bradley_terry_pushes_apart_by_the_chance_of_error():
    # d/dr_c -log sigmoid(r_c - r_r) = -(1 - sigmoid(r_c - r_r)); sigmoid(1) = 0.731059
    chosen, rejected = torch.tensor([2.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    bradley_terry_loss(chosen, rejected).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.268941, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.268941, abs=1e-6)


def test_bradley_terry_with_smoothed_labels_by_hand():
    # lead 2: 0.8 * 0.126928 + 0.2 * 2.126928; with a margin of 2 the lead is 0: ln 2 whichever label is right
    chosen, rejected = torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0])
    loss = bradley_terry_loss(chosen, rejected, margin=torch.tensor([0.0, 2.0]), label_smoothing=0.2)
    assert loss.tolist() == pytest.approx([0.526928, math.log(2)], abs=1e-6)


def test_smoothed_labels_are_best_explained_by_their_own_odds():
    lead = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)  # sigmoid of it is 0.9
    bradley_terry_loss(lead, torch.zeros(1), label_smoothing=0.1).sum().backward()
    assert lead.grad.item() == pytest.approx(0, abs=1e-6)


def rao_kupper(first, second, tied, eta, **rest):
    rewards = torch.tensor([[first], [second]], dtype=torch.float64)
    return rao_kupper_loss(*rewards, torch.tensor([tied]), torch.tensor(eta, dtype=torch.float64), **rest).item()


def test_rao_kupper_by_hand():
    # worth 2 and 1, theta 1.5: P(win) = 2 / 3.5 = 4/7, P(loss) = 1 / (1 + 3) = 1/4, P(tie) = 1.25 * 2 / (3.5 * 4) = 5/28
    first, second, eta = math.log(2), 0.0, math.log(1.5)
    assert rao_kupper(first, second, False, eta) == pytest.approx(-math.log(4 / 7), abs=1e-6)
    assert rao_kupper(second, first, False, eta) == pytest.approx(-math.log(1 / 4), abs=1e-6)
    assert rao_kupper(first, second, True, eta) == pytest.approx(-math.log(5 / 28), abs=1e-6)


@given(first=st.floats(-8, 8), second=st.floats(-8, 8), eta=st.floats(1e-3, 5))
def test_rao_kuppers_three_outcomes_sum_to_1(first, second, eta):
    chances = [rao_kupper(first, second, False, eta), rao_kupper(second, first, False, eta), rao_kupper(first, second, True, eta)]
    assert sum(math.exp(-loss) for loss in chances) == pytest.approx(1)
    assert rao_kupper(second, first, True, eta) == pytest.approx(chances[2])


def test_rao_kupper_without_width_is_bradley_terry_and_ties_become_impossible():
    plain = bradley_terry_loss(torch.tensor([1.5]), torch.tensor([0.2]), 0.3, 0.1).item()
    assert rao_kupper(1.5, 0.2, False, 0.0, margin=0.3, label_smoothing=0.1) == pytest.approx(plain, abs=1e-6)
    assert 13 < rao_kupper(0, 0, True, 0.0) < math.inf  # finite, so that its gradient is too


def test_rao_kupper_with_smoothed_labels_by_hand():
    # P(win) 4/7 and P(loss) 1/4 as above
    found = rao_kupper(math.log(2), 0.0, False, math.log(1.5), label_smoothing=0.25)
    assert found == pytest.approx(-0.75 * math.log(4 / 7) - 0.25 * math.log(1 / 4), abs=1e-6)


def test_rao_kuppers_slopes_against_numeric_ones():
    inputs = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([0.3, -1.0, 2.0], [0.1, 0.5, -2.0], 0.7)]
    tied = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda chosen, rejected, eta: rao_kupper_loss(chosen, rejected, tied, eta, 0.2, 0.1), inputs)


def test_bradley_terry_stays_finite_where_sigmoid_underflows():
    assert bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [  # clip 0.2; slope is d loss / d log pi: -A rho, or 0 where the clipped branch is the larger
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.2, 0.0),  # already better than the clip allows: nothing more to gain
        (0.5, 1.0, -0.5, -0.5),  # a good token became less likely: pulled back however far it is
        (0.9, -1.0, 0.9, 0.9),
        (0.5, -1.0, 0.8, 0.0),
        (1.5, -1.0, 1.5, 1.5),  # a bad token became likelier: pulled back however far it is
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_ppo_surrogate_and_its_slope_by_hand(ratio, advantage, loss, slope):
    new = torch.tensor([-1.0 + math.log(ratio)], dtype=torch.float64, requires_grad=True)
    found = ppo_policy_loss(new, torch.tensor([-1.0], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64), clip=0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-9)
    assert new.grad.item() == pytest.approx(slope, abs=1e-9)


def test_ppo_clip_is_the_one_given():
    found = ppo_policy_loss(torch.tensor([math.log(1.5)]), torch.tensor([0.0]), torch.tensor([1.0]), clip=0.1)
    assert found.item() == pytest.approx(-1.1)


def test_ppo_ratio_is_bounded_at_exp_20():
    new = torch.tensor([100.0], requires_grad=True)
    found = ppo_policy_loss(new, torch.tensor([0.0]), torch.tensor([-1.0]))
    found.sum().backward()
    assert found.item() == pytest.approx(math.exp(20), rel=1e-5)
    assert new.grad.item() == 0


@given(ratio=st.floats(0.01, 20), advantage=st.floats(-5, 5))
def test_clipping_only_ever_makes_the_ppo_loss_worse(ratio, advantage):
    new = torch.tensor([math.log(ratio)], dtype=torch.float64)
    found = ppo_policy_loss(new, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64))
    assert found.item() >= -advantage * ratio - 1e-9


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [  # v_old = 1, clip 0.2, so the clipped value lies in [0.8, 1.2]
        (1.1, 2.0, 0.405, -0.9),  # 0.5 * 0.9^2, inside the clip
        (1.5, 2.0, 0.32, 0.0),  # 0.5 * max(0.5^2, (1.2 - 2)^2): clipped, no slope
        (1.5, 0.0, 1.125, 1.5),  # 0.5 * max(1.5^2, 1.2^2)
        (0.5, 2.0, 1.125, -1.5),
        (0.5, 0.0, 0.32, 0.0),
    ],
)
def test_clipped_value_loss_and_its_slope_by_hand(value, target, loss, slope):
    new = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    old, returns = torch.tensor([1.0], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    found = clipped_value_loss(new, old, returns, clip=0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-9)
    assert new.grad.item() == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize(("temperature", "likely"), [(1.0, 2 / 3), (0.5, 4 / 5), (2.0, 2**0.5 / (1 + 2**0.5))])
def test_token_logprobs_by_hand(temperature, likely):
    # logits 0 and ln 2 are odds of 1 : 2, at temperature T odds of 1 : 2^(1/T)
    logits = torch.tensor([[0.0, math.log(2)], [0.0, math.log(2)]])
    found = token_logprobs(logits, torch.tensor([0, 1]), temperature)
    assert found.exp().tolist() == pytest.approx([1 - likely, likely], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_token_logprobs_equal_log_softmax_with_the_same_gradient(temperature):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (2, 5), generator=generator)
    ours = torch.randn(2, 5, 11, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    found = token_logprobs(ours, tokens, temperature)
    expected = torch.log_softmax(theirs / temperature, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(2, 5, generator=generator)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_entropy_comes_beside_the_same_logprobs_and_has_no_gradient(temperature):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (2, 5), generator=generator)
    logits = [(5 * torch.randn(2, 5, 11, generator=generator)).requires_grad_()]
    logits.append(logits[0].detach().clone().requires_grad_())
    found, entropy = token_logprobs_and_entropy(logits[0], tokens, temperature)
    expected = token_logprobs(logits[1], tokens, temperature)
    whole = torch.distributions.Categorical(logits=logits[1].detach() / temperature)
    torch.testing.assert_close(entropy, whole.entropy())
    torch.testing.assert_close(found, expected)
    assert not entropy.requires_grad
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits[0].grad, logits[1].grad)


def test_the_gradient_of_token_logprobs_is_the_numeric_one():
    logits, tokens = torch.tensor([[0.3, -1.2, 2.0, 0.0]], requires_grad=True), torch.tensor([1])
    token_logprobs(logits, tokens, 0.7).backward()
    step = 1e-2
    for place in range(4):
        moved = [(logits.detach() + sign * step * torch.eye(4)[place]) for sign in (1, -1)]
        slope = (token_logprobs(moved[0], tokens, 0.7) - token_logprobs(moved[1], tokens, 0.7)).item() / (2 * step)
        assert logits.grad[0, place].item() == pytest.approx(slope, abs=1e-3)


def test_token_logprobs_of_half_precision_logits_are_normalised_in_fp32():
    logits = torch.linspace(-3, 3, 1000).to(torch.bfloat16).unsqueeze(0)
    found = token_logprobs(logits, torch.tensor([999]))
    assert found.dtype == torch.float32
    # bf16 keeps three digits, which would be off by about 0.03 here
    assert found.item() == pytest.approx(logits.double().log_softmax(-1)[0, 999].item(), abs=1e-5)


# Preferences without a reward model: policy_chosen, policy_rejected, reference_chosen, reference_rejected


PREFERRED = [(-1.0, -4.0, -2.0, -3.0), (-5.0, -2.0, -3.0, -3.0)]  # log-ratios apart by 1 - (-1) = 2 and by -2 - 1 = -3


def columns(rows):
    return torch.tensor(rows, dtype=torch.float64).unbind(1)


@pytest.mark.parametrize(
    ("beta", "smoothing", "losses"),
    [  # -ln sigmoid(1) = 0.313262, -ln sigmoid(-1) = 1.313262; -ln sigmoid(-1.5) = 1.701413, -ln sigmoid(1.5) = 0.201413
        (0.5, 0.0, [0.313262, 1.701413]),
        (0.5, 0.1, [0.413262, 1.551413]),  # 0.9 * 0.313262 + 0.1 * 1.313262; 0.9 * 1.701413 + 0.1 * 0.201413
        (1.0, 0.0, [0.126928, 3.048587]),  # -ln sigmoid(2), -ln sigmoid(-3)
    ],
)
def test_dpo_by_hand(beta, smoothing, losses):
    assert dpo_loss(*columns(PREFERRED), beta, smoothing).tolist() == pytest.approx(losses, abs=1e-6)


def test_ipo_by_hand():
    # beta 0.25 asks for a log-ratio of 2: met by the first pair, missed by 5 by the second; beta 0.5 for 1
    assert ipo_loss(*columns(PREFERRED), 0.25).tolist() == pytest.approx([0.0, 25.0])
    assert ipo_loss(*columns(PREFERRED), 0.5).tolist() == pytest.approx([1.0, 16.0])


def test_dpo_of_a_policy_that_is_its_reference_is_ln_2_whatever_beta_is():
    same = columns([(-7.0, -3.0, -7.0, -3.0)])
    for beta, smoothing in [(0.1, 0.0), (3.0, 0.0), (0.1, 0.3)]:
        assert dpo_loss(*same, beta, smoothing).item() == pytest.approx(math.log(2), abs=1e-12)


def test_dpo_stays_finite_where_sigmoid_underflows():
    far = columns([(-2000.0, 0.0, 0.0, -2000.0)])
    assert dpo_loss(*far, 1.0).item() == pytest.approx(4000.0)


@pytest.mark.parametrize("loss", [lambda *given: dpo_loss(*given, 0.3, 0.2), lambda *given: ipo_loss(*given, 0.3)])
def test_gradients_of_preference_losses_are_those_of_finite_differences(loss):
    given = [column.requires_grad_() for column in columns(PREFERRED)]
    assert torch.autograd.gradcheck(loss, given)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_optimum_of_dpo_on_a_table_is_the_reference_tilted_by_the_reward(beta):
    # All ordered pairs of four answers, each as often as Bradley and Terry have it: the loss of endless data
    reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    reward = torch.tensor([-1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    better, worse = torch.tensor(list(itertools.permutations(range(4), 2))).T
    often = torch.sigmoid(reward[better] - reward[worse])

    def expected(logits):
        policy = logits.log_softmax(0)
        return (often * dpo_loss(policy[better], policy[worse], reference[better], reference[worse], beta)).sum()

    optimum = (reference + reward / beta).log_softmax(0).requires_grad_()
    (slope,) = torch.autograd.grad(expected(optimum), optimum)
    assert slope.abs().max() < 1e-12
    logits = reference.clone().requires_grad_()
    (start,) = torch.autograd.grad(expected(logits), logits)
    assert start.abs().max() > 0.1
    search = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")

    def step():
        search.zero_grad()
        loss = expected(logits)
        loss.backward()
        return loss

    search.step(step)
    torch.testing.assert_close(logits.log_softmax(0), optimum, atol=1e-6, rtol=0)
