"""The stages that train what scores answers: the reward model, and the judge that looks on."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tasks.data.annotators import annotator_weights
from tasks.data.encoding import encode_answer, encode_prompt, load_tokenizer
from tasks.data.records import Split
from tasks.data.snapshot import Dataset, dataset
from tasks.data.tables import comparison_table
from tasks.errors import PreflineError
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.adapters import merged, with_adapters
from tasks.training.calibration import nll
from tasks.training.checkpoint import read_checkpoint, write_checkpoint
from tasks.training.ensemble import Ensemble, Scorer, combined
from tasks.training.held_out import check_accuracy, check_finite, held_out, judged, write
from tasks.training.launch import side_by_side
from tasks.training.loop import Seen, Validation, fit
from tasks.training.models import RewardModel, score_texts, with_checkpointing
from tasks.training.processes import Processes, trained_weights
from tasks.training.reward_model import Group, accuracy, at_most, group_loss, group_scores, pair_scores, reward_groups, trust_annotators
from tasks.training.stages import MODEL
from tasks.training.trees import reads_trees
from tasks.training_config import RewardConfig

WEIGHTS = "weights.json"
"""How much each annotator's comparisons counted, where that was asked for."""
JUDGE_SEED = 7_919
"""Added to the run's seed, so that judge and reward model differ in their head and their order of data."""
MEMBER_SEED = 104_729
"""Added for each further member of an ensemble, so that members differ in the same."""


@stage("reward_model", reads=("seed", "max_tokens", "reward_model", "adapter", "compute"), package="training")
@side_by_side
def train_reward_model(config: Settings, *, data: StageResult, sft: StageResult, run: StageRun) -> Metrics:
    """The reward that the policy climbs, from comparisons of the split "train".

    Writes model/, scores.json, scores.jsonl and calibration.png (and weights.json).
    """
    return _train_scorer("train", config, config.reward_model, config.seed, data, sft, run)


@stage("judge", reads=("seed", "max_tokens", "judge", "adapter", "compute"), package="training")
@side_by_side
def train_judge(config: Settings, *, data: StageResult, sft: StageResult, run: StageRun) -> Metrics:
    """The independent judge: another seed, and comparisons that the reward model never saw; writes what the reward model does."""
    return _train_scorer("judge", config, config.judge, config.seed + JUDGE_SEED, data, sft, run)


@dataclass(frozen=True)
class _Material:
    """What one scorer learns from and is measured by. start: folder of the policy that it begins as. demonstrations: as token ids."""

    start: Path
    tokenizer: PreTrainedTokenizerBase
    groups: list[Group]
    unseen: list[Group]
    demonstrations: list[list[int]]


def _train_scorer(
    split: Split, settings: Settings, config: RewardConfig, seed: int, data: StageResult, sft: StageResult, run: StageRun
) -> Metrics:
    held = dataset(data, run.root)
    tokenizer = load_tokenizer(sft.path / MODEL)
    comparisons = held.comparisons(split)
    groups, left_out = reward_groups(comparisons, tokenizer, settings.max_tokens, ties=config.ties == "rao_kupper")
    groups = at_most(groups, config.max_comparisons, seed)
    unseen, _ = reward_groups(held.comparisons("validation"), tokenizer, settings.max_tokens)
    if not groups or not unseen:
        raise PreflineError(
            f"{len(groups)} groups of comparisons to train on in split {split!r}, {len(unseen)} in validation: both need some.",
            "Add comparisons, or change data.split; ties, identical answers and texts over max_tokens can't be used.",
        )
    metrics: Metrics = {
        "comparisons": sum(len(group.pairs) for group in groups),
        "left_out": left_out,
        "ties": sum(comparison.tie for comparison in comparisons),
    }
    if config.weights == "annotator":
        weights = annotator_weights(comparison_table([comparison for group in groups for comparison in group.said]))
        trust_annotators(groups, weights)
        (run.out / WEIGHTS).write_text(json.dumps(weights, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        metrics |= {"least_weight": min(weights.values(), default=1.0), "most_weight": max(weights.values(), default=1.0)}
    material = _Material(sft.path / MODEL, tokenizer, groups, unseen, _texts(held, tokenizer, settings.max_tokens))
    here = Processes(settings.compute)
    seeds = [seed + number * MEMBER_SEED for number in range(config.members)]
    members = [_trained(number, own, material, settings, config, run, here) for number, own in enumerate(seeds)]
    return metrics | here.from_main(lambda: _finish(members, config, material, run))


def _texts(held: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[list[int]]:
    """Held-out demonstrations, prompt and answer, as token ids."""
    texts = [encode_prompt(tokenizer, d.prompt) + encode_answer(tokenizer, d.prompt, d.answer) for d in held.demonstrations("validation")]
    return [text for text in texts if len(text) <= max_tokens]


def _trained(
    number: int, seed: int, material: _Material, settings: Settings, config: RewardConfig, run: StageRun, here: Processes
) -> RewardModel:
    """One member, which may be the only one; a member that was finished before a kill is kept."""
    model = RewardModel.from_policy(material.start, seed)
    together = reads_trees(model.body.base_model, settings.max_tokens)
    for group in [*material.groups, *material.unseen]:
        group.together = together
    model = with_adapters(model, settings.adapter, seed)
    if config.ties == "rao_kupper":
        model.learn_ties(_first_eta(material.groups))
    checkpoints = run.checkpoints / f"member-{number}"
    finished = read_checkpoint(checkpoints / "finished")
    if finished:
        model.load_state_dict(finished["model"], strict=False)
        model.to(here.device)
        return merged(model).eval()

    def loss(scorer: nn.Module, part: list[Group]) -> Tensor:
        return group_loss(scorer, part, config.centring, config.margin, config.label_smoothing)

    def measure(scorer: nn.Module, share: float) -> Seen:
        chosen, rejected = pair_scores(group_scores(scorer, material.unseen, config.tokens_at_once), material.unseen)
        return {"accuracy": accuracy(chosen, rejected), "validation_loss": nll(chosen - rejected)}

    def report(done: int, total: int, **figures: float) -> None:
        run.report(number * total + done, config.members * total, **figures)

    metric = {"last": "", "accuracy": "accuracy", "loss": "validation_loss"}[config.choose]
    validation = Validation(measure, metric, higher_is_better=config.choose == "accuracy")
    with_checkpointing(model, settings.compute)
    fit(model, material.groups, loss, config, seed=seed, checkpoints=checkpoints, report=report, here=here, validation=validation)
    whole = here.plain(model)
    assert isinstance(whole, RewardModel)
    if here.main:
        write_checkpoint(checkpoints / "finished", {"model": trained_weights(whole)})
    return merged(whole).eval()


def _first_eta(groups: list[Group]) -> float:
    """Where eta begins: between answers of equal reward, as all are at first, P(tie) = tanh(eta / 2) is the share of ties."""
    share = statistics.fmean(said.tie for group in groups for said in group.said)
    return 2 * math.atanh(min(max(share, 0.001), 0.999))


def _finish(members: list[RewardModel], config: RewardConfig, material: _Material, run: StageRun) -> Metrics:
    """Centre, save and measure what was trained; raises PreflineError where it is no better than config.min_accuracy."""
    unseen = material.unseen
    raw = [group_scores(member, unseen, config.tokens_at_once) for member in members]
    for scores in raw:
        check_finite(scores, unseen, run.stage)
    scorer = members[0] if len(members) == 1 else Ensemble(members, config.combine, config.variance_weight)
    shifts = centre(scorer, members, material.demonstrations)
    centred = torch.tensor(raw, dtype=torch.float64) + torch.tensor(shifts, dtype=torch.float64).unsqueeze(1)
    deviations, accuracies = None, None
    if len(members) > 1:
        deviations = centred.std(0, correction=0).tolist()
        accuracies = [accuracy(*pair_scores(scores, unseen)) for scores in raw]
    rows = judged(unseen, combined(centred, config.combine, config.variance_weight).tolist(), deviations)
    found = held_out(rows, accuracies)
    members[0].temperature = found.temperature
    scorer.save(material.tokenizer, run.out / MODEL)
    write(found, rows, run.out)
    check_accuracy(found, config.min_accuracy, run.stage, run.failed)
    return {
        "accuracy": found.accuracy[0],
        "accuracy_low": found.accuracy[1],
        "longer": found.longer,
        "shorter": found.shorter,
        "held_out_comparisons": found.comparisons,
        "margin": found.margin,
        "calibration_error": found.calibration_error,
        "temperature": found.temperature,
        **({} if members[0].eta is None else {"eta": members[0].eta.item()}),
        **({} if found.uncertainty is None else {"uncertainty": found.uncertainty}),
    }


def centre(scorer: Scorer, members: list[RewardModel], texts: list[list[int]]) -> list[float]:
    """Set biases so that texts (demonstrations) have mean reward 0 (Stiennon et al. 2020); returns what was added, by member.

    Members first, each by itself: a reward has no zero of its own, and the least of several would mean nothing. Then
    what they are combined to.
    """
    before = [member.bias for member in members]
    if texts:
        for member in members:
            member.bias -= statistics.fmean(score_texts(member, texts))
        rest = statistics.fmean(score_texts(scorer, texts)) if len(members) > 1 else 0.0
        for member in members:
            member.bias -= rest
    return [member.bias - was for member, was in zip(members, before, strict=True)]
