"""PPO, RLOO and GRPO where everything can be summed: one prompt, three tokens, two steps, nine answers.

The policy that maximises E[r] - beta KL is pi* = pi_ref exp(r / beta) / Z; expected gradients are sums over all answers, or
over all pairs of answers, weighted by their probability.
"""

import copy
import itertools
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from tasks.training.estimators import kl_estimate
from tasks.training.logprobs import read_answers
from tasks.training.online import run_rounds
from tasks.training.onlooker import Look
from tasks.training.processes import Processes
from tasks.training.rollouts import Episode, Models, weigh
from tasks.training.sampling import Sampling
from tasks.training.trees import Tree
from tasks.training.updates import Learner
from tasks.training_config import ComputeConfig, GRPOConfig, KLConfig, PolicyConfig, PPOConfig

ALONE = Processes(ComputeConfig(device="cpu"))
NEVER = 99
"""An EOS that no model says, so that all answers have two tokens."""
PROMPT = [2, 0, 1]
ANSWERS = [list(answer) for answer in itertools.product(range(3), repeat=2)]
REWARDS = torch.tensor([0.3, -1.0, 1.0, 0.1, 0.7, -0.4, 0.9, -0.6, 0.2])
BETA = 0.5


def likes(trees):
    """The reward model: what REWARDS says of an answer."""
    return torch.stack([REWARDS[ANSWERS.index(tree.answers[0])] for tree in trees])


def logprobs_of(model, temperature=1.0):
    """Of each token of all nine answers, (9, 2)."""
    return read_answers(model, [Tree(PROMPT, [answer]) for answer in ANSWERS], temperature).logprobs


def chances_of(model):
    """The probability of each of the nine answers."""
    with torch.no_grad():
        return logprobs_of(model).sum(1).exp()


@pytest.fixture
def pair(make_llama):
    """A policy and a reference that differ."""
    return make_llama(3, seed=1, spread=0.5), make_llama(3, seed=2, spread=0.5)


# The KL ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_k1_and_k3_have_the_kl_of_whole_answers_as_their_mean_and_k2_has_not(pair):
    policy, reference = (logprobs_of(model) for model in pair)
    chances = policy.sum(1).exp()
    exact = (chances * (policy - reference).sum(1)).sum().item()
    assert chances.sum().item() == pytest.approx(1, abs=1e-5)
    means = {kind: (chances * kl_estimate(policy, reference, kind).sum(1)).sum().item() for kind in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(exact, abs=1e-5)
    assert means["k3"] == pytest.approx(exact, abs=1e-5)
    assert abs(means["k2"] - exact) > 0.05


def test_k2_as_a_loss_has_the_gradient_of_each_tokens_kl_but_not_of_the_answers(pair):
    """It takes the first token as given: that another one leads to dearer second tokens is no part of it."""
    policy, reference = pair
    new, ref = logprobs_of(policy), logprobs_of(reference).detach()
    chances = new.sum(1).exp()

    def gradient(loss):
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True)])

    found = gradient((chances.detach() * kl_estimate(new, ref, "k2").sum(1)).sum())
    first = new[:, 0].detach().exp()  # of each row's first token
    by_token = (chances * (new - ref)[:, 0]).sum() + (first * (new[:, 1].exp() * (new - ref)[:, 1])).sum()
    torch.testing.assert_close(found, gradient(by_token), rtol=1e-3, atol=1e-5)
    whole = gradient((chances * (new - ref).sum(1)).sum())
    assert (found - whole).norm() > 0.1 * whole.norm()


# The gradient ------------------------------------------------------------------------------------------------------------


def objective(policy, reference, temperature, beta):
    """E[r] - beta KL, exactly, and with a gradient."""
    new, ref = logprobs_of(policy, temperature), logprobs_of(reference, temperature).detach()
    return (new.sum(1).exp() * (REWARDS - beta * (new - ref).sum(1))).sum()


def expected_step(models, config, rows, weights, temperature):
    """The gradient of the method's own step, in expectation over the rows, and its rollout.

    rows: places in ANSWERS. weights: how probable each row is. What it is divided by, the number of tokens, is put back.
    """
    with torch.no_grad(), models.reference() as reference:
        new, ref = logprobs_of(models.policy, temperature), logprobs_of(reference, temperature)
        values = models.critic.values([Tree(PROMPT, [answer]) for answer in ANSWERS]) if models.critic else torch.zeros(9, 0)
    episodes = [
        Episode(Tree(PROMPT, [ANSWERS[i]]), True, REWARDS[i].item(), 0.0, new[i].tolist(), ref[i].tolist(), values[i].tolist())
        for i in rows
    ]
    rollout = weigh(episodes, config, config.kl.weight)
    unweighted = rollout.advantages.clone()
    rollout.advantages = rollout.advantages * weights.unsqueeze(1) * len(rows) * 2
    ours = copy.deepcopy(models.policy)
    learner = Learner(Models(ours, models.reference, likes, copy.deepcopy(models.critic)), config, ALONE)
    learner.optimizer = torch.optim.SGD(ours.parameters(), lr=1.0)
    learner.learn(rollout, seed=0)
    moved = [before - after for before, after in zip(models.policy.parameters(), ours.parameters(), strict=True)]
    return [-step for step in moved], rollout, unweighted


def one_step(method, rows, **changes):
    """All rows in one minibatch and one epoch, nothing clipped."""
    sizes = {"answers": rows, "minibatch": rows, "group": 2, "epochs": 1}
    return PolicyConfig(method=method, **sizes, clip_gradient=1e9, no_stop_penalty=0.0, **changes)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize(("method", "share"), [("rloo", 1.0), ("grpo", 0.5)])
def test_rloo_and_grpo_follow_the_exact_gradient_over_all_pairs_of_answers(pair, method, share, beta, temperature):
    """GRPO's mean holds the answer itself, which shortens the gradient to (n - 1) / n: half of it in groups of two."""
    policy, reference = pair
    rows = [place for both in itertools.product(range(9), repeat=2) for place in both]
    with torch.no_grad():
        chances = logprobs_of(policy, temperature).sum(1).exp()
    weights = (chances.unsqueeze(1) * chances).flatten().repeat_interleave(2) / 2
    config = one_step(method, 162, grpo=GRPOConfig(scale=False), temperature=temperature, kl=KLConfig(weight=beta))
    found, _, _ = expected_step(Models(policy, partial(nullcontext, reference), likes), config, rows, weights, temperature)
    expected = torch.autograd.grad(objective(policy, reference, temperature, beta), list(policy.parameters()))
    assert max(gradient.abs().max().item() for gradient in expected) > 0.1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, share * theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, BETA])
def test_ppo_follows_the_exact_gradient_whatever_its_critic_says(pair, make_llama, models, beta, temperature):
    """With lambda 1 a critic is a baseline only. Whitening shifts all advantages, which changes nothing, and scales them."""
    policy, reference = pair
    with torch.no_grad():
        chances = logprobs_of(policy, temperature).sum(1).exp()
    config = one_step("ppo", 9, ppo=PPOConfig(lam=1.0), temperature=temperature, kl=KLConfig(weight=beta))
    actors = Models(policy, partial(nullcontext, reference), likes, models.critic)
    found, rollout, white = expected_step(actors, config, range(9), chances, temperature)
    plain = rollout.returns - rollout.values
    assert plain.std() > 0.1
    scale = (white[0, 0] - white[1, 1]) / (plain[0, 0] - plain[1, 1])
    expected = torch.autograd.grad(objective(policy, reference, temperature, beta), list(policy.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, scale * theirs, rtol=2e-3, atol=2e-5)


# The optimum -------------------------------------------------------------------------------------------------------------


def optimum(reference, beta):
    """pi_ref exp(r / beta) / Z."""
    unnormalised = reference * (REWARDS / beta).exp()
    return unnormalised / unnormalised.sum()


def optimum_by_token(reference, beta):
    """Where the KL as a loss leads: the second token as in pi*, and a first one that does not count what the second costs.

    pi(a) is then pi_ref(a) exp(E[r | a] / beta) / Z.
    """
    second = optimum(reference, beta).view(3, 3)
    second = second / second.sum(1, keepdim=True)
    first = reference.view(3, 3).sum(1) * ((second * REWARDS.view(3, 3)).sum(1) / beta).exp()
    return (first.unsqueeze(1) / first.sum() * second).flatten()


def distance(first, second):
    """Total variation: the largest difference in the probability of anything."""
    return 0.5 * (first - second).abs().sum().item()


GROUP = 8
UNSCALED = {"method": "grpo", "grpo": GRPOConfig(scale=False)}
LOSS = KLConfig(weight=BETA, place="loss", estimator="k2")
LEARNT = {
    "PPO": ({"ppo": PPOConfig(lam=1.0, critic_learning_rate=1e-2)}, lambda reference: optimum(reference, BETA), 0.03),
    "RLOO": ({"method": "rloo"}, lambda reference: optimum(reference, BETA), 0.03),
    "GRPO": (UNSCALED, lambda reference: optimum(reference, BETA), 0.03),
    # Rewards count (n - 1) / n of what they are, and the loss all of it. Its noise does not vanish at the optimum, as that of
    # r - beta log(pi / pi_ref) does, which is then the same for all answers
    "GRPO, KL as a loss": (UNSCALED | {"kl": LOSS}, lambda reference: optimum_by_token(reference, BETA * GROUP / (GROUP - 1)), 0.08),
}


@pytest.mark.parametrize(("changes", "target", "bound"), LEARNT.values(), ids=LEARNT)
def test_training_ends_at_the_optimum_that_is_known_in_closed_form(make_llama, models, tmp_path, changes, target, bound):
    start = make_llama(3, seed=2, spread=0.1)
    actors = Models(start, partial(nullcontext, copy.deepcopy(start)), likes, None if "method" in changes else models.critic)
    reference = chances_of(start)
    wanted = target(reference)
    config = PolicyConfig(
        **{"kl": KLConfig(weight=BETA)} | changes,
        rounds=30,
        answers=128,
        minibatch=64,
        group=GROUP,
        epochs=2,
        learning_rate=2e-2,
        no_stop_penalty=0.0,
        judge_every=30,
        choose="last",
    )
    run_rounds(
        Learner(actors, config, ALONE),
        [PROMPT],
        lambda number, _: Look(number, kl=0.0, length=2.0, stopped=0.0, own=[0.0], judge=[0.0], gold=None),
        sampling=Sampling(2),
        eos=NEVER,
        seed=0,
        checkpoints=tmp_path,
        report=lambda *_, **__: None,
    )
    assert distance(reference, wanted) > 0.4
    assert distance(chances_of(actors.policy), wanted) < bound
