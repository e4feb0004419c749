"""Between text and tokens: one place where prompts and answers are encoded, for checks, training and use alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.data.records import Message
from tasks.errors import PreflineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # seconds, which most that count words and not tokens need not spend

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: list[Message]) -> list[int]:
    """Token ids of the conversation so far, up to where the assistant speaks. The template alone adds BOS."""
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_answer(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], answer: list[Message]) -> list[int]:
    """Token ids of the answer, ending in EOS, tokenised apart from the prompt: just as they come when it is sampled.

    An answer of several messages goes up to its last turn of the assistant. Raises PreflineError where the template
    writes the conversation differently once it goes on.
    """
    if len(answer) == 1:
        return _said(tokenizer, answer[0]["content"])
    before = encode_prompt(tokenizer, prompt)
    whole, *more = encode_turns(tokenizer, prompt + answer, len(prompt))
    if more or whole.tokens[: len(before)] != before:
        raise PreflineError(
            "The chat template writes what was said differently once the conversation goes on.",
            "Give the tokenizer a template that only appends. Spaces around a text, and texts that spell a special token, can do it too.",
        )
    return whole.tokens[len(before) :]


@dataclass(frozen=True)
class Spoken:
    """Token ids of a conversation, and where turns of the assistant stand in them, each with its EOS."""

    tokens: list[int]
    turns: list[range]


def encode_turns(tokenizer: PreTrainedTokenizerBase, conversation: list[Message], first: int = 0) -> list[Spoken]:
    """A conversation up to its last turn of the assistant, as the fewest sequences that hold each turn as it is seen in use.

    first: the message from which on turns count; one that opens the conversation never does, for it answers nothing.
    Before each turn stand the ids that encode_prompt gives of the conversation so far, and the turn is as it comes when
    it is sampled. One sequence is all of that, unless the template writes a turn differently once the conversation has gone
    on, as one that leaves out what the assistant thought: what comes after such a turn is a sequence of its own.
    """
    sequences: list[Spoken] = []
    for number in range(max(first, 1), len(conversation)):
        if conversation[number]["role"] == "assistant":
            before = encode_prompt(tokenizer, conversation[:number])
            goes_on = bool(sequences) and before[: len(sequences[-1].tokens)] == sequences[-1].tokens
            turns = sequences.pop().turns if goes_on else []
            tokens = before + _said(tokenizer, conversation[number]["content"])
            sequences.append(Spoken(tokens, [*turns, range(len(before), len(tokens))]))
    return sequences


def _said(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """What the assistant says, and that it ends. Text that looks like a special token stays text: it would teach to stop there."""
    return [*tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], tokenizer.eos_token_id]


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()
