"""What a round's answers teach: a few epochs of clipped steps on minibatches, alike for PPO, RLOO and GRPO.

Sums are divided by the tokens of the whole minibatch, so that a step is the same however its rows are cut to fit in memory
and however many processes share them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.errors import PreflineError
from tasks.training.batches import Placed
from tasks.training.end_to_end import cut_for
from tasks.training.estimators import kl_estimate
from tasks.training.logprobs import read_answers
from tasks.training.loop import order_of_epoch, seed_of
from tasks.training.losses import clipped_value_loss, ppo_policy_loss
from tasks.training.models import RewardModel
from tasks.training.onlooker import Stats
from tasks.training.processes import Processes
from tasks.training.rollouts import Models, Rollout, ValueHead
from tasks.training.sft import SFTRow, sft_loss
from tasks.training_config import PolicyConfig


@dataclass
class Learner:
    """The models that are trained, and how. demonstrations: what PPO-ptx mixes in, as rows of SFT."""

    models: Models
    config: PolicyConfig
    here: Processes
    demonstrations: list[SFTRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        rates = {"policy": self.config.learning_rate, "critic": self.config.ppo.critic_learning_rate}
        groups = [
            {"params": [p for p in model.parameters() if p.requires_grad], "peak": rates[name]}
            for name, model in self.models.trained.items()
        ]
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, lr=self.config.learning_rate, eps=1e-5, fused=True)

    def learning_rate_at(self, done: float) -> None:
        """Rates fall linearly to 0. done: share of the training that is behind, from 0 to 1."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * (1 - done)

    def learn(self, rollout: Rollout, seed: int) -> Stats:
        """All epochs over a round's answers; means of what happened, over steps.

        Raises PreflineError where a loss is not finite; the models are then as after the last good step.
        """
        self.models.trained.train()
        steps = []
        for epoch in range(self.config.epochs):
            order = order_of_epoch(len(rollout.trees), seed, epoch)
            for first in range(0, len(order), self.config.minibatch):
                lesson = self._lesson(seed_of(seed_of(seed, epoch), first))
                stats = self._step(rollout.rows(order[first : first + self.config.minibatch], self.here.device), lesson)
                if not all(math.isfinite(value) for value in stats.values()):
                    raise PreflineError(
                        f"{self.config.method}: {stats}: not finite.", "Lower policy.learning_rate. The last good checkpoint is kept."
                    )
                self.optimizer.step()
                steps.append(stats)
        means = {name: statistics.fmean(stats[name] for stats in steps) for name in steps[0]}
        return means | {"learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _lesson(self, seed: int) -> list[SFTRow]:
        """The demonstrations of one step: a minibatch of them, drawn by the seed."""
        if not self.demonstrations:
            return []
        drawn = torch.randint(len(self.demonstrations), (self.config.minibatch,), generator=torch.Generator().manual_seed(seed))
        return [self.demonstrations[i] for i in drawn.tolist()]

    def _step(self, batch: Rollout, lesson: list[SFTRow]) -> Stats:
        """Gradients of one minibatch, clipped for policy and critic apart, and figures of it."""
        self.optimizer.zero_grad(set_to_none=True)
        tokens = sum(len(tree.answers[0]) for tree in batch.trees)
        totals = dict.fromkeys(self._figures(), torch.zeros((), device=self.here.device))
        rows = sorted((Placed(i, tree) for i, tree in enumerate(batch.trees)), key=lambda row: -row.width)
        for part in cut_for(self.models.policy)(self.here.share(rows), self.config.tokens_at_once):
            placed = batch.rows([row.place for row in part], self.here.device)
            for loss_of in self._losses():
                with self.here.autocast():
                    loss, figures = loss_of(placed)
                (loss / tokens).backward()
                totals |= {name: totals[name] + figure.detach() / tokens for name, figure in figures.items()}
        weight = sum(row.weight for row in lesson)
        taught_rows = self.here.share(sorted(lesson, key=lambda row: -row.width))
        for share in cut_for(self.models.policy)(taught_rows, self.config.tokens_at_once):
            with self.here.autocast():
                taught = sft_loss(self.models.policy, share) / weight
            (self.config.pretraining_weight * taught).backward()
            totals["pretraining_loss"] = totals["pretraining_loss"] + taught.detach()
        self.here.sum_gradients(self.models.trained.parameters())
        summed = self.here.total(torch.stack(list(totals.values()))).tolist()
        norms = {f"{name}_gradient_norm": self.here.clip(model, self.config.clip_gradient) for name, model in self.models.trained.items()}
        return dict(zip(totals, summed, strict=True)) | norms

    def _figures(self) -> list[str]:
        """Names of the figures of a step: every process has them all, rows or not."""
        wanted = {
            "kl_loss": self.config.kl.place == "loss",
            "value_loss": self.models.critic is not None,
            "pretraining_loss": bool(self.demonstrations),
        }
        return ["policy_loss", "approx_kl", "clip_fraction", "entropy", *(name for name, there in wanted.items() if there)]

    def _losses(self) -> list[Callable[[Rollout], tuple[Tensor, dict[str, Tensor]]]]:
        """One for each model, so that only one's states are in memory at a time."""
        return [self._policy_loss, *([self._critic_loss] if isinstance(self.models.critic, RewardModel) else [])]

    def _policy_loss(self, part: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss of some rows, with that of a critic on it, and the figures of it, each a sum over their tokens."""
        config = self.config
        read = read_answers(self.models.policy, part.trees, config.temperature)
        kept = read.mask.bool()
        new, old = read.logprobs[kept], part.logprobs[kept]
        loss = ppo_policy_loss(new, old, part.advantages[kept], config.clip).sum()
        with torch.no_grad():
            figures = {
                "policy_loss": loss,
                "approx_kl": 0.5 * ((new - old) ** 2).sum(),
                "clip_fraction": (((new - old).exp() - 1).abs() > config.clip).sum().float(),
                "entropy": read.entropy.sum(),
            }
        if config.kl.place == "loss":
            figures["kl_loss"] = kl_estimate(new, part.reference[kept], config.kl.estimator).sum()
            loss = loss + part.beta * figures["kl_loss"]
        if isinstance(self.models.critic, ValueHead):
            figures["value_loss"] = self._value_loss(self.models.critic(read.hidden, read.mask), part)
            loss = loss + config.ppo.value_weight * figures["value_loss"]
        return loss, figures

    def _critic_loss(self, part: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of a critic of its own."""
        found = self._value_loss(self.models.values(part.trees), part)
        return self.config.ppo.value_weight * found, {"value_loss": found}

    def _value_loss(self, values: Tensor, part: Rollout) -> Tensor:
        """The loss of values, (rows, time): a sum over tokens, not weighted yet."""
        kept = part.mask.bool()
        return clipped_value_loss(values[kept], part.values[kept], part.returns[kept], self.config.ppo.value_clip).sum()
