"""Rejection sampling: the SFT model fine-tuned on the best of n of its own answers to each prompt, by the reward model.

Llama 2 (Touvron et al. 2023, section 3.2.3) calls it rejection sampling fine-tuning.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean

from tasks.training.adapters import with_adapters
from tasks.training.best_of_n import Wanted, answer_all, batches_of_answers
from tasks.training.checkpoint import read_checkpoint, write_checkpoint
from tasks.training.models import load_policy, score_texts, with_checkpointing
from tasks.training.offline import fit_policy
from tasks.training.onlooker import Optimised
from tasks.training.sft import SFTRow, sft_loss
from tasks.training.workshop import Workshop


@dataclass(frozen=True)
class Scored:
    """An answer as it was sampled. score: the reward model's, less the penalty where it did not end by itself."""

    tokens: list[int]
    score: float
    stopped: bool


def optimise(shop: Workshop) -> Optimised:
    """The SFT model fine-tuned on the answer to each prompt that the reward model likes best."""
    best = best_answers(shop)
    rows = [SFTRow(prompt, answer.tokens) for prompt, answer in zip(shop.prompts, best, strict=True)]
    policy = with_checkpointing(with_adapters(load_policy(shop.sft), shop.adapter, shop.seed), shop.compute)
    found = fit_policy(shop, policy, rows, sft_loss, shop.config.rejection)
    found.figures |= {
        "prompts": len(rows),
        "learnt_score": fmean(answer.score for answer in best),
        "learnt_no_stop": 1 - fmean(answer.stopped for answer in best),
    }
    return found


def best_answers(shop: Workshop) -> list[Scored]:
    """The best of config.rejection.answers sampled answers to each prompt, the first of equals.

    What is found is kept every so often beside the checkpoints: a run that was killed goes on from there, and ends in the
    answers of an unbroken one.
    """
    config, here, folder = shop.config.rejection, shop.here, shop.checkpoints / "answers"
    batches = batches_of_answers(shop.prompts, config.answers, shop.sampling, config.tokens_at_once * here.count)
    saved = here.from_main(lambda: read_checkpoint(folder)) or {"batches": 0, "best": {}}
    best = {place: Scored(**answer) for place, answer in saved["best"].items()}
    done, total = 0, len(shop.prompts) * config.answers
    last_saved = time.monotonic()
    for number, batch in enumerate(batches, 1):
        done += len(batch)
        if number <= saved["batches"]:
            continue
        for wanted, answer in zip(batch, sample_and_score(shop, batch), strict=True):
            if wanted.place not in best or answer.score > best[wanted.place].score:
                best[wanted.place] = answer
        due = here.agreed(time.monotonic() - last_saved >= config.checkpoint_seconds) or done == total
        if due and here.main:
            write_checkpoint(folder, {"batches": number, "best": {place: vars(answer) for place, answer in best.items()}})
            last_saved = time.monotonic()
        shop.report(done, total)
    return [best[place] for place in range(len(shop.prompts))]


def sample_and_score(shop: Workshop, batch: list[Wanted]) -> list[Scored]:
    """The SFT model's answers, in order; each process samples its share."""
    own = shop.here.share(batch)
    with shop.onlooker.reference() as reference:
        answers = answer_all(reference, own, shop.sampling, shop.eos, shop.seed)
    scores = score_texts(shop.onlooker.reward_model, [wanted.prompt + answer.tokens for wanted, answer in zip(own, answers, strict=True)])
    penalty = shop.config.no_stop_penalty
    return shop.here.join(
        [Scored(a.tokens, score - penalty * (not a.stopped), a.stopped) for a, score in zip(answers, scores, strict=True)]
    )
