"""The first training stages, base model and SFT. Each reads files, trains, and writes a model folder."""

from __future__ import annotations

from tasks.data.encoding import load_tokenizer
from tasks.data.records import Split
from tasks.data.snapshot import dataset
from tasks.errors import ConfigError, PreflineError
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.base import build_base
from tasks.training.loop import fit, order_of_epoch
from tasks.training.models import context_of, describe, load_policy, save
from tasks.training.sft import perplexity, sft_loss, sft_rows

MODEL = "model"
LEARNT: tuple[Split, ...] = ("train", "judge")
"""Splits whose prompts and demonstrations train the policy. Comparisons of "judge" train the judge alone."""


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


@stage("sft", reads=("seed", "max_tokens", "sft", "adapter", "compute"), package="training")
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
    fit(model, rows, sft_loss, config.sft, seed=config.seed, checkpoints=run.checkpoints, report=run.report)
    save(model, tokenizer, run.out / MODEL)
    return {
        "demonstrations": len(rows),
        "left_out": left_out,
        "perplexity_before": before,
        "perplexity": perplexity(model, held_out, config.sft.tokens_at_once),
    }
