"""Between text and tokens: one place where prompts and answers are encoded, for checks, training and use alike."""

from __future__ import annotations

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

    Raises PreflineError where the template rewrites the prompt once an answer follows it.
    """
    if len(answer) == 1:  # text that looks like a special token stays text: an end in the middle would teach to stop there
        written = tokenizer(answer[0]["content"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    else:
        before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
        if not whole.startswith(before):
            raise PreflineError(
                "The chat template changes the prompt when an answer follows it.", "Give the tokenizer a template that only appends."
            )
        text = whole[len(before) :].rstrip().removesuffix(tokenizer.eos_token)
        written = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*written, tokenizer.eos_token_id]


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()
