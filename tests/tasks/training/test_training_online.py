"""PPO against exact sums over every answer, against plain loops, and against itself after a kill."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from transformers import LlamaForSequenceClassification

from tasks.errors import PreflineError
from tasks.training import online as ppo
from tasks.training.estimators import gae, token_rewards
from tasks.training.logprobs import answer_logprobs
from tasks.training.losses import ppo_policy_loss
from tasks.training.models import RewardModel
from tasks.training.online import Models, answer_values, collect, run_rounds, update
from tasks.training.onlooker import Look
from tasks.training.sampling import Sampling
from tasks.training_config import KLConfig, PolicyConfig

EOS = 1
PROMPTS = [[3, 4, 5, 6, 7], [8], [3, 2, 4], [9, 8, 7, 6], [2, 2], [5], [6, 7], [10, 11, 3]]


def settings(**changes):
    return PolicyConfig(
        **({"rounds": 4, "answers": 8, "minibatch": 4, "epochs": 2, "judge_every": 2, "kl": KLConfig(weight=0.1)} | changes)
    )


@pytest.fixture
def models(make_llama):
    """A policy that has moved away from its reference, a critic and a reward model, all of 12 tokens."""

    def scorer(seed):
        config = copy.deepcopy(make_llama(12).config)
        config.num_labels = 1
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return RewardModel(model)

    return Models(make_llama(12, seed=1, spread=0.5), make_llama(12, seed=2, spread=0.5), scorer(3), scorer(4))


def roll_out(models, config=None, seed=0, beta=0.1, longest=6, prompts=PROMPTS):
    config = config or settings()
    return collect(models, prompts, config, Sampling(longest, config.temperature), EOS, beta, torch.Generator().manual_seed(seed))


def states(*modules):
    return [copy.deepcopy(module.state_dict()) for module in modules]


def same(first, second):
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


# The gradient, exactly -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [False, True], ids=["no baseline", "a critic as baseline"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_first_step_follows_the_exact_gradient_of_score_less_beta_times_kl(make_llama, models, beta, baseline):
    """3 tokens, 2 steps: the mean of the surrogate's gradient over all 9 answers is that of E[score] - beta KL."""
    policy, reference = make_llama(3, seed=1, spread=0.5), make_llama(3, seed=2, spread=0.5)
    prompt, answers = [2, 0, 1], [list(answer) for answer in itertools.product(range(3), repeat=2)]
    prompts, scores = [prompt] * 9, torch.tensor([0.3, -1.0, 2.0, 0.1, 0.7, -0.4, 1.5, -2.0, 0.9])
    logprobs, mask, _ = answer_logprobs(policy, prompts, answers, 1.0)
    with torch.no_grad():
        ref_logprobs, _, _ = answer_logprobs(reference, prompts, answers, 1.0)
    chances = logprobs.sum(1).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-5)
    exact = (chances * (scores - beta * (logprobs - ref_logprobs).sum(1))).sum()
    expected = torch.autograd.grad(exact, policy.parameters(), retain_graph=True)

    old = logprobs.detach()
    values = answer_values(models.critic, prompts, answers).detach() if baseline else torch.zeros(9, 2)
    advantages, _ = gae(token_rewards(scores, old, ref_logprobs, mask, beta), values, mask, gamma=1.0, lam=1.0)
    surrogate = (chances.detach().unsqueeze(1) * ppo_policy_loss(logprobs, old, advantages)).sum()
    found = torch.autograd.grad(surrogate, policy.parameters())
    assert max(gradient.abs().max().item() for gradient in expected) > 0.1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(-ours, theirs, rtol=1e-3, atol=1e-5)


# A rollout, row by row -----------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_logprobs(model, prompt, answer, temperature):
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)


@torch.no_grad()
def plain_score(model, text):
    """The head at the last token of the text alone."""
    return (model.body.model(input_ids=torch.tensor([text])).last_hidden_state[0, -1] @ model.body.score.weight[0]).item() + model.bias


def test_a_rollout_is_what_a_plain_loop_over_its_rows_gives(models):
    config = settings(temperature=0.7, no_stop_penalty=3.0, gamma=0.9, lam=0.8)
    models.reward_model.bias = 0.25
    rollout = roll_out(models, config, beta=0.2)
    stopped = [answer[-1] == EOS for answer in rollout.answers]
    assert 0 < sum(stopped) < 8
    unwhitened, returns, sums_of_k1, scores = [], [], [], []
    for row, (prompt, answer) in enumerate(zip(PROMPTS, rollout.answers, strict=True)):
        length = len(answer)
        new = plain_logprobs(models.policy, prompt, answer, 0.7)
        k1 = (new - plain_logprobs(models.reference, prompt, answer, 0.7)).tolist()
        score = plain_score(models.reward_model, prompt + answer) - (0.0 if stopped[row] else 3.0)
        values = [plain_score(models.critic, prompt + answer[:t]) for t in range(length)] + [0.0]
        rewards = [-0.2 * k for k in k1]
        rewards[-1] += score
        deltas = [rewards[t] + 0.9 * values[t + 1] - values[t] for t in range(length)]
        advantages = [sum((0.9 * 0.8) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
        assert rollout.mask[row].tolist() == [1.0] * length + [0.0] * (rollout.mask.shape[1] - length)
        assert rollout.logprobs[row, :length].tolist() == pytest.approx(new.tolist(), abs=1e-5)
        assert rollout.values[row, :length].tolist() == pytest.approx(values[:-1], abs=1e-4)
        assert rollout.returns[row, :length].tolist() == pytest.approx([a + v for a, v in zip(advantages, values, strict=False)], abs=1e-4)
        unwhitened += advantages
        returns += rollout.returns[row, :length].tolist()
        sums_of_k1.append(sum(k1))
        scores.append(score)
    mean = sum(unwhitened) / len(unwhitened)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in unwhitened) / len(unwhitened))
    white = [(a - mean) / deviation for a in unwhitened]
    assert rollout.advantages[rollout.mask.bool()].tolist() == pytest.approx(white, abs=1e-4)
    assert rollout.scores.tolist() == pytest.approx(scores, abs=1e-4)
    assert rollout.kl.tolist() == pytest.approx(sums_of_k1, abs=1e-4)
    assert rollout.stats["kl"] == pytest.approx(sum(sums_of_k1) / 8, abs=1e-4)  # nats a sequence
    assert rollout.stats["length"] == pytest.approx(sum(map(len, rollout.answers)) / 8)
    assert rollout.stats["no_stop"] == pytest.approx(1 - sum(stopped) / 8)
    penalties = sum(0.0 if stop else 3.0 for stop in stopped)
    assert rollout.stats["own_reward"] == pytest.approx((sum(scores) + penalties) / 8, abs=1e-4)  # as the reward model says
    assert rollout.stats["reward_with_penalty"] == pytest.approx((sum(scores) - 0.2 * sum(sums_of_k1)) / 8, abs=1e-4)


def test_padding_of_a_rollout_holds_zeros_only(models):
    rollout = roll_out(models)
    padding = rollout.mask == 0
    assert padding.any()
    for tensor in (rollout.logprobs, rollout.values, rollout.advantages, rollout.returns):
        assert tensor[padding].abs().max() == 0


@pytest.mark.parametrize("tokens_at_once", [1, 20])
def test_what_fits_in_memory_does_not_change_a_rollout(models, tokens_at_once):
    whole, parts = roll_out(models), roll_out(models, settings(tokens_at_once=tokens_at_once))
    assert whole.answers == parts.answers
    for name in ("logprobs", "values", "advantages", "returns", "scores", "kl"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_scores_are_clipped_before_the_penalty_for_a_missing_stop(models):
    rollout = roll_out(models, settings(score_clip=0.01, no_stop_penalty=5.0))
    for score, answer in zip(rollout.scores.tolist(), rollout.answers, strict=True):
        assert abs(abs(score + (0 if answer[-1] == EOS else 5)) - 0.01) < 1e-6


def test_whitened_rewards_keep_their_mean(models):
    """With gamma = lambda = 1 the first return of a row is the sum of its rewards."""
    plain, white = (roll_out(models, settings(gamma=1.0, lam=1.0, whiten_rewards=on)) for on in (False, True))

    def rewards(rollout):
        following = nn.functional.pad(rollout.returns, (0, 1))[:, 1:]
        return (rollout.returns - following)[rollout.mask.bool()]

    assert rewards(white).mean().item() == pytest.approx(rewards(plain).mean().item(), abs=1e-4)
    assert rewards(white).var(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert abs(rewards(plain).var(correction=0).item() - 1) > 0.1


def test_an_answer_value_is_the_critics_before_each_token_and_reads_the_prompt(models):
    answers = [[5, 6, EOS], [7]]
    with torch.no_grad():
        values = answer_values(models.critic, [[3, 4], [8, 9, 10]], answers)
    texts = [[3, 4], [3, 4, 5], [3, 4, 5, 6]]
    expected = [[plain_score(models.critic, text) for text in texts], [plain_score(models.critic, [8, 9, 10]), 0, 0]]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=0, atol=1e-5)


# Updates -------------------------------------------------------------------------------------------------------------


def test_the_first_pass_over_a_fresh_batch_has_ratio_1(models):
    still = torch.optim.SGD([*models.policy.parameters(), *models.critic.parameters()], lr=0.0)
    stats = update(models, still, roll_out(models), settings(epochs=1), seed=0)
    assert stats["approx_kl"] < 1e-10
    assert stats["clip_fraction"] == 0
    assert stats["entropy"] > 0.5


def test_with_learning_rate_0_the_ratio_stays_1_for_ever_and_with_another_it_does_not(models):
    rollout = roll_out(models)
    parameters = [*models.policy.parameters(), *models.critic.parameters()]
    before = states(models.policy, models.critic)
    stats = update(models, torch.optim.SGD(parameters, lr=0.0), rollout, settings(epochs=4), seed=0)
    assert (stats["approx_kl"] < 1e-10, stats["clip_fraction"]) == (True, 0)
    assert same(states(models.policy, models.critic), before)
    stats = update(models, torch.optim.SGD(parameters, lr=1.0), rollout, settings(epochs=4), seed=0)
    assert stats["approx_kl"] > 1e-4
    assert stats["clip_fraction"] > 0


def moved(models, rollout, config):
    """Parameters after one plain gradient step of length 1 on the whole rollout, and what was told of it."""
    ours = copy.deepcopy(models)
    optimizer = torch.optim.SGD([*ours.policy.parameters(), *ours.critic.parameters()], lr=1.0)
    stats = update(ours, optimizer, rollout, config, seed=0)
    return [*ours.policy.parameters(), *ours.critic.parameters()], stats


def test_a_step_has_the_gradient_of_the_mean_over_tokens_written_as_a_loop(models):
    rollout = roll_out(models)
    config = settings(minibatch=8, epochs=1, clip_gradient=1e9, clip=0.2, value_clip=0.05, value_weight=0.3)
    with torch.no_grad():  # away from ratio 1 and from the old values, so that both clips bite
        for parameter in [*models.policy.parameters(), *models.critic.parameters()]:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    after, stats = moved(models, rollout, config)
    terms, value_terms, clipped, squares = [], [], 0, 0.0
    for row, (prompt, answer) in enumerate(zip(PROMPTS, rollout.answers, strict=True)):
        logits = models.policy(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        for t, token in enumerate(answer):
            log_ratio = logits[t].log_softmax(-1)[token] - rollout.logprobs[row, t].item()
            ratio, advantage = log_ratio.exp(), rollout.advantages[row, t].item()
            terms.append(max(-advantage * ratio, -advantage * min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2))))
            clipped += abs(ratio.item() - 1) > 0.2
            squares += log_ratio.item() ** 2 / 2
            value = models.critic.values(torch.tensor([prompt + answer[:t]]), torch.ones(1, len(prompt) + t, dtype=torch.long))[0, -1]
            old, target = rollout.values[row, t].item(), rollout.returns[row, t].item()
            near = old + min(max(value - old, torch.tensor(-0.05)), torch.tensor(0.05))
            value_terms.append(0.5 * max((value - target) ** 2, (near - target) ** 2))
    count = len(terms)
    assert 0 < clipped < count
    policy_loss, value_loss = sum(terms) / count, sum(value_terms) / count
    for parameter in [*models.policy.parameters(), *models.critic.parameters()]:
        parameter.grad = None
    (policy_loss + 0.3 * value_loss).backward()
    for found, parameter in zip(after, [*models.policy.parameters(), *models.critic.parameters()], strict=True):
        torch.testing.assert_close(found, parameter - parameter.grad, rtol=1e-3, atol=1e-4)
    assert stats["policy_loss"] == pytest.approx(policy_loss.item(), abs=1e-4)
    assert stats["value_loss"] == pytest.approx(value_loss.item(), rel=1e-3)
    assert stats["clip_fraction"] == pytest.approx(clipped / count)
    assert stats["approx_kl"] == pytest.approx(squares / count, rel=1e-3)


@pytest.mark.parametrize("tokens_at_once", [1, 25])
def test_what_fits_in_memory_does_not_change_a_step(models, tokens_at_once):
    rollout = roll_out(models)
    whole, told = moved(models, rollout, settings(minibatch=8, epochs=1, clip_gradient=1e9))
    parts, told_again = moved(models, rollout, settings(minibatch=8, epochs=1, clip_gradient=1e9, tokens_at_once=tokens_at_once))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    assert told_again == pytest.approx(told, rel=1e-3, abs=1e-6)


def test_policy_and_critic_are_clipped_by_their_own_norms(models):
    rollout = roll_out(models)
    config = settings(minibatch=8, epochs=1, clip_gradient=0.01)
    after, stats = moved(models, rollout, config)
    assert min(stats["policy_gradient_norm"], stats["value_gradient_norm"]) > 0.01
    before = [*models.policy.parameters(), *models.critic.parameters()]
    parts = len(list(models.policy.parameters()))
    for part in (slice(0, parts), slice(parts, None)):
        length = math.sqrt(sum(((a - b) ** 2).sum().item() for a, b in zip(after[part], before[part], strict=True)))
        assert length == pytest.approx(0.01, rel=1e-2)


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(models):
    rollout = roll_out(models)
    rollout.advantages = rollout.advantages.clone()
    rollout.advantages[0, 0] = math.nan
    optimizer = torch.optim.SGD([*models.policy.parameters(), *models.critic.parameters()], lr=1.0)
    with pytest.raises(PreflineError, match="not finite"):
        update(models, optimizer, rollout, settings(minibatch=8), seed=0)
    assert all(parameter.isfinite().all() for parameter in models.policy.parameters())


# The whole loop ------------------------------------------------------------------------------------------------------


def judge_by(scores):
    """An onlooker that gives each round the score listed for it, and notes the policy that it saw."""
    seen = {}

    def look(number, policy):
        seen[number] = states(policy)
        return Look(number, kl=0.0, length=1.0, stopped=1.0, own=[0.0], judge=[scores.get(number, 0.0)], gold=None)

    return look, seen


def train(models, folder, config, scores=None, report=lambda *_, **__: None, seed=3):
    look, seen = judge_by(scores or {})
    progress = run_rounds(models, PROMPTS, look, config, Sampling(6, config.temperature), EOS, seed, folder, report)
    return progress, seen


def test_the_round_that_the_judge_likes_best_is_kept(models, tmp_path):
    progress, seen = train(models, tmp_path, settings(rounds=6), {0: 9.0, 2: 1.0, 4: 3.0, 6: 2.0})
    assert [look.round for look in progress.looks] == [0, 2, 4, 6]
    assert progress.best_round == 4  # round 0 is the SFT model and no candidate
    assert same(states(models.policy), seen[4])
    assert not same(seen[4], seen[6])


def test_the_last_round_is_kept_where_the_configuration_says_so(models, tmp_path):
    progress, seen = train(models, tmp_path, settings(rounds=6, choose="last"), {2: 1.0, 4: 3.0, 6: 2.0})
    assert progress.best_round == 6
    assert same(states(models.policy), seen[6])


def test_reference_and_reward_model_stay_as_they_are(models, tmp_path):
    before = states(models.reference, models.reward_model)
    policy, critic = states(models.policy, models.critic)
    train(models, tmp_path, settings())
    assert same(states(models.reference, models.reward_model), before)
    assert not same(states(models.policy), [policy])
    assert not same(states(models.critic), [critic])


def test_the_learning_rates_fall_linearly_to_zero_and_epsilon_is_1e_5(models, tmp_path, monkeypatch):
    told = []

    def spy(models, optimizer, *rest):
        told.append([(group["lr"], group["eps"]) for group in optimizer.param_groups])
        return update(models, optimizer, *rest)

    monkeypatch.setattr(ppo, "update", spy)
    train(models, tmp_path, settings(rounds=4, learning_rate=1e-4, critic_learning_rate=4e-4))
    shares = [1.0, 0.75, 0.5, 0.25]
    assert told == [[(pytest.approx(1e-4 * share), 1e-5), (pytest.approx(4e-4 * share), 1e-5)] for share in shares]


def test_every_prompt_is_asked_once_before_any_is_asked_again(models, tmp_path, monkeypatch):
    asked = []

    def spy(models, prompts, *rest):
        asked.extend(prompts)
        return collect(models, prompts, *rest)

    monkeypatch.setattr(ppo, "collect", spy)
    look, _ = judge_by({})
    prompts = [[2, n] for n in range(2, 12)]  # 10 prompts, 8 a round
    run_rounds(models, prompts, look, settings(rounds=5), Sampling(3), EOS, 3, tmp_path, lambda *_, **__: None)
    passes = [sorted(asked[first : first + 10]) for first in range(0, 40, 10)]
    assert passes == [prompts] * 4
    assert asked[:10] != asked[10:20]


def test_what_a_round_reports_is_in_the_history(models, tmp_path):
    told = []
    progress, _ = train(models, tmp_path, settings(), report=lambda done, total, **metrics: told.append((done, total, metrics)))
    assert [(done, total) for done, total, _ in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    required = {
        "approx_kl",
        "clip_fraction",
        "kl",
        "entropy",
        "value_loss",
        "explained_variance",
        "length",
        "no_stop",
        "own_reward",
        "beta",
    }
    for stats, (*_, metrics) in zip(progress.history, told, strict=True):
        assert required <= set(stats)
        assert stats.items() <= metrics.items()


def test_the_kl_weight_is_steered_by_nats_a_sequence_and_counts_answers(models, tmp_path):
    kl = KLConfig(weight=0.1, target=2.0, horizon=100)
    progress, _ = train(models, tmp_path, settings(kl=kl))
    beta = 0.1
    for stats in progress.history:
        assert stats["beta"] == pytest.approx(beta, rel=1e-6)
        beta *= 1 + max(-0.2, min(0.2, stats["kl"] / 2.0 - 1)) * 8 / 100
    assert len({stats["beta"] for stats in progress.history}) == 4


@pytest.mark.parametrize("stop_kl", [1e-3, None])
def test_training_stops_where_the_kl_passes_its_bound(models, tmp_path, stop_kl):
    progress, seen = train(models, tmp_path, settings(stop_kl=stop_kl))
    assert progress.done == (1 if stop_kl else 4)
    assert progress.looks[-1].round == (1 if stop_kl else 4)
    assert same(states(models.policy), seen[progress.best_round])


class Killed(BaseException):
    pass


def kill_after(number):
    def report(done, total, **_):
        if done == number:
            raise Killed

    return report


RESUMED = {
    "adaptive KL": (settings(rounds=5, epochs=1, kl=KLConfig(weight=0.1, target=2.0, horizon=100)), {2: 1.0, 4: 0.5, 5: 0.2}),
    "the best round is behind": (settings(rounds=5, epochs=1, judge_every=1), {1: 3.0, 2: 1.0}),
    "the last round": (settings(rounds=5, epochs=1, choose="last"), {}),
}


@pytest.mark.parametrize("kills", [[1], [3], [5], [2, 4]], ids=str)
@pytest.mark.parametrize(("config", "scores"), RESUMED.values(), ids=RESUMED)
def test_a_run_killed_after_some_rounds_and_resumed_is_the_unbroken_run_bit_for_bit(models, tmp_path, config, scores, kills):
    start = copy.deepcopy(models)
    expected, _ = train(models, tmp_path / "unbroken", config, scores)
    for kill in kills:
        with pytest.raises(Killed):
            train(copy.deepcopy(start), tmp_path / "broken", config, scores, report=kill_after(kill))
    resumed = copy.deepcopy(start)
    found, _ = train(resumed, tmp_path / "broken", config, scores)
    assert same(states(resumed.policy, resumed.critic, resumed.reference), states(models.policy, models.critic, models.reference))
    assert (found.done, found.best_round, found.history, found.looks) == (
        expected.done,
        expected.best_round,
        expected.history,
        expected.looks,
    )


def test_a_run_that_had_stopped_at_its_kl_bound_does_not_go_on_after_a_kill(models, tmp_path):
    config = settings(stop_kl=1e-3)
    start = copy.deepcopy(models)
    expected, _ = train(models, tmp_path / "unbroken", config)
    with pytest.raises(Killed):
        train(copy.deepcopy(start), tmp_path / "broken", config, report=kill_after(1))
    resumed = copy.deepcopy(start)
    found, _ = train(resumed, tmp_path / "broken", config)
    assert found.done == expected.done == 1
    assert same(states(resumed.policy), states(models.policy))


class LikesSevens(nn.Module):
    """A reward that is easy to learn: the share of sevens in a text."""

    def forward(self, tokens, mask):
        return ((tokens == 7) * mask).sum(1) / mask.sum(1)


def test_ppo_raises_its_reward_and_a_larger_kl_weight_holds_it_back(models, make_llama, tmp_path):
    def learn(beta):
        start = make_llama(12, seed=2, spread=0.1)
        ours = Models(start, copy.deepcopy(start), copy.deepcopy(models.critic), LikesSevens())
        config = settings(
            rounds=10,
            answers=64,
            minibatch=32,
            learning_rate=2e-2,
            critic_learning_rate=1e-2,
            no_stop_penalty=0.0,
            kl=KLConfig(weight=beta),
        )
        return train(ours, tmp_path / str(beta), config)[0].history

    free, held = learn(0.0), learn(1.0)
    assert free[0]["kl"] == pytest.approx(0, abs=1e-4)  # the policy begins as its reference
    assert free[-1]["own_reward"] > free[0]["own_reward"] + 0.2
    assert free[-1]["kl"] > 5 * abs(held[-1]["kl"])
