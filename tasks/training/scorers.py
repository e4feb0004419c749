"""The stages that train what scores answers: the reward model, and the judge that looks on."""

from __future__ import annotations

import json
import statistics

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tasks.data.annotators import annotator_weights
from tasks.data.encoding import load_tokenizer
from tasks.data.records import Split
from tasks.data.snapshot import Dataset, dataset
from tasks.data.tables import comparison_table
from tasks.errors import PreflineError
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.loop import fit, order_of_epoch
from tasks.training.models import RewardModel, score_texts
from tasks.training.reward_model import Group, accuracy, group_loss, pair_scores, reward_groups
from tasks.training.sft import sft_rows
from tasks.training.stages import MODEL
from tasks.training.trees import reads_trees
from tasks.training_config import RewardConfig

WEIGHTS = "weights.json"
"""How much each annotator's comparisons counted, where that was asked for."""
JUDGE_SEED = 7_919
"""Added to the run's seed, so that judge and reward model differ in their head and their order of data."""


@stage("reward_model", reads=("seed", "max_tokens", "reward_model", "adapter", "compute"), package="training")
def train_reward_model(config: Settings, *, data: StageResult, sft: StageResult, run: StageRun) -> Metrics:
    """The reward that the policy climbs, from comparisons of the split "train"; writes model/ (and weights.json)."""
    return _train_scorer("train", config.reward_model, config.max_tokens, config.seed, data, sft, run)


@stage("judge", reads=("seed", "max_tokens", "judge", "adapter", "compute"), package="training")
def train_judge(config: Settings, *, data: StageResult, sft: StageResult, run: StageRun) -> Metrics:
    """The independent judge: another seed, and comparisons that the reward model never saw; writes model/ (and weights.json)."""
    return _train_scorer("judge", config.judge, config.max_tokens, config.seed + JUDGE_SEED, data, sft, run)


def _train_scorer(
    split: Split, config: RewardConfig, max_tokens: int, seed: int, data: StageResult, sft: StageResult, run: StageRun
) -> Metrics:
    held = dataset(data, run.root)
    tokenizer = load_tokenizer(sft.path / MODEL)
    comparisons = held.comparisons(split)
    weights = annotator_weights(comparison_table(comparisons)) if config.weights == "annotator" else {}
    if weights:
        (run.out / WEIGHTS).write_text(json.dumps(weights, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    groups, left_out = reward_groups(comparisons, tokenizer, max_tokens, weights)
    groups = _at_most(groups, config.max_comparisons, seed)
    held_out, _ = reward_groups(held.comparisons("validation"), tokenizer, max_tokens)
    if not groups or not held_out:
        raise PreflineError(
            f"{len(groups)} groups of comparisons to train on in split {split!r}, {len(held_out)} in validation: both need some.",
            "Add comparisons, or change data.split; ties, identical answers and texts over max_tokens can't be used.",
        )
    model = RewardModel.from_policy(sft.path / MODEL, seed)
    together = reads_trees(model.body.base_model)
    for group in groups:
        group.together = together

    def loss(scorer: nn.Module, part: list[Group]) -> Tensor:
        return group_loss(scorer, part, config.centring)

    fit(model, groups, loss, config, seed=seed, checkpoints=run.checkpoints, report=run.report)
    model.eval()
    _centre(model, held, tokenizer, max_tokens)
    model.save(tokenizer, run.out / MODEL)
    chosen, rejected = pair_scores(score_texts(model, [text for group in held_out for text in group.texts]), held_out)
    return {
        "comparisons": sum(len(group.pairs) for group in groups),
        "left_out": left_out,
        "accuracy": accuracy(chosen, rejected),
        "held_out_comparisons": len(chosen),
        "margin": float((chosen - rejected).mean()),
        **({"least_weight": min(weights.values()), "most_weight": max(weights.values())} if weights else {}),
    }


def _at_most(groups: list[Group], comparisons: int | None, seed: int) -> list[Group]:
    """Whole groups with no more than so many comparisons, drawn by the seed."""
    if comparisons is None:
        return groups
    kept, count = [], 0
    for place in order_of_epoch(len(groups), seed, 0):
        if count + len(groups[place].pairs) <= comparisons:
            kept.append(groups[place])
            count += len(groups[place].pairs)
    return kept


def _centre(model: RewardModel, held: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Set the bias so that demonstrations have mean reward 0 (Stiennon et al. 2020)."""
    rows, _ = sft_rows(held.demonstrations("validation"), tokenizer, max_tokens)
    if rows:
        model.bias -= statistics.fmean(score_texts(model, [row.prompt + row.answer for row in rows]))
