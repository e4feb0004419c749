"""Steps on a round's answers: the gradient against plain loops, ratios of 1, clipping, and what is mixed in."""

import copy
import math

import pytest
import torch

from tasks.errors import PreflineError
from tasks.training.processes import Processes
from tasks.training.rollouts import ValueHead
from tasks.training.sft import SFTRow, sft_loss
from tasks.training.updates import Learner
from tasks.training_config import ComputeConfig, KLConfig, PolicyConfig, PPOConfig

ALONE = Processes(ComputeConfig(device="cpu"))
DEMONSTRATIONS = [SFTRow([3, 4], [5, 6, 1]), SFTRow([8], [9, 1]), SFTRow([2, 2, 2], [7, 7, 7, 7, 1])]
METHODS = ["ppo", "rloo", "grpo"]


def settings(method="ppo", **changes):
    return PolicyConfig(**({"method": method, "answers": 8, "minibatch": 4, "epochs": 2, "kl": KLConfig(weight=0.1)} | changes))


def learner_of(models, config, rate=0.0, demonstrations=()):
    """With plain gradient steps, so that a step of rate 1 is the gradient."""
    learner = Learner(models, config, ALONE, list(demonstrations))
    learner.optimizer = torch.optim.SGD(models.trained.parameters(), lr=rate)
    return learner


def asked_by(models, roll_out, config):
    """A round's answers; RLOO and GRPO have no critic."""
    if config.method != "ppo":
        models.critic = None
    return roll_out(models, config)


def moved(models, rollout, config, demonstrations=()):
    """Parameters after one plain gradient step of length 1 on the whole rollout, and what was told of it."""
    ours = copy.deepcopy(models)
    stats = learner_of(ours, config, 1.0, demonstrations).learn(rollout, seed=0)
    return list(ours.trained.parameters()), stats


def disturb(models, size):
    """Away from ratio 1 and from the old values."""
    with torch.no_grad():
        for parameter in models.trained.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))


# Ratio 1 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_first_pass_over_a_fresh_batch_has_ratio_1(models, roll_out, method):
    config = settings(method, epochs=1)
    rollout = asked_by(models, roll_out, config)
    stats = learner_of(models, config).learn(rollout, seed=0)
    assert stats["approx_kl"] < 1e-10
    assert stats["clip_fraction"] == 0
    assert stats["entropy"] > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_with_learning_rate_0_the_ratio_stays_1_for_ever_and_with_another_it_does_not(models, roll_out, method):
    config = settings(method, epochs=4)
    rollout = asked_by(models, roll_out, config)
    before = copy.deepcopy(models.trained.state_dict())
    stats = learner_of(models, config).learn(rollout, seed=0)
    assert (stats["approx_kl"] < 1e-10, stats["clip_fraction"]) == (True, 0)
    assert all(torch.equal(value, before[name]) for name, value in models.trained.state_dict().items())
    stats = learner_of(models, config, rate=1.0).learn(rollout, seed=0)
    assert stats["approx_kl"] > 1e-4
    assert stats["clip_fraction"] > 0


# The gradient ------------------------------------------------------------------------------------------------------------


def test_a_step_has_the_gradient_of_the_mean_over_tokens_written_as_a_loop(models, roll_out):
    config = settings(minibatch=8, epochs=1, clip_gradient=1e9, ppo=PPOConfig(value_clip=0.05, value_weight=0.3))
    rollout = roll_out(models, config)
    disturb(models, 0.05)  # so that both clips bite
    after, stats = moved(models, rollout, config)
    terms, value_terms, clipped, squares = [], [], 0, 0.0
    for row, tree in enumerate(rollout.trees):
        prompt, answer = tree.prompt, tree.answers[0]
        text = torch.tensor([prompt + answer])
        logits = models.policy(input_ids=text).logits[0, len(prompt) - 1 : -1]
        states = models.critic.body.model(input_ids=text).last_hidden_state[0, len(prompt) - 1 : -1]
        for t, token in enumerate(answer):
            log_ratio = logits[t].log_softmax(-1)[token] - rollout.logprobs[row, t].item()
            ratio, advantage = log_ratio.exp(), rollout.advantages[row, t].item()
            terms.append(max(-advantage * ratio, -advantage * min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2))))
            clipped += abs(ratio.item() - 1) > 0.2
            squares += log_ratio.item() ** 2 / 2
            value = models.critic.body.score(states[t])[0] + models.critic.bias
            old, target = rollout.values[row, t].item(), rollout.returns[row, t].item()
            near = old + min(max(value - old, torch.tensor(-0.05)), torch.tensor(0.05))
            value_terms.append(0.5 * max((value - target) ** 2, (near - target) ** 2))
    count = len(terms)
    assert 0 < clipped < count
    policy_loss, value_loss = sum(terms) / count, sum(value_terms) / count
    models.trained.zero_grad(set_to_none=True)
    (policy_loss + 0.3 * value_loss).backward()
    for found, parameter in zip(after, models.trained.parameters(), strict=True):
        torch.testing.assert_close(found, parameter - parameter.grad, rtol=1e-3, atol=1e-4)
    assert stats["policy_loss"] == pytest.approx(policy_loss.item(), abs=1e-4)
    assert stats["value_loss"] == pytest.approx(value_loss.item(), rel=1e-3)
    assert stats["clip_fraction"] == pytest.approx(clipped / count)
    assert stats["approx_kl"] == pytest.approx(squares / count, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tokens_at_once", [1, 25])
def test_what_fits_in_memory_does_not_change_a_step(models, roll_out, method, tokens_at_once):
    changes = {
        "minibatch": 8,
        "epochs": 1,
        "clip_gradient": 1e9,
        "pretraining_weight": 0.5,
        "kl": KLConfig(weight=0.1, place="loss", estimator="k3"),
    }
    config = settings(method, **changes)
    rollout = asked_by(models, roll_out, config)
    whole, told = moved(models, rollout, config, DEMONSTRATIONS)
    parts, told_again = moved(models, rollout, settings(method, tokens_at_once=tokens_at_once, **changes), DEMONSTRATIONS)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    assert told_again == pytest.approx(told, rel=1e-3, abs=1e-6)


def gradient_of(loss, models):
    return torch.autograd.grad(loss, list(models.policy.parameters()))


def difference(models, rollout, config, plain, demonstrations=()):
    """What the gradient has more of than that of the plain configuration, for the policy's parameters."""
    count = len(list(models.policy.parameters()))
    with_it, _ = moved(models, rollout, config, demonstrations)
    without, _ = moved(models, rollout, plain)
    return [b - a for a, b in zip(with_it[:count], without[:count], strict=True)]


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_the_kl_as_a_loss_adds_beta_times_the_gradient_of_its_mean_over_tokens(models, roll_out, kind):
    plain = settings("rloo", minibatch=8, epochs=1, clip_gradient=1e9, kl=KLConfig(weight=0))
    config = plain.model_copy(update={"kl": KLConfig(weight=0.7, place="loss", estimator=kind)})
    models.critic = None
    rollout = roll_out(models, config, beta=0.7)
    found = difference(models, rollout, config, plain)
    total, tokens = 0.0, 0
    for row, tree in enumerate(rollout.trees):
        prompt, answer = tree.prompt, tree.answers[0]
        logits = models.policy(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        d = logits.log_softmax(-1)[range(len(answer)), answer] - rollout.reference[row, : len(answer)]
        total = total + (d**2 / 2 if kind == "k2" else (-d).exp() - 1 + d).sum()
        tokens += len(answer)
    for ours, theirs in zip(found, gradient_of(0.7 * total / tokens, models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_pretraining_adds_its_weight_times_the_gradient_of_the_demonstrations_mean_over_tokens(models, roll_out):
    plain = settings("rloo", minibatch=8, epochs=1, clip_gradient=1e9)
    config = plain.model_copy(update={"pretraining_weight": 0.4})
    models.critic = None
    rollout = roll_out(models, config)
    found = difference(models, rollout, config, plain, DEMONSTRATIONS[:1])
    expected = gradient_of(0.4 * sft_loss(models.policy, DEMONSTRATIONS[:1]) / 3, models)  # one demonstration eight times
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_each_step_mixes_in_other_demonstrations_and_the_same_ones_when_it_is_made_again(models, roll_out):
    config = settings(pretraining_weight=0.4, learning_rate=1e-12)
    rollout = roll_out(models, config)
    told = [moved(models, rollout, config, rows)[1].get("pretraining_loss") for rows in (DEMONSTRATIONS, DEMONSTRATIONS, ())]
    assert told[0] == told[1] > 0
    assert told[2] is None

    seen = []

    class Notes(Learner):
        def _step(self, batch, lesson):
            seen.append([DEMONSTRATIONS.index(row) for row in lesson])
            return super()._step(batch, lesson)

    learner = Notes(models, config, ALONE, DEMONSTRATIONS)
    learner.learn(rollout, seed=0)
    learner.learn(rollout, seed=1)
    assert [len(drawn) for drawn in seen] == [4] * 8  # two rounds of two epochs of two steps
    assert len({tuple(drawn) for drawn in seen}) > 6


def test_a_shared_critic_teaches_the_policys_trunk_and_its_own_head(models, roll_out):
    models.critic = ValueHead(16)
    plain = settings(minibatch=8, epochs=1, clip_gradient=1e9, ppo=PPOConfig(critic="shared", value_weight=1e-30))
    config = plain.model_copy(update={"ppo": PPOConfig(critic="shared", value_weight=0.3)})
    with torch.no_grad():
        models.critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    rollout = roll_out(models, config)
    by_name = dict(zip(dict(models.policy.named_parameters()), difference(models, rollout, config, plain), strict=True))
    assert by_name["model.layers.0.mlp.down_proj.weight"].abs().max() > 1e-3
    assert by_name["lm_head.weight"].abs().max() < 1e-6  # values are read before it
    after, stats = moved(models, rollout, config)
    assert (after[-1] - models.critic.head.bias).abs().item() > 1e-4
    assert stats["value_loss"] > 0


def test_the_critic_reads_when_the_policys_states_are_no_longer_in_memory(models, roll_out, monkeypatch):
    config = settings(minibatch=8, epochs=1)
    rollout = roll_out(models, config)
    values, seen = models.critic.values, []

    def watched(trees):
        seen.append(models.policy.lm_head.weight.grad is not None)
        return values(trees)

    monkeypatch.setattr(models.critic, "values", watched)
    learner_of(models, config).learn(rollout, seed=0)
    assert seen == [True]


# Rates, norms, faults ------------------------------------------------------------------------------------------------------


def test_rates_are_those_of_policy_and_critic_fall_linearly_and_epsilon_is_1e_5(models):
    learner = Learner(models, settings(learning_rate=1e-4, ppo=PPOConfig(critic_learning_rate=4e-4)), ALONE)
    for done in (0.0, 0.25, 0.75):
        learner.learning_rate_at(done)
        told = [(group["lr"], group["eps"]) for group in learner.optimizer.param_groups]
        assert told == [(pytest.approx(1e-4 * (1 - done)), 1e-5), (pytest.approx(4e-4 * (1 - done)), 1e-5)]


def test_policy_and_critic_are_clipped_by_their_own_norms(models, roll_out):
    config = settings(minibatch=8, epochs=1, clip_gradient=0.01)
    after, stats = moved(models, roll_out(models, config), config)
    assert min(stats["policy_gradient_norm"], stats["critic_gradient_norm"]) > 0.01
    before = list(models.trained.parameters())
    parts = len(list(models.policy.parameters()))
    for part in (slice(0, parts), slice(parts, None)):
        length = math.sqrt(sum(((a - b) ** 2).sum().item() for a, b in zip(after[part], before[part], strict=True)))
        assert length == pytest.approx(0.01, rel=1e-2)


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(models, roll_out):
    rollout = roll_out(models, settings())
    rollout.advantages = rollout.advantages.clone()
    rollout.advantages[0, 0] = math.nan
    with pytest.raises(PreflineError, match="not finite"):
        learner_of(models, settings(minibatch=8), rate=1.0).learn(rollout, seed=0)
    assert all(parameter.isfinite().all() for parameter in models.policy.parameters())
