"""What a model knows of demonstrations: by its log-probabilities, and between tokenizers."""

import math

import pytest
import torch

from tasks.data.encoding import encode_answer, encode_prompt
from tasks.data.records import Demonstration, assistant, user
from tasks.evaluation.forgetting import recited, to_recite
from tasks.training.base import train_tokenizer


def demonstration(place, question, answer):
    return Demonstration(str(place), [user(question)], [assistant(answer)], "shop", str(place), f"group {place}", split="test")


ASKED = [demonstration(0, "How warm is the red lamp?", "It is wärm."), demonstration(1, "Sorry", "No.")]


def test_recital_by_hand(llama, tokenizer):
    nats, tokens = 0.0, 0
    for one in ASKED:
        before, after = encode_prompt(tokenizer, one.prompt), encode_answer(tokenizer, one.prompt, one.answer)
        with torch.inference_mode():
            logprobs = llama.eval()(torch.tensor([before + after])).logits[0].log_softmax(-1)
        nats -= sum(logprobs[len(before) - 1 + place, token].item() for place, token in enumerate(after))
        tokens += len(after)
    found = recited(llama, tokenizer, ASKED)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert (found.tokens, found.bytes) == (tokens, len("It is wärm.No.".encode()))
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 15, rel=1e-5)


def test_a_model_that_guesses_needs_more_bits_with_smaller_tokens(make_llama, tokenizer):
    """Uniform models: perplexity is the vocabulary's size and says nothing of the text; bits a byte count the tokens too."""
    other = train_tokenizer(["A wholly other text."] * 5, 290)
    for vocabulary in (tokenizer, other):
        model = make_llama(len(vocabulary))
        model.lm_head.weight.data.zero_()
        found = recited(model, vocabulary, ASKED)
        assert found.perplexity == pytest.approx(len(vocabulary), rel=1e-4)
        assert found.bits_per_byte == pytest.approx(found.tokens * math.log2(len(vocabulary)) / 15, rel=1e-4)


def test_only_what_every_model_can_read_is_recited(tokenizer):
    other = train_tokenizer(["A wholly other text."] * 5, 290)
    lengths = [
        [len(encode_prompt(one, asked.prompt)) + len(encode_answer(one, asked.prompt, asked.answer)) for asked in ASKED]
        for one in (tokenizer, other)
    ]
    room = max(lengths[0])
    assert room < max(lengths[1])  # the longer one fits the first tokenizer only
    assert to_recite(ASKED, [tokenizer], room, 10, 0) == ASKED
    assert to_recite(ASKED, [tokenizer, other], room, 10, 0) == ASKED[1:]
    assert to_recite(ASKED, [tokenizer], 1, 10, 0) == to_recite([], [tokenizer], 99, 10, 0) == []


def test_they_are_drawn_by_the_seed(tokenizer):
    many = [demonstration(place, "Sorry", f"No. {place}") for place in range(20)]
    drawn = [to_recite(many, [tokenizer], 99, 5, seed) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 5
    assert drawn[0] == drawn[1] != drawn[2]


def test_nothing_to_recite(llama, tokenizer):
    assert recited(llama, tokenizer, []) is None
