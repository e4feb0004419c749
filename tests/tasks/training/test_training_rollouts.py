"""A round's answers against plain loops over their rows: what is read of them, and what each token is worth."""

import math

import pytest
import torch
from torch import nn

from tasks.training.ensemble import Ensemble
from tasks.training.estimators import group_advantages, leave_one_out_advantages
from tasks.training.rollouts import Episode, ValueHead, weigh
from tasks.training.trees import Tree
from tasks.training_config import GRPOConfig, KLConfig, PolicyConfig, PPOConfig

EOS = 1


def settings(**changes):
    return PolicyConfig(**({"answers": 8, "minibatch": 4, "kl": KLConfig(weight=0.1)} | changes))


@torch.no_grad()
def plain_logprobs(model, prompt, answer, temperature):
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)


@torch.no_grad()
def plain_score(model, text):
    """The head at the last token of the text alone."""
    return (model.body.model(input_ids=torch.tensor([text])).last_hidden_state[0, -1] @ model.body.score.weight[0]).item() + model.bias


def test_a_rollout_is_what_a_plain_loop_over_its_rows_gives(models, roll_out):
    config = settings(temperature=0.7, no_stop_penalty=3.0, ppo=PPOConfig(gamma=0.9, lam=0.8))
    models.reward_model.bias = 0.25
    rollout = roll_out(models, config, beta=0.2)
    rows = [(tree.prompt, tree.answers[0]) for tree in rollout.trees]
    stopped = [answer[-1] == EOS for _, answer in rows]
    assert 0 < sum(stopped) < 8
    unwhitened, sums_of_k1, scores = [], [], []
    for row, (prompt, answer) in enumerate(rows):
        length = len(answer)
        new = plain_logprobs(models.policy, prompt, answer, 0.7)
        with models.reference() as model:
            reference = plain_logprobs(model, prompt, answer, 0.7)
        k1 = (new - reference).tolist()
        score = plain_score(models.reward_model, prompt + answer) - (0.0 if stopped[row] else 3.0)
        values = [plain_score(models.critic, prompt + answer[:t]) for t in range(length)] + [0.0]
        rewards = [-0.2 * k for k in k1]
        rewards[-1] += score
        deltas = [rewards[t] + 0.9 * values[t + 1] - values[t] for t in range(length)]
        advantages = [sum((0.9 * 0.8) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
        assert rollout.mask[row].tolist() == [1.0] * length + [0.0] * (rollout.mask.shape[1] - length)
        assert rollout.logprobs[row, :length].tolist() == pytest.approx(new.tolist(), abs=1e-5)
        assert rollout.reference[row, :length].tolist() == pytest.approx(reference.tolist(), abs=1e-5)
        assert rollout.values[row, :length].tolist() == pytest.approx(values[:-1], abs=1e-4)
        assert rollout.returns[row, :length].tolist() == pytest.approx([a + v for a, v in zip(advantages, values, strict=False)], abs=1e-4)
        unwhitened += advantages
        sums_of_k1.append(sum(k1))
        scores.append(score)
    mean = sum(unwhitened) / len(unwhitened)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in unwhitened) / len(unwhitened))
    white = [(a - mean) / deviation for a in unwhitened]
    assert rollout.advantages[rollout.mask.bool()].tolist() == pytest.approx(white, abs=1e-4)
    tokens = sum(len(answer) for _, answer in rows)
    penalties = sum(0.0 if stop else 3.0 for stop in stopped)
    expected = {
        "kl": sum(sums_of_k1) / 8,  # nats a sequence
        "kl_token": sum(sums_of_k1) / tokens,
        "length": tokens / 8,
        "no_stop": 1 - sum(stopped) / 8,
        "distinct": len({tuple(answer) for _, answer in rows}) / 8,
        "own_reward": (sum(scores) + penalties) / 8,  # as the reward model says
        "reward_with_penalty": (sum(scores) - 0.2 * sum(sums_of_k1)) / 8,
    }
    assert {name: rollout.stats[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_padding_of_a_rollout_holds_zeros_only(models, roll_out):
    rollout = roll_out(models, settings())
    padding = rollout.mask == 0
    assert padding.any()
    for tensor in (rollout.logprobs, rollout.reference, rollout.values, rollout.advantages, rollout.returns):
        assert tensor[padding].abs().max() == 0


@pytest.mark.parametrize("tokens_at_once", [1, 20])
def test_what_fits_in_memory_does_not_change_a_rollout(models, roll_out, tokens_at_once):
    whole, parts = roll_out(models, settings()), roll_out(models, settings(tokens_at_once=tokens_at_once))
    assert whole.trees == parts.trees
    for name in ("logprobs", "reference", "values", "advantages", "returns"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_an_ensemble_scores_as_it_combines_and_says_how_far_its_members_differ(models, roll_out):
    members = [models.reward_model, models.critic]
    models.reward_model = Ensemble(members, "min", 1.0)
    rollout = roll_out(models, settings(no_stop_penalty=0.0))
    texts = [tree.prompt + tree.answers[0] for tree in rollout.trees]
    scores = [[plain_score(member, text) for member in members] for text in texts]
    assert rollout.stats["own_reward"] == pytest.approx(sum(map(min, scores)) / 8, abs=1e-4)
    assert rollout.stats["uncertainty"] == pytest.approx(sum(abs(a - b) / 2 for a, b in scores) / 8, abs=1e-4)
    assert rollout.stats["uncertainty"] > 0.1


# What is subtracted ------------------------------------------------------------------------------------------------------


def episode(answer, score, k=0.0, stopped=True):
    """An answer at whose every token the policy's log-probability is k above the reference's."""
    return Episode(Tree([2], [answer]), stopped, float(score), 0.0, [-1.0] * len(answer), [-1.0 - k] * len(answer), [0.0] * len(answer))


EIGHT = [episode([5] * n, score, k) for n, score, k in [(1, 3, 0.5), (2, 1, 0), (3, -2, 1), (1, 0, 0)] * 2]


def sums(rollout):
    """Rewards of the rows; with gamma = lambda = 1 and values of 0, the first return."""
    return rollout.returns[:, 0].tolist()


PLAIN = PPOConfig(gamma=1.0, lam=1.0)


@pytest.mark.parametrize(("kind", "of_half", "of_one"), [("k1", 0.5, 1.0), ("k2", 0.125, 0.5), ("k3", 0.106531, 0.367879)])
def test_the_estimator_decides_what_a_token_pays(kind, of_half, of_one):
    # k2 = d^2 / 2; k3 = exp(-0.5) - 0.5 = 0.106531, exp(-1) = 0.367879
    rollout = weigh(EIGHT, settings(kl=KLConfig(estimator=kind), ppo=PLAIN), beta=2.0)
    assert sums(rollout) == pytest.approx([3 - 2 * of_half, 1, -2 - 2 * 3 * of_one, 0] * 2, abs=1e-5)
    assert rollout.stats["kl"] == pytest.approx((0.5 + 3) / 4)  # whatever is paid, the figure is k1


def test_as_a_loss_of_its_own_the_kl_is_not_taken_off_the_reward():
    rollout = weigh(EIGHT, settings(kl=KLConfig(place="loss", estimator="k2"), ppo=PLAIN), beta=2.0)
    assert sums(rollout) == pytest.approx([3, 1, -2, 0] * 2)
    assert rollout.beta == 2.0


def test_scores_are_clipped_before_the_penalty_for_a_missing_stop():
    episodes = [episode([5], 3.0), episode([5], -3.0, stopped=False), episode([5], 0.5, stopped=False), episode([5], 0.5)] * 2
    rollout = weigh(episodes, settings(score_clip=1.0, no_stop_penalty=5.0, ppo=PLAIN), beta=0.1)
    assert sums(rollout) == pytest.approx([1.0, -6.0, -4.5, 0.5] * 2)


def test_whitened_rewards_keep_their_mean(models, roll_out):
    """With gamma = lambda = 1 the first return of a row is the sum of its rewards."""
    plain, white = (roll_out(models, settings(ppo=PPOConfig(lam=1.0, whiten_rewards=on))) for on in (False, True))

    def rewards(rollout):
        following = nn.functional.pad(rollout.returns, (0, 1))[:, 1:]
        return (rollout.returns - following)[rollout.mask.bool()]

    assert rewards(white).mean().item() == pytest.approx(rewards(plain).mean().item(), abs=1e-4)
    assert rewards(white).var(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert abs(rewards(plain).var(correction=0).item() - 1) > 0.1


# Methods without a critic ------------------------------------------------------------------------------------------------

BY_GROUP = {
    "rloo": lambda rewards: leave_one_out_advantages(rewards, torch.ones(8, dtype=torch.bool), 4),
    "grpo": lambda rewards: group_advantages(rewards, torch.ones(8, dtype=torch.bool), 4, scale=True),
}


@pytest.mark.parametrize("method", BY_GROUP)
def test_without_a_critic_every_token_has_the_advantage_of_its_answer(method):
    rollout = weigh(EIGHT, settings(method=method), beta=2.0)
    expected = BY_GROUP[method](torch.tensor([3 - 2 * 0.5, 1, -2 - 2 * 3, 0] * 2))
    torch.testing.assert_close(rollout.advantages, expected.unsqueeze(1) * rollout.mask)
    assert rollout.values.abs().max() == rollout.returns.abs().max() == 0
    assert "explained_variance" not in rollout.stats


def test_grpo_without_scale_only_centres():
    rollout = weigh(EIGHT, settings(method="grpo", grpo=GRPOConfig(scale=False), kl=KLConfig(weight=0)), beta=0.0)
    assert rollout.advantages[:4, 0].tolist() == pytest.approx([2.5, 0.5, -2.5, -0.5])


def test_an_answer_of_the_end_alone_is_an_answer():
    """Sampling never gives fewer tokens than the EOS: saying nothing is an act of the policy, and counts in the baseline."""
    silent = [episode([EOS], 8.0), *EIGHT[1:]]
    rollout = weigh(silent, settings(method="rloo", kl=KLConfig(weight=0)), beta=0.0)
    assert rollout.advantages[:4, 0].tolist() == pytest.approx([8 + 1 / 3, 1 - 2, -2 - 3, 0 - 7 / 3])


# A critic on the policy ------------------------------------------------------------------------------------------------


def test_a_shared_critic_reads_the_state_before_each_token_and_is_0_at_first(models, roll_out):
    models.critic = ValueHead(16)
    config = settings(ppo=PPOConfig(critic="shared"))
    assert roll_out(models, config).values.abs().max() == 0
    with torch.no_grad():
        models.critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        models.critic.head.bias.fill_(0.5)
    rollout = roll_out(models, config)
    for row, tree in enumerate(rollout.trees):
        answer = tree.answers[0]
        for t in range(len(answer)):
            with torch.no_grad():
                state = models.policy.model(input_ids=torch.tensor([tree.prompt + answer[:t]])).last_hidden_state[0, -1]
            expected = (state @ models.critic.head.weight[0]).item() + 0.5
            assert rollout.values[row, t].item() == pytest.approx(expected, abs=1e-4)
    assert rollout.values[rollout.mask == 0].abs().max() == 0


def test_a_shared_critics_values_take_no_logits_of_the_vocabulary(models, roll_out):
    models.critic = ValueHead(16)
    rollout = roll_out(models, settings(ppo=PPOConfig(critic="shared")))
    told = []
    with models.policy.lm_head.register_forward_hook(lambda _, __, logits: told.append(logits.shape[:-1].numel())), torch.no_grad():
        models.values(rollout.trees)
    assert told == [1]
