"""PPO, RLOO and GRPO: rounds in which the policy answers, is scored by the reward model, and learns from it.

The KL to the reference holds it back, and the independent judge looks on at the validation prompts and names the round to
keep. Defaults and details after Stiennon et al. 2020 and Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO".
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tasks.errors import ConfigError, PreflineError
from tasks.training.adapters import merged, reference_of, with_adapters
from tasks.training.checkpoint import read_checkpoint, write_checkpoint
from tasks.training.estimators import AdaptiveKL
from tasks.training.loop import Report, order_of_epoch, seed_of
from tasks.training.models import RewardModel, freeze_lower, load_policy, with_checkpointing
from tasks.training.onlooker import Look, Optimised, Stats, best_of
from tasks.training.rollouts import Models, ValueHead, ask, weigh
from tasks.training.sampling import Sampling
from tasks.training.sampling_server import sampler_for
from tasks.training.sft import SFTRow, sft_rows
from tasks.training.stages import LEARNT
from tasks.training.stops import refuse_broken, why_ended
from tasks.training.updates import Learner
from tasks.training.workshop import Workshop
from tasks.training_config import PolicyConfig


@dataclass
class Progress:
    """All that a resumed run needs beside weights, optimiser and KL weight: where it is, what it saw, which round was best."""

    done: int = 0
    history: list[Stats] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    best_round: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    def why_ended(self, config: PolicyConfig) -> str:
        return why_ended(self.done, self.history, self.looks, config)


def optimise(shop: Workshop) -> Optimised:
    """Rounds of sampling and learning; the policy that is handed back is that of the round config.choose names."""
    models = models_of(shop)
    learner = Learner(models, shop.config, shop.here, _demonstrations(shop))
    progress = run_rounds(
        learner,
        shop.prompts,
        shop.onlooker.look,
        sampling=shop.sampling,
        eos=shop.eos,
        seed=shop.seed,
        checkpoints=shop.checkpoints,
        report=shop.report,
    )
    ended = progress.why_ended(shop.config) if progress.done < shop.config.rounds else ""
    return Optimised(merged(models.policy), progress.done, progress.best_round, progress.looks, progress.history, ended=ended)


def models_of(shop: Workshop) -> Models:
    """Policy, reference and critic from their folders; the reward model is the onlooker's, and the reference becomes it."""
    if shop.here.sharded:
        raise ConfigError(
            f"compute.sharding: fsdp, but policy.method: {shop.config.method} samples, for which a process needs the whole policy.",
            "Set compute.sharding to none, or policy.method to dpo.",
        )
    policy = with_adapters(load_policy(shop.sft), shop.adapter, shop.seed).to(shop.here.device)
    freeze_lower(policy, shop.config.frozen_layers)
    shop.onlooker.reference = reference_of(policy)
    critic: RewardModel | ValueHead | None = None
    if shop.config.method == "ppo" and shop.config.ppo.critic == "shared":
        critic = ValueHead(policy.get_output_embeddings().in_features)
    elif shop.config.method == "ppo":
        critic = with_adapters(RewardModel.load(shop.reward_model), shop.adapter, shop.seed)
    sampler = sampler_for(shop.config.server, shop.checkpoints / "served", shop.here)
    models = Models(policy, shop.onlooker.reference, shop.onlooker.reward_model, critic, sampler)
    for trained in models.trained.values():
        with_checkpointing(trained, shop.compute).to(shop.here.device)
    return models


def _demonstrations(shop: Workshop) -> list[SFTRow]:
    """What PPO-ptx mixes in, if anything."""
    if shop.config.pretraining_weight == 0:
        return []
    rows, left_out = sft_rows(shop.held.demonstrations(*LEARNT), shop.tokenizer, shop.max_tokens)
    if not rows:
        raise PreflineError(
            f"policy.pretraining_weight mixes in demonstrations, and there are none: {left_out} were too long.",
            "Add demonstrations, raise max_tokens, or set policy.pretraining_weight to 0.",
        )
    return rows


def run_rounds(
    learner: Learner,
    prompts: list[list[int]],
    look: Callable[[int, PreTrainedModel], Look],
    *,
    sampling: Sampling,
    eos: int,
    seed: int,
    checkpoints: Path,
    report: Report,
) -> Progress:
    """Train the learner's policy in place and leave it at the round that config.choose names.

    Goes on from the newest checkpoint and ends in the weights of an unbroken run: prompts, sampling and order depend on
    the seed and the round alone. Raises PreflineError where rewards or losses are not finite, or the KL runs away.
    """
    models, config, here = learner.models, learner.config, learner.here
    controller = AdaptiveKL(config.kl.weight, config.kl.target, config.kl.horizon)
    progress = _resume(learner, controller, checkpoints)
    last_saved = time.monotonic()

    def look_on() -> None:
        progress.looks.append(here.from_main(lambda: look(progress.done, models.policy)))
        if progress.done and best_of(progress.looks, config.choose) == progress.done:
            progress.best_round, progress.best = progress.done, here.weights(models.policy)

    if not progress.looks:
        look_on()
    while progress.done < config.rounds and not progress.why_ended(config):
        learner.learning_rate_at(progress.done / config.rounds)
        seed_of_round = seed_of(seed, progress.done)
        asked = [prompts[i] for i in prompts_of_round(len(prompts), config, progress.done, seed)]
        own = here.share(range(len(asked)))
        noise = sampling.noise(len(asked), seed_of_round)
        with here.autocast():
            told = ask(models, [asked[i] for i in own], config, sampling, eos, noise[own])
        episodes = here.join(told)
        refuse_broken(episodes, progress.done + 1)
        rollout = weigh(episodes, config, controller.beta)
        stats = rollout.stats | learner.learn(rollout, seed_of_round)
        controller.update(stats["kl"], config.answers)
        progress.history.append(stats)
        progress.done += 1
        due = here.agreed(time.monotonic() - last_saved >= config.checkpoint_seconds)
        if progress.done == config.rounds or progress.why_ended(config) or progress.done % config.judge_every == 0:
            look_on()
            due = True
            stats = stats | {"judge": statistics.fmean(progress.looks[-1].judge)}
        if due:
            _keep(learner, controller, progress, checkpoints)
            last_saved = time.monotonic()
        report(progress.done, config.rounds, **stats)
    here.load(models.policy, progress.best)
    return progress


def prompts_of_round(count: int, config: PolicyConfig, number: int, seed: int) -> list[int]:
    """The next prompts of an endless stream that goes through all of them in a new order each time.

    RLOO and GRPO take fewer of them, each as often as there are answers in a group.
    """
    group = 1 if config.method == "ppo" else config.group
    wanted = config.answers // group
    places = range(number * wanted, (number + 1) * wanted)
    orders = {place // count: order_of_epoch(count, seed, place // count) for place in places}
    return [orders[place // count][place % count] for place in places for _ in range(group)]


def _keep(learner: Learner, controller: AdaptiveKL, progress: Progress, checkpoints: Path) -> None:
    """Write the checkpoint: all that changes on the way. The rest is loaded as it was at the start."""
    kept: dict[str, Any] = learner.here.state(learner.models.trained, learner.optimizer)
    kept |= {"beta": controller.beta, "progress": vars(progress) | {"looks": [vars(look) for look in progress.looks]}}
    if learner.here.main:
        write_checkpoint(checkpoints, kept)


def _resume(learner: Learner, controller: AdaptiveKL, checkpoints: Path) -> Progress:
    saved = read_checkpoint(checkpoints)
    if saved is None:
        return Progress()
    learner.here.restore(learner.models.trained, learner.optimizer, saved)
    controller.beta = saved["beta"]
    return Progress(**saved["progress"] | {"looks": [Look(**look) for look in saved["progress"]["looks"]]})
