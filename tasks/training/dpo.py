"""Direct preference optimisation: the policy learns from the comparisons themselves, without a reward model.

beta (log pi - log pi_ref) of an answer is its implicit reward, and the loss is the one that a reward model has (Rafailov
et al. 2023). Log-probabilities are those of temperature 1: others wrote the answers, none was sampled at policy.temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.errors import PreflineError
from tasks.training.adapters import with_adapters
from tasks.training.batches import in_batches
from tasks.training.end_to_end import cut_for
from tasks.training.logprobs import tree_logprobs
from tasks.training.losses import dpo_loss, ipo_loss
from tasks.training.models import load_policy, with_checkpointing
from tasks.training.offline import fit_policy, once
from tasks.training.onlooker import Optimised, Stats
from tasks.training.processes import Processes
from tasks.training.reward_model import Group, accuracy, at_most, reward_groups
from tasks.training.trees import reads_trees
from tasks.training.workshop import Workshop
from tasks.training_config import DPOConfig


@dataclass
class Row:
    """A ranking, or a pair. reference: what the SFT model makes of each of its answers, as `whole_logprobs` says it.

    A ranking weighs 1, as it does for the reward model, and each of its pairs 1 / C(K, 2) (Ouyang et al. 2022).
    """

    group: Group
    reference: list[float] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.group.width

    @property
    def weight(self) -> float:
        return 1.0


@dataclass(frozen=True)
class Pairs:
    """All pairs of some rows, (pairs,): log-probabilities in nats, and what a pair weighs in its row."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    weight: Tensor


def optimise(shop: Workshop) -> Optimised:
    """The SFT model trained on comparisons of split "train"; those of "validation" show at each look what it makes of new ones."""
    config = shop.config.dpo
    groups, left_out = reward_groups(shop.held.comparisons("train"), shop.tokenizer, shop.max_tokens)
    groups = at_most(groups, config.max_comparisons, shop.seed)
    if not groups:
        raise PreflineError(
            f"No comparison of split 'train' can be learnt from: {left_out} were left out.",
            "Add comparisons, or change data.split; ties, identical answers and texts over max_tokens can't be used.",
        )
    held_out, _ = reward_groups(shop.held.comparisons("validation"), shop.tokenizer, shop.max_tokens)
    policy = load_policy(shop.sft)
    together = reads_trees(policy.base_model, shop.max_tokens)
    for group in [*groups, *held_out]:
        group.together = together
    policy = with_checkpointing(with_adapters(policy, shop.adapter, shop.seed), shop.compute).to(shop.here.device)
    rows, held_out_rows = [Row(group) for group in groups], [Row(group) for group in held_out]
    set_reference(policy, [*rows, *held_out_rows], config, shop.here, shop.checkpoints)
    found = fit_policy(
        shop,
        policy,
        rows,
        lambda model, part: preference_loss(model, part, config),
        config,
        lambda model: held_out_figures(model, held_out_rows, config),
    )
    found.figures |= {"comparisons": sum(len(group.pairs) for group in groups), "left_out": left_out}
    return found


@torch.inference_mode()
def set_reference(policy: PreTrainedModel, rows: list[Row], config: DPOConfig, here: Processes, checkpoints: Path) -> None:
    """Give each row what the policy makes of its answers before it learns: it is the reference then, and no copy is needed.

    Worked out once and kept beside the checkpoints, in the precision of training, so that implicit rewards begin at 0.
    """

    def read(part: list[Row]) -> list[list[float]]:
        with here.autocast():
            logprobs = whole_logprobs(policy, part, config.length_normalised)
        return [values.tolist() for values in logprobs.split([len(row.group.answers) for row in part])]

    def make() -> dict[str, Tensor]:
        policy.eval()
        own = in_batches(here.share(rows), config.tokens_at_once, read, cut_for(policy))
        return {"logprobs": torch.tensor([value for values in here.join(own) for value in values])}

    given = iter(once(checkpoints / "reference", here, make)["logprobs"].tolist())
    for row in rows:
        row.reference = [next(given) for _ in row.group.answers]


def whole_logprobs(model: nn.Module, rows: list[Row], length_normalised: bool) -> Tensor:
    """log pi of each answer of the rows, in order, (answers,), in nats: the sum over its tokens, or their mean."""
    assert isinstance(model, PreTrainedModel)
    logprobs, mask = tree_logprobs(model, [tree for row in rows for tree in row.group.trees], temperature=1.0)
    return logprobs.sum(1) / mask.sum(1) if length_normalised else logprobs.sum(1)


def pairs_of(model: nn.Module, rows: list[Row], config: DPOConfig) -> Pairs:
    """What the model and its reference make of both sides of every pair."""
    policy = whole_logprobs(model, rows, config.length_normalised)
    reference = torch.tensor([value for row in rows for value in row.reference], device=policy.device)
    better, worse, weight = [], [], []
    first = 0
    for row in rows:
        better += [first + i for i, _ in row.group.pairs]
        worse += [first + j for _, j in row.group.pairs]
        weight += [1 / len(row.group.pairs)] * len(row.group.pairs)
        first += len(row.group.answers)
    return Pairs(policy[better], policy[worse], reference[better], reference[worse], torch.tensor(weight, device=policy.device))


def pair_losses(pairs: Pairs, config: DPOConfig) -> Tensor:
    """The loss that config.loss names, one value a pair."""
    given = (pairs.policy_chosen, pairs.policy_rejected, pairs.reference_chosen, pairs.reference_rejected, config.beta)
    return ipo_loss(*given) if config.loss == "ipo" else dpo_loss(*given, config.label_smoothing)


def preference_loss(model: nn.Module, rows: list[Row], config: DPOConfig) -> Tensor:
    """Sum over rows of the mean loss of a row's pairs."""
    pairs = pairs_of(model, rows, config)
    return (pair_losses(pairs, config) * pairs.weight).sum()


@torch.inference_mode()
def held_out_figures(policy: PreTrainedModel, rows: list[Row], config: DPOConfig) -> Stats:
    """Implicit rewards, their margin, how often the chosen answer has the higher one, and the loss: means over all pairs."""
    policy.eval()
    parts = [pairs_of(policy, part, config) for part in cut_for(policy)(rows, config.tokens_at_once)]
    if not parts:
        return {}
    chosen = torch.cat([config.beta * (pairs.policy_chosen - pairs.reference_chosen) for pairs in parts])
    rejected = torch.cat([config.beta * (pairs.policy_rejected - pairs.reference_rejected) for pairs in parts])
    return {
        "held_out_loss": float(torch.cat([pair_losses(pairs, config) for pairs in parts]).mean()),
        "reward_chosen": float(chosen.mean()),
        "reward_rejected": float(rejected.mean()),
        "margin": float((chosen - rejected).mean()),
        "accuracy": accuracy(chosen.cpu().numpy(), rejected.cpu().numpy()),
    }
