"""The training stages: base model, SFT, reward model, judge, PPO. Each reads files, trains, and writes a model folder."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.config import RewardConfig
from tasks.data.annotators import annotator_weights
from tasks.data.encoding import decode, encode_prompt, load_tokenizer
from tasks.data.records import Split, write_jsonl
from tasks.data.snapshot import Dataset, Prompt, dataset
from tasks.data.tables import comparison_table
from tasks.errors import ConfigError, PreflineError
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.estimators import kl_per_sequence
from tasks.training.loop import fit, order_of_epoch
from tasks.training.models import RewardModel, build_base, context_of, describe, load_policy, save, score_texts
from tasks.training.ppo import Look, Models, Progress, optimise
from tasks.training.reward_model import Group, accuracy, group_loss, pair_scores, reward_groups
from tasks.training.rollouts import Sampling, given_logprobs, sample
from tasks.training.sft import perplexity, sft_loss, sft_rows

MODEL = "model"
WEIGHTS = "weights.json"
"""How much each annotator's comparisons counted, where that was asked for."""
LEARNT: tuple[Split, ...] = ("train", "judge")
"""Splits whose prompts and demonstrations train the policy. Comparisons of "judge" train the judge alone."""
JUDGE_SEED = 7_919
"""Added to the run's seed, so that judge and reward model differ in their head and their order of data."""
SAMPLES_KEPT = 8


@stage("base", reads=("seed", "model", "tiny", "max_tokens"), package="training", files=("model",))
def base_model(config: Settings, *, data: StageResult, run: StageRun) -> Metrics:
    """The model to start from, as safetensors with its tokenizer; writes model/."""
    demonstrations = dataset(data, run.root).demonstrations(*LEARNT)
    texts = (m["content"] for d in demonstrations for m in [*d.prompt, *d.answer])
    model, tokenizer = build_base(config.model, config.tiny, texts, config.seed)
    if config.max_tokens > context_of(model):
        raise ConfigError(
            f"max_tokens: {config.max_tokens} is more than {config.model} can read ({context_of(model)} tokens).",
            f"Set max_tokens to at most {context_of(model)}.",
        )
    save(model, tokenizer, run.out / MODEL)
    facts = describe(model)
    return {name: float(facts[name]) for name in ("parameters", "context", "vocabulary")}


@stage("sft", reads=("seed", "max_tokens", "sft"), package="training")
def train_sft(config: Settings, *, data: StageResult, base: StageResult, run: StageRun) -> Metrics:
    """The base model fine-tuned on demonstrations; writes model/."""
    held = dataset(data, run.root)
    model, tokenizer = load_policy(base.path / MODEL), load_tokenizer(base.path / MODEL)
    demonstrations = held.demonstrations(*LEARNT)
    if config.sft.max_demonstrations is not None:
        kept = order_of_epoch(len(demonstrations), config.seed, 0)[: config.sft.max_demonstrations]
        demonstrations = [demonstrations[i] for i in sorted(kept)]
    rows, left_out = sft_rows(demonstrations, tokenizer, config.max_tokens)
    held_out, _ = sft_rows(held.demonstrations("validation"), tokenizer, config.max_tokens)
    if not held_out:
        raise PreflineError(
            "No demonstration in the validation split fits.", "Add demonstrations, or raise max_tokens or data.split.validation."
        )
    before = perplexity(model, held_out, config.sft.tokens_at_once)
    fit(model, rows, sft_loss, config.sft, config.seed, run.checkpoints, run.report)
    save(model, tokenizer, run.out / MODEL)
    return {
        "demonstrations": len(rows),
        "left_out": left_out,
        "perplexity_before": before,
        "perplexity": perplexity(model, held_out, config.sft.tokens_at_once),
    }


@stage("reward_model", reads=("seed", "max_tokens", "reward_model"), package="training")
def train_reward_model(config: Settings, *, data: StageResult, sft: StageResult, run: StageRun) -> Metrics:
    """The reward that PPO climbs, from comparisons of the split "train"; writes model/ (and weights.json)."""
    return _train_scorer("train", config.reward_model, config.max_tokens, config.seed, data, sft, run)


@stage("judge", reads=("seed", "max_tokens", "judge"), package="training")
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
    fit(model, groups, lambda m, part: group_loss(m, part, config.centring), config, seed, run.checkpoints, run.report)
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


@stage("ppo", reads=("seed", "max_tokens", "max_new_tokens", "ppo"), package="training")
def optimise_policy(
    config: Settings, *, data: StageResult, sft: StageResult, reward_model: StageResult, judge: StageResult, run: StageRun
) -> Metrics:
    """The SFT model optimised against the reward; writes model/, rounds.json, history.jsonl and samples.jsonl."""
    held = dataset(data, run.root)
    tokenizer = load_tokenizer(sft.path / MODEL)
    room = config.max_tokens - config.max_new_tokens
    prompts, _ = _fitting(held.prompts(*LEARNT), tokenizer, room)
    onlooker = Onlooker(
        held, tokenizer, room, sft, reward_model, judge, Sampling(config.max_new_tokens, config.ppo.temperature), config.seed
    )
    models = Models(
        policy=load_policy(sft.path / MODEL),
        reference=onlooker.reference,
        critic=RewardModel.load(reward_model.path / MODEL),
        reward_model=onlooker.reward_model,
    )
    eos = tokenizer.eos_token_id
    progress = optimise(models, prompts, onlooker.look, config.ppo, onlooker.sampling, eos, config.seed, run.checkpoints, run.report)
    save(models.policy, tokenizer, run.out / MODEL)
    _write_rounds(progress, len(onlooker.prompts), run.out)
    first, chosen = progress.looks[0], next(look for look in progress.looks if look.round == progress.best_round)
    metrics = {
        "rounds": progress.done,
        "chosen_round": progress.best_round,
        "kl": chosen.kl,
        "length": chosen.length,
        "no_stop": 1 - chosen.stopped,
        "own_before": statistics.fmean(first.own),
        "own": statistics.fmean(chosen.own),
        "judge_before": statistics.fmean(first.judge),
        "judge": statistics.fmean(chosen.judge),
    }
    if first.gold is not None and chosen.gold is not None:
        metrics |= {"gold_before": statistics.fmean(first.gold), "gold": statistics.fmean(chosen.gold)}
    return metrics


def _fitting(prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase, room: int) -> tuple[list[list[int]], list[Prompt]]:
    """Prompts that leave room for an answer: as tokens, and as they are. Raises PreflineError where none does."""
    encoded = [(encode_prompt(tokenizer, prompt.messages), prompt) for prompt in prompts]
    kept = [(tokens, prompt) for tokens, prompt in encoded if len(tokens) <= room]
    if not kept:
        raise PreflineError(
            f"None of {len(prompts)} prompts fits in {room} tokens (max_tokens - max_new_tokens).",
            "Raise max_tokens or lower max_new_tokens.",
        )
    return [tokens for tokens, _ in kept], [prompt for _, prompt in kept]


class Onlooker:
    """Looks at a round's policy on the validation prompts: with its own reward, the judge, and the truth where it is known."""

    def __init__(
        self,
        held: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        room: int,
        sft: StageResult,
        reward_model: StageResult,
        judge: StageResult,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.seed = seed
        self.tokens, self.prompts = _fitting(held.prompts("validation"), tokenizer, room)
        self.shop = held.shop()
        self.reference = load_policy(sft.path / MODEL)
        self.reward_model = RewardModel.load(reward_model.path / MODEL)
        self.judge = RewardModel.load(judge.path / MODEL)

    @torch.inference_mode()
    def look(self, number: int, policy: PreTrainedModel) -> Look:
        """The same prompts and the same random numbers every round, so that rounds differ by their policy alone."""
        generator = torch.Generator().manual_seed(self.seed)
        answers = sample(policy, self.tokens, self.sampling, self.tokenizer.eos_token_id, generator)
        texts = [prompt + answer.tokens for prompt, answer in zip(self.tokens, answers, strict=True)]
        own, judge = score_texts(self.reward_model, texts), score_texts(self.judge, texts)
        theirs = given_logprobs(self.reference, self.tokens, [answer.tokens for answer in answers], self.sampling.temperature)
        said = [decode(self.tokenizer, answer.tokens) for answer in answers]
        asked = [prompt.messages[-1]["content"] for prompt in self.prompts]
        gold = None
        if self.shop and all(text in self.shop.by_text for text in asked):
            gold = [self.shop.gold(question, answer).utility for question, answer in zip(asked, said, strict=True)]
        return Look(
            round=number,
            kl=kl_per_sequence([answer.logprobs for answer in answers], theirs),
            length=statistics.fmean(len(answer.tokens) for answer in answers),
            stopped=statistics.fmean(answer.stopped for answer in answers),
            own=own,
            judge=judge,
            gold=gold,
            samples=[
                {"prompt": asked[i], "answer": said[i], "own": own[i], "judge": judge[i]} for i in range(min(SAMPLES_KEPT, len(said)))
            ],
        )


def _write_rounds(progress: Progress, validation_prompts: int, out: Path) -> None:
    rounds = [asdict(look) for look in progress.looks]
    samples = [{"round": look["round"], **sample} for look in rounds for sample in look.pop("samples")]
    body = {"chosen_round": progress.best_round, "validation_prompts": validation_prompts, "rounds": rounds}
    (out / "rounds.json").write_text(json.dumps(body) + "\n", encoding="utf-8")
    write_jsonl(out / "history.jsonl", progress.history)
    write_jsonl(out / "samples.jsonl", samples)
