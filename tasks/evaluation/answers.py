"""The answers that are compared: sampled on held-out prompts, scored, and kept one line a prompt (answers.jsonl)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.data.encoding import decode, encode_answer, encode_prompt, load_tokenizer
from tasks.data.records import Message, assistant, write_jsonl
from tasks.evaluation.result import JudgeName, SliceKind
from tasks.training.ensemble import load_scorer
from tasks.training.logprobs import TOKENS_AT_ONCE, given_logprobs
from tasks.training.models import load_policy, score_texts, tokenizer_fingerprint
from tasks.training.sampling import Answer, Sampling, sample

ANSWERS = "answers.jsonl"

Outcome = Literal["win", "loss", "tie"]
"""Of the policy's answer against another's."""


@dataclass(frozen=True)
class Verdict:
    """A judge's word on two answers, of the first of them (the policy's). by_order: what it said when that one was shown first,
    and when the other was, None for what can't be read; None as a whole for a judge who is not shown them in an order.
    """

    judge: JudgeName
    outcome: Outcome
    by_order: tuple[Outcome | None, Outcome | None] | None = None


@dataclass
class Reply:
    """One model's answer to one prompt. length: tokens. own, judge: rewards of the policy's reward model and the independent one.

    gold, right: None without a known truth. refused: by the phrases of evaluation.refusals.
    """

    text: str
    length: int
    stopped: bool
    own: float
    judge: float
    gold: float | None = None
    right: bool | None = None
    refused: bool = False


@dataclass(frozen=True)
class Trait:
    """What prompts of one slice have in common. name: as it is shown."""

    kind: SliceKind
    name: str


@dataclass
class Other:
    """The answer of another registered version, which the policy's is compared with besides. judge, gold: as in Judged."""

    name: str
    reply: Reply
    judge: Outcome | None = None
    gold: Outcome | None = None


@dataclass
class Judged:
    """A held-out prompt, each model's answer to it, and who won. baseline: None where the baseline is the SFT model.

    judge, gold: the policy against the baseline; *_over_sft: against SFT. judge: of the one who decides (evaluation.judge), None
    where that one has not judged this prompt. verdicts: of every judge. refuse: should the prompt be refused? None where nobody
    says. traits: the slices that it belongs to, besides those of its tags. others: of evaluation.against.
    """

    prompt: list[Message]
    group_id: str
    tags: list[str]
    policy: Reply
    sft: Reply
    baseline: Reply | None
    judge: Outcome | None
    judge_over_sft: Outcome | None
    gold: Outcome | None = None
    gold_over_sft: Outcome | None = None
    refuse: bool | None = None
    traits: list[Trait] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    verdicts_over_sft: list[Verdict] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)

    @property
    def rival(self) -> Reply:
        """The baseline's answer, whichever model that is."""
        return self.baseline or self.sft


def write_answers(folder: Path, rows: Iterable[Judged]) -> None:
    write_jsonl(folder / ANSWERS, rows)


def read_answers(folder: Path) -> list[Judged]:
    """The rows that `write_answers` wrote into the folder."""
    with (folder / ANSWERS).open(encoding="utf-8") as lines:
        return [_judged(json.loads(line)) for line in lines]


def answers_table(rows: Iterable[Judged]) -> dict[str, list[object]]:
    """What was asked, answered and said of it, as columns by name: a row for each prompt."""
    cells = [dict(_cells(row)) for row in rows]
    names = dict.fromkeys(name for row in cells for name in row)
    return {name: [row.get(name) for row in cells] for name in names}


def _cells(row: Judged) -> Iterator[tuple[str, object]]:
    yield "prompt", conversation(row.prompt)
    yield "tags", ", ".join(row.tags)
    yield "traits", ", ".join(trait.name for trait in row.traits)
    yield "should_refuse", row.refuse
    yield "group", row.group_id
    yield "judge", row.judge
    yield "judge_over_sft", row.judge_over_sft
    yield "gold", row.gold
    yield "gold_over_sft", row.gold_over_sft
    for verdict in row.verdicts:
        if verdict.by_order:
            policy_first, rival_first = verdict.by_order
            yield f"{verdict.judge}_policy_first", policy_first
            yield f"{verdict.judge}_rival_first", rival_first
        yield verdict.judge, verdict.outcome
    for name, reply in (("policy", row.policy), ("sft", row.sft), ("baseline", row.baseline)):
        if reply:
            yield name, reply.text
            for key, value in asdict(reply).items():
                if key != "text":
                    yield f"{name}_{key}", value
    for other in row.others:
        yield other.name, other.reply.text
        yield f"judge_over {other.name}", other.judge
        yield f"gold_over {other.name}", other.gold


def conversation(messages: Sequence[Message]) -> str:
    """A prompt as text: one turn as it is, several with who speaks."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _judged(row: dict[str, Any]) -> Judged:
    replies = {name: Reply(**row[name]) if row[name] else None for name in ("policy", "sft", "baseline")}
    verdicts = {name: [_verdict(verdict) for verdict in row.get(name, ())] for name in ("verdicts", "verdicts_over_sft")}
    others = [Other(**{**other, "reply": Reply(**other["reply"])}) for other in row.get("others", ())]
    return Judged(**{**row, **replies, "others": others, **verdicts, "traits": [Trait(**trait) for trait in row.get("traits", ())]})


def _verdict(row: dict[str, Any]) -> Verdict:
    return Verdict(row["judge"], row["outcome"], tuple(row["by_order"]) if row["by_order"] else None)


@dataclass(frozen=True)
class Vocabulary:
    """How a model reads and writes. fingerprint: equal for two tokenizers whose tokens mean the same."""

    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        return cls(load_tokenizer(folder), tokenizer_fingerprint(folder))

    def encode(self, prompt: list[Message]) -> list[int]:
        return encode_prompt(self.tokenizer, prompt)


@dataclass(frozen=True)
class Speaker:
    """A model that answers."""

    model: PreTrainedModel
    vocabulary: Vocabulary

    @classmethod
    def load(cls, folder: Path) -> Speaker:
        return cls(load_policy(folder), Vocabulary.load(folder))

    def answer(self, prompts: Sequence[list[Message]], sampling: Sampling, seed: int, done: Callable[[int], None]) -> list[Answer]:
        """One answer a prompt, in order, in batches that fit in memory. done(prompts) is called after each.

        Models draw the same random numbers, so that two equal ones give equal answers.
        """
        encoded = [self.vocabulary.encode(prompt) for prompt in prompts]
        answers: list[Answer] = []
        size = max(1, TOKENS_AT_ONCE // (max(map(len, encoded), default=0) + sampling.max_new_tokens))
        noise = sampling.noise(len(prompts), seed)
        for first in range(0, len(prompts), size):
            batch = slice(first, first + size)
            answers += sample(self.model, encoded[batch], sampling, self.vocabulary.tokenizer.eos_token_id, noise[batch])
            done(len(encoded[batch]))
        return answers

    def logprobs(self, prompts: Sequence[list[Message]], answers: list[list[int]], temperature: float) -> list[list[float]]:
        """Log-probability of each token of given answers, in nats."""
        return given_logprobs(self.model, [self.vocabulary.encode(prompt) for prompt in prompts], answers, temperature)

    def text(self, answer: Answer) -> str:
        return decode(self.vocabulary.tokenizer, answer.tokens)

    def in_words_of(self, other: Vocabulary, prompt: list[Message], answer: Answer) -> list[int]:
        """This model's answer as another's tokens: as it is where both share a vocabulary, else through its text."""
        if other.fingerprint == self.vocabulary.fingerprint:
            return answer.tokens
        whole = encode_answer(other.tokenizer, prompt, [assistant(self.text(answer))])
        return whole if answer.stopped else whole[:-1]


class Texts:
    """Texts as token rows, each kept and scored once however often it occurs, so that equal texts have equal scores."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}

    def place(self, tokens: Sequence[int]) -> int:
        """Where the text's score will be."""
        return self._places.setdefault(tuple(tokens), len(self._places))

    def scores(self, folder: Path) -> np.ndarray:
        """The scores of all texts by the reward model or ensemble in a folder, (texts,)."""
        return np.array(score_texts(load_scorer(folder).eval(), [list(text) for text in self._places], TOKENS_AT_ONCE))
