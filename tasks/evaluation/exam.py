"""The exam that all models sit: the same held-out prompts, sampling and seed, and one collection of texts to score.

One model is in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tasks.data.records import Demonstration, Message
from tasks.data.snapshot import Prompt
from tasks.evaluation.answers import Speaker, Texts, Vocabulary
from tasks.evaluation.forgetting import Recital, recited
from tasks.stage import StageRun
from tasks.training.estimators import kl_per_sequence
from tasks.training.sampling import Sampling


@dataclass(frozen=True)
class Said:
    """A model's answer as tokens of the exam's vocabulary. score: where the score of prompt and answer is, among all texts.

    logprobs: of the model's own tokens, in nats.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    stopped: bool
    score: int


@dataclass(frozen=True)
class Paper:
    """What one model handed in. answers: one a prompt. probes: one a probe. recital: of the demonstrations, None where there are none."""

    answers: list[Said]
    probes: list[Said]
    recital: Recital | None


@dataclass
class Exam:
    """vocabulary: the policy's; answers of a model with another one are read as text. probes: asked apart, with random numbers
    of their own, so that they have no effect on the other answers. demonstrations: to be recited.

    Progress is counted in answers; a pass over all prompts or texts counts as one answer to each prompt. models: how many will
    take it; KL and two scorers come after them.
    """

    prompts: list[Prompt]
    probes: list[Prompt]
    demonstrations: list[Demonstration]
    vocabulary: Vocabulary
    sampling: Sampling
    seed: int
    run: StageRun
    models: int
    texts: Texts = field(default_factory=Texts)
    done: int = 0

    @property
    def messages(self) -> list[list[Message]]:
        return [prompt.messages for prompt in self.prompts]

    @property
    def total(self) -> int:
        """Of all passes."""
        return self.models * (len(self.prompts) + len(self.probes)) + 3 * len(self.prompts)

    def taken_by(self, folder: Path) -> Paper:
        """What the model in a folder answers to each prompt and probe, and how well it knows the demonstrations."""
        speaker = Speaker.load(folder)
        answers, probes = self._answers(speaker, self.messages), self._answers(speaker, [probe.messages for probe in self.probes])
        return Paper(answers, probes, recited(speaker.model, speaker.vocabulary.tokenizer, self.demonstrations))

    def _answers(self, speaker: Speaker, prompts: list[list[Message]]) -> list[Said]:
        said = []
        for prompt, answer in zip(prompts, speaker.answer(prompts, self.sampling, self.seed, self.count), strict=True):
            tokens = speaker.in_words_of(self.vocabulary, prompt, answer)
            place = self.texts.place(self.vocabulary.encode(prompt) + tokens)
            said.append(Said(speaker.text(answer), tokens, answer.logprobs, answer.stopped, place))
        return said

    def kl_from(self, folder: Path, by_policy: list[Said]) -> float:
        """KL(policy || the model in a folder) in nats a sequence, at the temperature of sampling.

        With temperature 0 answers are no sample of the policy; the figure is then their mean log-ratio at temperature 1.
        """
        temperature = self.sampling.temperature or 1.0
        theirs = Speaker.load(folder).logprobs(self.messages, [said.tokens for said in by_policy], temperature)
        self.count(len(self.prompts))
        return kl_per_sequence([said.logprobs for said in by_policy], theirs)

    def scores_by(self, folder: Path) -> np.ndarray:
        """Scores of all texts by the reward model in a folder, (texts,)."""
        scores = self.texts.scores(folder)
        self.count(len(self.prompts))
        return scores

    def count(self, answers: int) -> None:
        self.done += answers
        self.run.report(self.done, self.total)
