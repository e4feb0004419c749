"""Proximal policy optimisation of a policy against a reward model, held to its reference by a KL penalty.

A round samples answers, scores them, spreads the score and the penalty over tokens, and takes a few epochs of clipped
steps. The independent judge looks on at the validation prompts and names the round to keep. Defaults and details
after Stiennon et al. 2020 and Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO".
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.errors import PreflineError
from tasks.training.checkpoint import read_checkpoint, write_checkpoint
from tasks.training.estimators import (
    AdaptiveKL,
    explained_variance,
    gae,
    kl_estimates,
    token_rewards,
    whiten,
)
from tasks.training.logprobs import answer_logprobs, rows_at_once
from tasks.training.loop import Report, order_of_epoch, seed_of
from tasks.training.losses import clipped_value_loss, ppo_policy_loss
from tasks.training.models import RewardModel, load_policy, score_texts
from tasks.training.onlooker import Look, Optimised, Stats
from tasks.training.sampling import Sampling, sample
from tasks.training.trees import Tree
from tasks.training.workshop import Workshop
from tasks.training_config import PolicyConfig


@dataclass
class Models:
    """policy is trained, reference stays the SFT model, critic is trained, reward_model scores."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    critic: RewardModel
    reward_model: RewardModel


@dataclass
class Rollout:
    """A round's answers and what is known of them. Tensors are (rows, time) unless said otherwise.

    scores: (rows,), from the reward model, penalty for a missing stop included. kl: (rows,), nats a sequence.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    logprobs: Tensor
    values: Tensor
    mask: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor
    kl: Tensor
    stats: Stats

    def rows(self, where: list[int]) -> Rollout:
        """The same for some of the rows, cut to the longest of their answers."""
        width = int(self.mask[where].sum(1).max())
        cut = {name: getattr(self, name)[where][:, :width] for name in ("logprobs", "values", "mask", "advantages", "returns")}
        prompts, answers = [self.prompts[i] for i in where], [self.answers[i] for i in where]
        return Rollout(prompts, answers, **cut, scores=self.scores[where], kl=self.kl[where], stats={})


def answer_values(critic: RewardModel, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """The critic's value before each token of the answers, (rows, longest answer); 0 on padding."""
    return critic.values([Tree(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)])


@torch.inference_mode()
def collect(
    models: Models, prompts: list[list[int]], config: PolicyConfig, sampling: Sampling, eos: int, beta: float, seed: int
) -> Rollout:
    """Sample an answer to each prompt and work out rewards, advantages and returns."""
    found = sample(models.policy, prompts, sampling, eos, sampling.noise(len(prompts), seed))
    answers = [answer.tokens for answer in found]
    logprobs = torch.zeros(len(found), max(len(a) for a in answers))
    for row, answer in zip(logprobs, found, strict=True):
        row[: len(answer.logprobs)] = torch.tensor(answer.logprobs)
    parts = [
        (*answer_logprobs(models.reference, p, a, config.temperature), answer_values(models.critic, p, a))
        for p, a in _parts(prompts, answers, config.tokens_at_once)
    ]
    reference, mask, values = (_stack([part[i] for part in parts], logprobs.shape[1]) for i in (0, 1, 3))
    own = torch.tensor(score_texts(models.reward_model, [p + a for p, a in zip(prompts, answers, strict=True)]))
    stopped = torch.tensor([float(answer.stopped) for answer in found])
    scores = own if config.score_clip is None else own.clamp(-config.score_clip, config.score_clip)
    scores = scores - config.no_stop_penalty * (1 - stopped)
    rewards = token_rewards(scores, logprobs, reference, mask, beta)
    if config.ppo.whiten_rewards:
        rewards = whiten(rewards, mask, keep_mean=True)
    advantages, returns = gae(rewards, values, mask, config.ppo.gamma, config.ppo.lam)
    k1, _, k3 = kl_estimates(logprobs, reference)
    kl = (k1 * mask).sum(1)
    stats = {
        "own_reward": float(own.mean()),
        "own_reward_sd": float(own.std()),
        "kl": float(kl.mean()),
        "kl_k3": float((k3 * mask).sum(1).mean()),
        "reward_with_penalty": float(rewards.sum(1).mean()),
        "length": float(mask.sum(1).mean()),
        "no_stop": float(1 - stopped.mean()),
        "beta": beta,
        "explained_variance": explained_variance(values, returns, mask),
    }
    return Rollout(prompts, answers, logprobs, values, mask, whiten(advantages, mask), returns, scores, kl, stats)


def _parts(prompts: list[list[int]], answers: list[list[int]], tokens_at_once: int) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Neighbouring rows in parts of at most tokens_at_once, in order."""
    size = rows_at_once(prompts, answers, tokens_at_once)
    return [(prompts[i : i + size], answers[i : i + size]) for i in range(0, len(prompts), size)]


def _stack(parts: list[Tensor], width: int) -> Tensor:
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def update(models: Models, optimizer: torch.optim.Optimizer, rollout: Rollout, config: PolicyConfig, seed: int) -> Stats:
    """A few epochs of minibatch steps on a round's answers; means of what happened, over steps.

    Raises PreflineError where a loss is not finite; the models are then as after the last good step.
    """
    models.policy.train()
    models.critic.train()
    seen: dict[str, list[float]] = {}
    for epoch in range(config.epochs):
        order = order_of_epoch(len(rollout.answers), seed, epoch)
        for first in range(0, len(order), config.minibatch):
            stats = _step(models, optimizer, rollout.rows(order[first : first + config.minibatch]), config)
            if not all(math.isfinite(value) for value in stats.values()):
                raise PreflineError(
                    f"{config.method}: {stats}: not finite.", "Lower policy.learning_rate. The last good checkpoint is kept."
                )
            for name, value in stats.items():
                seen.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in seen.items()}


def _step(models: Models, optimizer: torch.optim.Optimizer, batch: Rollout, config: PolicyConfig) -> Stats:
    """One step on a minibatch. Every sum is divided by the minibatch's tokens, however it is cut to fit in memory."""
    optimizer.zero_grad(set_to_none=True)
    tokens = float(batch.mask.sum())
    totals = torch.zeros(5)
    size = rows_at_once(batch.prompts, batch.answers, config.tokens_at_once)
    for first in range(0, len(batch.answers), size):
        part = batch.rows(list(range(first, min(first + size, len(batch.answers)))))
        logprobs, mask, entropy = answer_logprobs(models.policy, part.prompts, part.answers, config.temperature)
        values = answer_values(models.critic, part.prompts, part.answers)
        kept = mask.bool()
        new, old = logprobs[kept], part.logprobs[kept]
        policy_loss = ppo_policy_loss(new, old, part.advantages[kept], config.clip).sum() / tokens
        value_loss = clipped_value_loss(values[kept], part.values[kept], part.returns[kept], config.ppo.value_clip).sum() / tokens
        (policy_loss + config.ppo.value_weight * value_loss).backward()
        with torch.no_grad():
            ratio = (new - old).exp()
            totals += torch.stack(
                [
                    policy_loss,
                    value_loss,
                    0.5 * ((new - old) ** 2).sum() / tokens,
                    ((ratio - 1).abs() > config.clip).sum() / tokens,
                    entropy.sum() / tokens,
                ]
            )
    norms = [nn.utils.clip_grad_norm_(m.parameters(), config.clip_gradient) for m in (models.policy, models.critic)]
    stats = dict(zip(("policy_loss", "value_loss", "approx_kl", "clip_fraction", "entropy"), totals.tolist(), strict=True))
    stats |= {"policy_gradient_norm": float(norms[0]), "value_gradient_norm": float(norms[1])}
    if all(math.isfinite(value) for value in stats.values()):
        optimizer.step()
    return stats


@dataclass
class Progress:
    """All that a resumed run needs beside weights and optimiser: where it is, what it saw, which round was best."""

    done: int = 0
    history: list[Stats] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    best_round: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)


def optimise(shop: Workshop) -> Optimised:
    """Rounds of sampling and learning; the policy that is handed back is that of the round config.choose names."""
    models = Models(
        policy=load_policy(shop.sft),
        reference=shop.onlooker.reference,
        critic=RewardModel.load(shop.reward_model),
        reward_model=shop.onlooker.reward_model,
    )
    progress = run_rounds(
        models,
        shop.prompts,
        shop.onlooker.look,
        shop.config,
        sampling=shop.sampling,
        eos=shop.eos,
        seed=shop.seed,
        checkpoints=shop.checkpoints,
        report=shop.report,
    )
    return Optimised(models.policy, progress.done, progress.best_round, progress.looks, progress.history)


def run_rounds(
    models: Models,
    prompts: list[list[int]],
    look: Callable[[int, PreTrainedModel], Look],
    config: PolicyConfig,
    *,
    sampling: Sampling,
    eos: int,
    seed: int,
    checkpoints: Path,
    report: Report,
) -> Progress:
    """Train models.policy in place and leave it at the round that config.choose names.

    Goes on from the newest checkpoint and ends in the weights of an unbroken run: sampling and order depend on the
    seed and the round alone. Stops early where the KL passes config.stop_kl.
    """
    optimizer = torch.optim.Adam(
        [
            {"params": list(models.policy.parameters()), "peak": config.learning_rate},
            {"params": list(models.critic.parameters()), "peak": config.ppo.critic_learning_rate},
        ],
        lr=config.learning_rate,
        eps=1e-5,
    )
    controller = AdaptiveKL(config.kl.weight, config.kl.target, config.kl.horizon)
    progress = _resume(models, optimizer, controller, checkpoints)
    if not progress.looks:
        progress.looks.append(look(0, models.policy))
    for number in range(progress.done, config.rounds):
        if _out_of_bounds(progress, config):
            break
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (1 - number / config.rounds)
        seed_of_round = seed_of(seed, number)
        batch = [prompts[i] for i in _prompts_of_round(len(prompts), config.answers, number, seed)]
        rollout = collect(models, batch, config, sampling, eos, controller.beta, seed_of_round)
        stats = rollout.stats | update(models, optimizer, rollout, config, seed_of_round)
        controller.update(stats["kl"], config.answers)
        progress.history.append(stats)
        progress.done = number + 1
        last = progress.done == config.rounds or _out_of_bounds(progress, config)
        if last or progress.done % config.judge_every == 0:
            progress.looks.append(look(progress.done, models.policy))
            _keep_best(progress, models.policy, config)
            write_checkpoint(checkpoints, _state(models, optimizer, controller, progress))
            stats = stats | {"judge": statistics.fmean(progress.looks[-1].judge)}
        report(progress.done, config.rounds, **stats)
    models.policy.load_state_dict(progress.best)
    return progress


def _out_of_bounds(progress: Progress, config: PolicyConfig) -> bool:
    """Has the newest round gone further from the reference than it may? Asked of a resumed run too."""
    return config.stop_kl is not None and bool(progress.history) and progress.history[-1]["kl"] > config.stop_kl


def _prompts_of_round(count: int, wanted: int, number: int, seed: int) -> list[int]:
    """The next `wanted` prompts of an endless stream that goes through all of them in a new order each time."""
    places = range(number * wanted, (number + 1) * wanted)
    orders = {place // count: order_of_epoch(count, seed, place // count) for place in places}
    return [orders[place // count][place % count] for place in places]


def _keep_best(progress: Progress, policy: PreTrainedModel, config: PolicyConfig) -> None:
    """Remember this round's weights where it is the one to register so far."""
    judged = {look.round: statistics.fmean(look.judge) for look in progress.looks if look.round > 0}
    newest = progress.looks[-1].round
    if config.choose == "last" or judged[newest] >= max(judged.values()):
        progress.best_round = newest
        progress.best = copy.deepcopy(policy.state_dict())


def _state(models: Models, optimizer: torch.optim.Optimizer, controller: AdaptiveKL, progress: Progress) -> dict[str, Any]:
    return {
        "policy": models.policy.state_dict(),
        "critic": models.critic.state_dict(),
        "optimizer": optimizer.state_dict(),
        "beta": controller.beta,
        "done": progress.done,
        "history": progress.history,
        "looks": [vars(look) for look in progress.looks],
        "best_round": progress.best_round,
        "best": progress.best,
    }


def _resume(models: Models, optimizer: torch.optim.Optimizer, controller: AdaptiveKL, checkpoints: Path) -> Progress:
    saved = read_checkpoint(checkpoints)
    if saved is None:
        return Progress()
    models.policy.load_state_dict(saved["policy"])
    models.critic.load_state_dict(saved["critic"])
    optimizer.load_state_dict(saved["optimizer"])
    controller.beta = saved["beta"]
    looks = [Look(**look) for look in saved["looks"]]
    return Progress(saved["done"], saved["history"], looks, saved["best_round"], saved["best"])
