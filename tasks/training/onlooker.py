"""Who looks on while a policy is optimised: the reward itself, the independent judge, and the truth where it is known.

Every method of optimisation shows its policy here and hands back what was seen, so that the stages after it need not
know which method it was.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.data.encoding import decode, encode_prompt
from tasks.data.records import write_jsonl
from tasks.data.snapshot import Dataset, Prompt
from tasks.errors import PreflineError
from tasks.training.adapters import Reference
from tasks.training.ensemble import load_scorer
from tasks.training.estimators import kl_per_sequence
from tasks.training.logprobs import given_logprobs
from tasks.training.models import load_policy, score_texts
from tasks.training.sampling import Sampling, sample

Stats = dict[str, float]
SAMPLES_KEPT = 8


@dataclass
class Look:
    """What the onlookers say of a policy, on the validation prompts: a score a prompt each. Round 0 is the SFT model.

    gold: None without a truth. samples: a few of the answers, for people to read.
    """

    round: int
    kl: float
    length: float
    stopped: float
    own: list[float]
    judge: list[float]
    gold: list[float] | None
    samples: list[dict[str, str | float]] = field(default_factory=list)


@dataclass
class Optimised:
    """What a method hands back. policy: as it was in the round that is kept. history: figures of every round or step.

    figures: of the whole, for the stage's metrics. ended: why it ended before its time, if it did.
    """

    policy: PreTrainedModel
    rounds: int
    best_round: int
    looks: list[Look]
    history: list[Stats]
    figures: Stats = field(default_factory=dict)
    ended: str = ""


def best_of(looks: list[Look], choose: str) -> int:
    """The round to keep: the last one, or the one whose answers the judge likes best; never round 0."""
    candidates = [look for look in looks if look.round > 0]
    if choose == "last":
        return candidates[-1].round
    return max(candidates, key=lambda look: (statistics.fmean(look.judge), look.round)).round


class Onlooker:
    """Looks at a policy on the validation prompts."""

    def __init__(
        self,
        held: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        room: int,
        sampling: Sampling,
        seed: int,
        *,
        sft: Path,
        reward_model: Path,
        judge: Path,
        prompts: list[Prompt] | None = None,
    ) -> None:
        """room: tokens that a prompt may have. sft, reward_model, judge: folders of models. prompts: others than those of validation."""
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.seed = seed
        self.tokens, self.prompts = fitting(prompts or held.prompts("validation"), tokenizer, room)
        self.asked = [prompt.messages[-1]["content"] for prompt in self.prompts]
        self.shop = held.shop()
        self.reference: Reference = partial(nullcontext, load_policy(sft).eval())
        self.reward_model = load_scorer(reward_model).eval()
        self.judge = load_scorer(judge).eval()

    def to(self, device: torch.device) -> None:
        """Move all models that look on."""
        with self.reference() as reference:
            for model in (reference, self.reward_model, self.judge):
                model.to(device)

    @torch.inference_mode()
    def look(self, number: int, policy: PreTrainedModel) -> Look:
        """The same prompts and the same random numbers every round, so that rounds differ by their policy alone."""
        noise = self.sampling.noise(len(self.tokens), self.seed)
        answers = sample(policy, self.tokens, self.sampling, self.tokenizer.eos_token_id, noise)
        texts = [prompt + answer.tokens for prompt, answer in zip(self.tokens, answers, strict=True)]
        own, judge = score_texts(self.reward_model, texts), score_texts(self.judge, texts)
        with self.reference() as reference:
            theirs = given_logprobs(reference, self.tokens, [answer.tokens for answer in answers], self.sampling.temperature)
        said = [decode(self.tokenizer, answer.tokens) for answer in answers]
        return Look(
            round=number,
            kl=kl_per_sequence([answer.logprobs for answer in answers], theirs),
            length=statistics.fmean(len(answer.tokens) for answer in answers),
            stopped=statistics.fmean(answer.stopped for answer in answers),
            own=own,
            judge=judge,
            gold=self.gold(range(len(said)), said),
            samples=[
                {"prompt": self.asked[i], "answer": said[i], "own": own[i], "judge": judge[i]} for i in range(min(SAMPLES_KEPT, len(said)))
            ],
        )

    def gold(self, places: Sequence[int], said: Sequence[str]) -> list[float] | None:
        """What answers to the validation prompts at those places are truly worth; None without a truth about all prompts."""
        if self.shop is None or not all(text in self.shop.by_text for text in self.asked):
            return None
        return [self.shop.gold(self.asked[place], answer).utility for place, answer in zip(places, said, strict=True)]


def fitting(prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase, room: int) -> tuple[list[list[int]], list[Prompt]]:
    """Prompts that leave room for an answer: as tokens, and as they are. Raises PreflineError where none does."""
    encoded = [(encode_prompt(tokenizer, prompt.messages), prompt) for prompt in prompts]
    kept = [(tokens, prompt) for tokens, prompt in encoded if len(tokens) <= room]
    if not kept:
        raise PreflineError(
            f"None of {len(prompts)} prompts fits in {room} tokens (max_tokens - max_new_tokens).",
            "Raise max_tokens or lower max_new_tokens.",
        )
    return [tokens for tokens, _ in kept], [prompt for _, prompt in kept]


def write_rounds(found: Optimised, validation_prompts: int, out: Path) -> None:
    """rounds.json, history.jsonl and samples.jsonl: what evaluation, the report and people read of a method's work."""
    rounds = [asdict(look) for look in found.looks]
    samples = [{"round": look["round"], **sample} for look in rounds for sample in look.pop("samples")]
    body = {"chosen_round": found.best_round, "validation_prompts": validation_prompts, "ended": found.ended, "rounds": rounds}
    (out / "rounds.json").write_text(json.dumps(body) + "\n", encoding="utf-8")
    write_jsonl(out / "history.jsonl", found.history)
    write_jsonl(out / "samples.jsonl", samples)
