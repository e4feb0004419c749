"""The first training stages, base model and SFT. Each reads files, trains, and writes a model folder."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tasks.data.encoding import load_tokenizer
from tasks.data.records import Split, write_jsonl
from tasks.data.snapshot import dataset
from tasks.errors import ConfigError, PreflineError
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.adapters import merged, with_adapters
from tasks.training.base import build_base
from tasks.training.end_to_end import reads_end_to_end
from tasks.training.launch import side_by_side
from tasks.training.loop import Seen, Validation, fit, order_of_epoch
from tasks.training.models import context_of, describe, load_policy, save, with_checkpointing
from tasks.training.processes import Processes
from tasks.training.sft import Pack, pack_loss, packing, perplexity, sft_rows
from tasks.training.trees import reads_trees

MODEL = "model"
LOOKS = "looks.jsonl"
"""What each look at the validation split found, in order; sft.looks of them, evenly spread, or fewer where it ended early."""
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
@side_by_side
def train_sft(config: Settings, *, data: StageResult, base: StageResult, run: StageRun) -> Metrics:
    """The base model fine-tuned on demonstrations; writes model/ (and looks.jsonl)."""
    held = dataset(data, run.root)
    model = with_checkpointing(with_adapters(load_policy(base.path / MODEL), config.adapter, config.seed), config.compute)
    tokenizer = load_tokenizer(base.path / MODEL)
    demonstrations = held.demonstrations(*LEARNT)
    if config.sft.max_demonstrations is not None:
        kept = order_of_epoch(len(demonstrations), config.seed, 0)[: config.sft.max_demonstrations]
        demonstrations = [demonstrations[i] for i in sorted(kept)]
    every_turn = config.sft.trained == "assistant"
    rows, left_out = sft_rows(demonstrations, tokenizer, config.max_tokens, every_turn)
    held_out, _ = sft_rows(held.demonstrations("validation"), tokenizer, config.max_tokens, every_turn)
    if not held_out:
        raise PreflineError("There is no demonstration in the validation split.", "Add demonstrations, or raise data.split.validation.")
    if config.sft.packing and not reads_trees(model.base_model, config.max_tokens):
        raise ConfigError(
            f"sft.packing: {type(model).__name__} can't read several texts side by side without mixing them up.",
            "Set sft.packing to false: what is learnt is the same.",
        )
    here = Processes(config.compute)
    model.to(here.device)

    def measure(learner: nn.Module, share: float) -> Seen:
        assert isinstance(learner, PreTrainedModel)
        return {"perplexity": perplexity(learner, held_out, config.sft.tokens_at_once)}

    before = here.from_main(lambda: measure(model, 0.0))
    fitted = fit(
        model,
        [Pack([row]) for row in rows],
        pack_loss,
        config.sft,
        seed=config.seed,
        checkpoints=run.checkpoints,
        report=run.report,
        here=here,
        validation=Validation(measure, metric="" if config.sft.choose == "last" else config.sft.choose, higher_is_better=False),
        cut=packing(config.max_tokens) if config.sft.packing and not reads_end_to_end(model) else None,
    )
    learnt = here.plain(model)
    assert isinstance(learnt, PreTrainedModel)
    learnt = merged(learnt)
    save(learnt, tokenizer, run.out / MODEL)
    if fitted.looks:
        write_jsonl(run.out / LOOKS, fitted.looks)
    return {
        "demonstrations": len(rows),
        "left_out": left_out,
        "steps": fitted.step,
        "perplexity_before": before["perplexity"],
        **here.from_main(lambda: measure(learnt, 1.0)),
        **({"chosen_look": fitted.best_look + 1} if config.sft.choose != "last" else {}),
    }
