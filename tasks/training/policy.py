"""The policy stage: the SFT model optimised by the method that policy.method names. All methods end in the same files."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from tasks.data.encoding import load_tokenizer
from tasks.data.snapshot import dataset
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.launch import side_by_side
from tasks.training.models import save
from tasks.training.onlooker import Onlooker, Optimised, fitting, write_rounds
from tasks.training.processes import Processes
from tasks.training.sampling import Sampling
from tasks.training.stages import LEARNT, MODEL
from tasks.training.workshop import Workshop
from tasks.training_config import Method


@stage("policy", reads=("seed", "max_tokens", "max_new_tokens", "policy", "adapter", "compute"), package="training")
@side_by_side
def optimise_policy(
    config: Settings, *, data: StageResult, sft: StageResult, reward_model: StageResult, judge: StageResult, run: StageRun
) -> Metrics:
    """The SFT model optimised for what people prefer; writes model/, rounds.json, history.jsonl and samples.jsonl."""
    held = dataset(data, run.root)
    tokenizer = load_tokenizer(sft.path / MODEL)
    room = config.max_tokens - config.max_new_tokens
    prompts, _ = fitting(held.prompts(*LEARNT), tokenizer, room)
    sampling = Sampling(config.max_new_tokens, config.policy.temperature, config.policy.top_p)
    sft_model, scored_by, judged_by = (result.path / MODEL for result in (sft, reward_model, judge))
    onlooker = Onlooker(held, tokenizer, room, sampling, config.seed, sft=sft_model, reward_model=scored_by, judge=judged_by)
    here = Processes(config.compute)
    onlooker.to(here.device)
    shop = Workshop(
        config=config.policy,
        adapter=config.adapter,
        compute=config.compute,
        max_tokens=config.max_tokens,
        seed=config.seed,
        held=held,
        tokenizer=tokenizer,
        prompts=prompts,
        sampling=sampling,
        sft=sft_model,
        reward_model=scored_by,
        onlooker=onlooker,
        here=here,
        checkpoints=run.checkpoints,
        report=run.report,
    )
    found = method(config.policy.method)(shop)
    save(found.policy, tokenizer, run.out / MODEL)
    write_rounds(found, len(onlooker.prompts), run.out)
    return _figures(found)


def method(name: Method) -> Callable[[Workshop], Optimised]:
    """The function that optimises: imported when it is wanted, because each is long to read and only one is used."""
    if name == "dpo":
        from tasks.training.dpo import optimise
    elif name == "rejection":
        from tasks.training.rejection import optimise
    else:
        from tasks.training.online import optimise
    return optimise


def _figures(found: Optimised) -> Metrics:
    first, chosen = found.looks[0], next(look for look in found.looks if look.round == found.best_round)
    metrics = {
        "rounds": found.rounds,
        "chosen_round": found.best_round,
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
    return metrics | found.figures
