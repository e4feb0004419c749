"""Sampling against plain forward passes, one row and one token at a time."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.errors import PreflineError
from tasks.training.logprobs import tree_logprobs
from tasks.training.models import left_padded, positions
from tasks.training.sampling import BLOCK, Sampling, _closed_up, inverse, nucleus, sample
from tasks.training.trees import trees_of

EOS = 1
PROMPTS = [[3, 4, 5, 6, 7], [8], [3, 1, 4], [9, 8, 7, 6, 5, 4, 3], [2, 2], [5]]
"""Of different lengths; one has an EOS inside."""


@pytest.fixture
def model(make_llama):
    """12 tokens, EOS likely enough that rows end at different times."""
    return make_llama(12, seed=58, spread=0.8)


def draw(model, prompts=PROMPTS, temperature=1.0, max_new_tokens=20, seed=0, top_p=1.0):
    sampling = Sampling(max_new_tokens, temperature, top_p)
    return sample(model, prompts, sampling, EOS, sampling.noise(len(prompts), seed))


@torch.no_grad()
def next_logits(model, text):
    """Logits after a text, with no batch, no padding, no mask and no cache."""
    return model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]


def plain_logprobs(model, prompt, answer, temperature):
    texts = [prompt + answer[:t] for t in range(len(answer))]
    return [(next_logits(model, text) / temperature).log_softmax(-1)[token].item() for text, token in zip(texts, answer, strict=True)]


# Positions and padding ---------------------------------------------------------------------------------------------


def test_padding_and_positions_by_hand():
    tokens, mask = left_padded([[7, 8, 9], [5]])
    assert tokens.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_positions_are_the_cumulative_mask_less_the_mask():
    assert positions(torch.tensor([[0, 0, 1, 1, 1]])).tolist() == [[0, 0, 0, 1, 2]]


# What is sampled ---------------------------------------------------------------------------------------------------


def test_a_batch_of_different_lengths_answers_as_each_prompt_does_alone(model):
    together = draw(model, temperature=0)
    assert len({len(answer.tokens) for answer in together}) > 2  # rows left the batch at different times
    for prompt, answer in zip(PROMPTS, together, strict=True):
        (alone,) = draw(model, [prompt], temperature=0)
        assert answer.tokens == alone.tokens
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_temperature_0_takes_the_likeliest_token_each_time(model):
    for prompt, answer in zip(PROMPTS, draw(model, temperature=0), strict=True):
        for t, token in enumerate(answer.tokens):
            assert token == next_logits(model, prompt + answer.tokens[:t]).argmax().item()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_kept_while_sampling_are_those_of_a_fresh_forward(model, temperature):
    answers = draw(model, temperature=temperature, seed=3)
    assert len({len(answer.tokens) for answer in answers}) > 2
    fresh, mask = tree_logprobs(model, trees_of(PROMPTS, [answer.tokens for answer in answers]), temperature)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        length = len(answer.tokens)
        assert mask[row].tolist() == [1.0] * length + [0.0] * (mask.shape[1] - length)
        assert fresh[row, :length].tolist() == pytest.approx(answer.logprobs, abs=1e-5)
        assert answer.logprobs == pytest.approx(plain_logprobs(model, prompt, answer.tokens, temperature), abs=1e-5)


def test_an_answer_ends_at_its_first_eos_and_nowhere_else(model):
    answers = draw(model, PROMPTS * 20, max_new_tokens=4)
    assert {answer.stopped for answer in answers} == {True, False}
    for answer in answers:
        assert EOS not in answer.tokens[:-1]
        assert answer.stopped == (answer.tokens[-1] == EOS)
        assert answer.stopped or len(answer.tokens) == 4  # a cut answer keeps its real last token
        assert len(answer.logprobs) == len(answer.tokens) <= 4


def test_an_eos_that_comes_as_the_last_allowed_token_counts_as_a_stop(model):
    ends_at_the_limit = [a for a in draw(model, PROMPTS * 20, max_new_tokens=3) if len(a.tokens) == 3 and a.tokens[-1] == EOS]
    assert ends_at_the_limit
    assert all(answer.stopped for answer in ends_at_the_limit)


def test_rows_that_ended_leave_the_batch(model):
    seen = []
    model.register_forward_hook(lambda _, args, kwargs, output: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    answers = draw(model, seed=3)
    steps = max(len(answer.tokens) for answer in answers)
    assert seen == [sum(len(answer.tokens) > step for answer in answers) for step in range(steps)]
    assert seen[0] > seen[-1]


def test_a_seed_fixes_the_answers_whatever_else_draws_numbers(model):
    first = draw(model, seed=5)
    torch.manual_seed(99)
    assert draw(model, seed=5) == first
    assert draw(model, seed=6) != first


def test_sampled_pairs_of_tokens_come_as_often_as_the_softmax_says(make_llama):
    """Chi-square over all answers of up to two tokens, at temperature 0.7; the same counts refute temperature 1."""
    model, prompt, count = make_llama(5, spread=0.5), [2, 3, 4], 6000
    answers = [(EOS,), *((first, second) for first, second in itertools.product((0, 2, 3, 4), range(5)))]
    drawn = [tuple(answer.tokens) for answer in draw(model, [prompt] * count, temperature=0.7, max_new_tokens=2)]
    counts = [drawn.count(answer) for answer in answers]

    def chance(temperature):
        return [math.exp(sum(plain_logprobs(model, prompt, list(answer), temperature))) for answer in answers]

    assert sum(counts) == count
    assert sum(chance(0.7)) == pytest.approx(1, abs=1e-6)
    assert chisquare(counts, [count * p / sum(chance(0.7)) for p in chance(0.7)]).pvalue > 0.001
    assert chisquare(counts, [count * p / sum(chance(1.0)) for p in chance(1.0)]).pvalue < 1e-6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_policy_that_has_come_apart_is_named(model, temperature):
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 0] = torch.nan
    with pytest.raises(PreflineError, match="not finite"):
        draw(model, temperature=temperature)


# What an answer depends on -----------------------------------------------------------------------------------------


def same(found, expected):
    """Answers of other batches: logprobs differ in the sixth digit, and tokens where a number is that near a bound."""
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_rows_answer_depends_on_its_own_numbers_alone(model):
    """In any batch, in any order, whoever leaves first. 120 tokens: one is within 1e-6 of a bound once in 700 seeds."""
    sampling = Sampling(20)
    noise = sampling.noise(len(PROMPTS), 3)
    together = sample(model, PROMPTS, sampling, EOS, noise)
    assert len({len(answer.tokens) for answer in together}) > 2
    same([sample(model, PROMPTS[i : i + 1], sampling, EOS, noise[i : i + 1])[0] for i in range(6)], together)
    for order in ([5, 4, 3, 2, 1, 0], [3, 0, 4], [2, 5, 1, 0]):
        same(sample(model, [PROMPTS[i] for i in order], sampling, EOS, noise[order]), [together[i] for i in order])


def test_a_lower_limit_cuts_the_same_answers_shorter(model):
    noise = Sampling(20).noise(len(PROMPTS), 3)
    for long, short in zip(sample(model, PROMPTS, Sampling(20), EOS, noise), sample(model, PROMPTS, Sampling(5), EOS, noise), strict=True):
        assert short.tokens == long.tokens[:5]


def test_the_last_rows_fill_the_gaps_of_those_that_ended():
    assert _closed_up(torch.tensor([True, False, True, False, False, True, True])).tolist() == [0, 5, 2, 6]
    assert _closed_up(torch.tensor([False, True])).tolist() == [1]


def calls(model):
    """A list that fills with what the model is called with."""
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    return seen


def test_equal_prompts_are_read_once_and_answered_one_by_one(model):
    prompts = [PROMPTS[i] for i in (0, 0, 0, 3, 1, 1, 0)]
    sampling = Sampling(20)
    noise = sampling.noise(len(prompts), 4)
    apart = [sample(model, prompts[i : i + 1], sampling, EOS, noise[i : i + 1])[0] for i in range(len(prompts))]
    seen = calls(model)
    found = sample(model, prompts, sampling, EOS, noise)
    assert tuple(seen[0]["input_ids"].shape) == (3, 7)
    assert len(seen[1]["input_ids"]) > 3
    same(found, apart)
    assert len({tuple(answer.tokens) for answer in found[:3]}) == 3


def test_prompts_of_one_length_need_no_mask(model):
    prompts = [[3, 4, 5], [6, 7, 8], [9, 10, 11]]
    seen = calls(model)
    answers = draw(model, prompts, seed=2)
    assert len(seen) > 3
    assert all(call["attention_mask"] is None for call in seen)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.logprobs == pytest.approx(plain_logprobs(model, prompt, answer.tokens, 1.0), abs=2e-5)


KINDS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "mistral": {"sliding_window": 4, "max_position_embeddings": 64},
    "qwen2": {"num_key_value_heads": 1, "max_position_embeddings": 64},
    "gemma3_text": {"sliding_window": 4, "head_dim": 8, "max_position_embeddings": 64},
    "bloom": {"n_layer": 2, "n_head": 2},
}
SMALL = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "prompts", [[[3, 4, 5, 6, 7, 8]] * 3 + [[9, 8, 7, 6, 5, 4]], [[3, 4, 5, 6, 7, 8]] * 3 + [[9]]], ids=["even", "padded"]
)
def test_repeated_prompts_with_and_without_a_mask_whatever_the_architecture(kind, prompts):
    """Windows of 4 tokens are outgrown by the prompt already, and their layers keep caches of their own."""
    torch.manual_seed(0)
    settings = {"num_key_value_heads": 2, "eos_token_id": EOS, "pad_token_id": 0} | SMALL | KINDS[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    answers = draw(model, prompts, max_new_tokens=12, seed=1)
    assert len({tuple(answer.tokens) for answer in answers}) == 4
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.logprobs == pytest.approx(plain_logprobs(model, prompt, answer.tokens, 1.0), abs=2e-5)


# The nucleus ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.3, [0.4, 0, 0, 0]),
        (0.39, [0.4, 0, 0, 0]),
        (0.41, [0.4, 0, 0.3, 0]),
        (0.5, [0.4, 0, 0.3, 0]),
        (0.71, [0.4, 0.15, 0.3, 0.15]),
        (1e-9, [0.4, 0, 0, 0]),
    ],
)
def test_the_nucleus_by_hand(top_p, kept):
    # Twice the weights: they need not sum to 1. Of two equally likely tokens both are in it, or neither
    found = nucleus(2 * torch.tensor([[0.4, 0.15, 0.3, 0.15]]), top_p)
    assert found.tolist() == [pytest.approx([2 * p for p in kept])]


def test_tokens_outside_the_nucleus_are_never_drawn_and_the_others_in_proportion(make_llama):
    model, prompt, count = make_llama(12, spread=0.5), [2, 3, 4], 3000
    chances = (next_logits(model, prompt) / 0.7).softmax(-1).tolist()
    ranked = sorted(range(12), key=lambda token: -chances[token])
    inside = ranked[: next(n for n in range(1, 13) if sum(chances[token] for token in ranked[:n]) >= 0.8)]
    assert 2 < len(inside) < 10
    drawn = [answer.tokens[0] for answer in draw(model, [prompt] * count, temperature=0.7, max_new_tokens=1, top_p=0.8)]
    assert set(drawn) == set(inside)
    whole = sum(chances[token] for token in inside)
    assert chisquare([drawn.count(token) for token in inside], [count * chances[token] / whole for token in inside]).pvalue > 0.001


def test_logprobs_are_of_the_whole_distribution_whatever_the_nucleus(model):
    """So that the ratio of new to old policy is 1 on the first pass: those of training know of no nucleus either."""
    answers = draw(model, temperature=0.7, seed=3, top_p=0.6)
    fresh, _ = tree_logprobs(model, trees_of(PROMPTS, [answer.tokens for answer in answers]), 0.7)
    for row, answer in zip(fresh.tolist(), answers, strict=True):
        assert row[: len(answer.tokens)] == pytest.approx(answer.logprobs, abs=1e-5)


def test_at_temperature_0_the_nucleus_makes_no_difference(model):
    assert draw(model, temperature=0, top_p=0.5) == draw(model, temperature=0)


# The token that a number means -----------------------------------------------------------------------------------


def test_a_number_means_the_token_at_whose_cumulative_probability_it_lies():
    """Over a vocabulary of fifty thousand, against sums in fp64."""
    generator = torch.Generator().manual_seed(0)
    weights = (3 * torch.randn(8, 197 * BLOCK, generator=generator)).exp()
    weights[:, ::3] = 0
    exact = weights.numpy().astype(np.float64).cumsum(1)
    exact /= exact[:, -1:]
    before = 0
    for number in np.linspace(0, 1 - 2**-24, 201, dtype=np.float32):
        found = inverse(weights, torch.full((8,), float(number))).squeeze(1)
        assert (weights[range(8), found] > 0).all()
        assert (found >= before).all()
        before = found
        assert (exact[range(8), found] >= number - 1e-6).all()
        assert (exact[range(8), found - 1] <= number + 1e-6)[found.numpy() > 0].all()


def test_a_lone_possible_token_is_found_by_any_number():
    for place in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1):
        weights = torch.zeros(3, 2 * BLOCK)
        weights[:, place] = 0.3
        assert inverse(weights, torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist() == [[place]] * 3


def test_rounding_never_ends_at_a_token_of_no_weight():
    """Blocks of 1, 1.5 * 2^-52 and 3: in fp64 the second ends at 1 + 2^-51, which is more than its weight after 1."""
    weights = torch.zeros(1, 3 * BLOCK)
    weights[0, [3, BLOCK + 5, 2 * BLOCK]] = torch.tensor([1.0, 1.5 * 2**-52, 3.0])
    assert inverse(weights, torch.tensor([0.25])).item() == BLOCK + 5
