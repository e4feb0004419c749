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

    An answer of several messages goes up to its last turn of the assistant. Raises PreflineError where the template
    writes the conversation differently once it goes on.
    """
    if len(answer) == 1:
        return _said(tokenizer, answer[0]["content"])
    before = encode_prompt(tokenizer, prompt)
    whole, _ = encode_turns(tokenizer, prompt + answer, len(prompt))
    if whole[: len(before)] != before:
        raise _rewritten(len(prompt))
    return whole[len(before) :]


def encode_turns(tokenizer: PreTrainedTokenizerBase, conversation: list[Message], first: int = 0) -> tuple[list[int], list[range]]:
    """Token ids of a conversation up to its last turn of the assistant, and where its turns stand, each with its EOS.

    first: the message from which on turns count; one that opens the conversation never does, for it answers nothing.
    Before each turn stand the ids that encode_prompt gives of the conversation so far, and the turn is as it comes when
    it is sampled. Raises PreflineError where no one sequence is all of that, as with a template that leaves out what the
    assistant thought once it has gone on.
    """
    tokens: list[int] = []
    turns: list[range] = []
    spoken = 0
    for number in range(max(first, 1), len(conversation)):
        if conversation[number]["role"] == "assistant":
            before = encode_prompt(tokenizer, conversation[:number])
            if before[: len(tokens)] != tokens:
                raise _rewritten(spoken)
            tokens = before + _said(tokenizer, conversation[number]["content"])
            turns.append(range(len(before), len(tokens)))
            spoken = number + 1
    return tokens, turns


def _said(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """What the assistant says, and that it ends. Text that looks like a special token stays text: it would teach to stop there."""
    return [*tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], tokenizer.eos_token_id]


def _rewritten(spoken: int) -> PreflineError:
    return PreflineError(
        f"The chat template writes the conversation up to message {spoken} differently once more follows.",
        "Give the tokenizer a template that only appends. Spaces around a text, and texts that spell a special token, can do it too.",
    )


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()
