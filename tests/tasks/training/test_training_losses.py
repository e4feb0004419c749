"""Losses against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.losses import bradley_terry_loss, clipped_value_loss, ppo_policy_loss, token_logprobs


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


def test_token_logprobs_of_half_precision_logits_are_normalised_in_fp32():
    logits = torch.linspace(-3, 3, 1000).to(torch.bfloat16).unsqueeze(0)
    found = token_logprobs(logits, torch.tensor([999]))
    assert found.dtype == torch.float32
    # bf16 keeps three digits, which would be off by about 0.03 here
    assert found.item() == pytest.approx(logits.double().log_softmax(-1)[0, 999].item(), abs=1e-5)
