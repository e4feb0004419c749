"""Does a conversation fit the model? Counted in its tokens, but only where the number of characters leaves that open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from tasks.data.encoding import encode_answer
from tasks.data.records import Message
from tasks.errors import PreflineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 512
"""Rows that are encoded together."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the chat template does with a sequence of roles. added: characters around the texts, at most."""

    added: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row whose answers have to be counted, each with the prompt."""

    row: int
    prompt: list[Message]
    answers: list[list[Message]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of a row whose length had to be counted. refused: the template does not take one of its conversations."""

    row: int
    too_long: bool
    refused: bool = False


class Tokens:
    """Lengths in the model's tokens, as training will see them.

    A token covers at least a character of ASCII, so that a conversation of fewer characters than max_tokens fits. What
    is longer is put aside and encoded in batches. The template is asked once for each sequence of roles: what it says of
    texts is not looked at.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.special = tuple(tokenizer.all_special_tokens)
        self._tokenizer = tokenizer
        self._max = max_tokens
        self._bytes = _covers_bytes(tokenizer)
        self._waiting: list[Waiting] = []

    def shape(self, prompt: tuple[str, ...], answer: tuple[str, ...]) -> Shape | None:
        """The template's view of a conversation with these roles; None where it refuses them."""
        before: list[Message] = [{"role": role, "content": "x"} for role in prompt]
        after: list[Message] = [{"role": role, "content": "x"} for role in answer]
        try:
            text = self._written(before)
            encode_answer(self._tokenizer, before, after)
            if len(after) > 1:
                text = self._tokenizer.apply_chat_template(before + after, tokenize=False)
        except (TemplateError, PreflineError):
            return None
        return Shape(len(text) + 2 * (len(after) + 1))  # an end, and the space that some tokenizers put before each text

    def fits(self, text: str, shape: Shape) -> bool:
        """Is it certain without counting? text: that of all messages."""
        if text.isascii():
            return len(text) + shape.added <= self._max
        return self._bytes and len(text.encode("utf-8", "surrogatepass")) + shape.added <= self._max

    def ask(self, row: int, prompt: list[Message], answers: list[list[Message]]) -> None:
        """Have a row counted by and by."""
        self._waiting.append(Waiting(row, prompt, answers))

    def verdicts(self, last: bool = False) -> Iterator[Verdict]:
        """On the rows that wait, once they are many, or last of all."""
        if len(self._waiting) >= BATCH or (last and self._waiting):
            batch, self._waiting = self._waiting, []
            yield from self._count(batch)

    def _count(self, batch: list[Waiting]) -> Iterator[Verdict]:
        try:
            prompts = self._lengths([self._written(waiting.prompt) for waiting in batch], as_text=False)
        except TemplateError:  # it minds the texts too
            yield from map(self._one, batch)
            return
        plain = [waiting for waiting in batch if all(len(answer) == 1 for answer in waiting.answers)]
        answers = iter(self._lengths([answer[0]["content"] for waiting in plain for answer in waiting.answers], as_text=True))
        longest = {waiting.row: max(next(answers) for _ in waiting.answers) + 1 for waiting in plain}
        for waiting, length in zip(batch, prompts, strict=True):
            if waiting.row in longest:
                yield Verdict(waiting.row, length + longest[waiting.row] > self._max)
            else:
                yield self._one(waiting)

    def _one(self, waiting: Waiting) -> Verdict:
        try:
            (before,) = self._lengths([self._written(waiting.prompt)], as_text=False)
            longest = max(len(encode_answer(self._tokenizer, waiting.prompt, answer)) for answer in waiting.answers)
        except (TemplateError, PreflineError):
            return Verdict(waiting.row, False, refused=True)
        return Verdict(waiting.row, before + longest > self._max)

    def _written(self, prompt: list[Message]) -> str:
        text: str = self._tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return text

    def _lengths(self, texts: list[str], as_text: bool) -> list[int]:
        """as_text: a special token that is typed out is text, as in answers."""
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, split_special_tokens=as_text)
        return [len(ids) for ids in encoded["input_ids"]]


def _covers_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does every token cover at least a byte of the text as it is? Not where a normaliser rewrites it before."""
    return getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", "unknown") is None
