"""Sampling against plain forward passes, one row and one token at a time."""

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from tasks.training.logprobs import answer_logprobs
from tasks.training.models import left_padded, positions
from tasks.training.sampling import Sampling, sample

EOS = 1
PROMPTS = [[3, 4, 5, 6, 7], [8], [3, 1, 4], [9, 8, 7, 6, 5, 4, 3], [2, 2], [5]]
"""Of different lengths; one has an EOS inside."""


@pytest.fixture
def model(make_llama):
    """12 tokens, EOS likely enough that rows end at different times."""
    return make_llama(12, seed=58, spread=0.8)


def draw(model, prompts=PROMPTS, temperature=1.0, max_new_tokens=20, seed=0):
    return sample(model, prompts, Sampling(max_new_tokens, temperature), EOS, torch.Generator().manual_seed(seed))


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
    fresh, mask, _ = answer_logprobs(model, PROMPTS, [answer.tokens for answer in answers], temperature)
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


# Log-probabilities of given answers ----------------------------------------------------------------------------------


ANSWERS = [[2, 3, EOS], [4], [5, EOS], [6, 7, 8, 9, EOS], [EOS], [3, 3]]


def test_padding_has_logprob_0_so_that_its_ratio_is_1_and_its_kl_0(model):
    logprobs, mask, entropy = answer_logprobs(model, PROMPTS, ANSWERS, 1.0)
    assert mask.sum(1).tolist() == [float(len(answer)) for answer in ANSWERS]
    assert logprobs[mask == 0].abs().max() == 0
    assert entropy[mask == 0].abs().max() == 0
    assert logprobs[mask == 1].max() < 0


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_entropy_is_that_of_the_tempered_distribution(model, temperature):
    _, _, entropy = answer_logprobs(model, PROMPTS, ANSWERS, temperature)
    logprobs = (next_logits(model, PROMPTS[3] + ANSWERS[3][:2]) / temperature).log_softmax(-1)
    assert entropy[3, 2].item() == pytest.approx(-(logprobs.exp() * logprobs).sum().item(), abs=1e-5)


def test_the_gradient_of_a_padded_batch_is_that_of_its_rows_alone(model):
    def gradient(prompts, answers):
        model.zero_grad()
        logprobs, _, _ = answer_logprobs(model, prompts, answers, 0.7)
        logprobs.sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    alone = [gradient([prompt], [answer]) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    for found, *parts in zip(gradient(PROMPTS, ANSWERS), *alone, strict=True):
        torch.testing.assert_close(found, sum(parts), rtol=1e-4, atol=1e-5)


def test_the_language_model_head_runs_on_the_answers_positions_only(model):
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, output: seen.append(output.numel()))
    answer_logprobs(model, PROMPTS, ANSWERS, 1.0)
    assert seen == [sum(len(answer) for answer in ANSWERS) * 12]


def test_asking_for_logprobs_leaves_nothing_behind_on_the_model(model):
    before = next_logits(model, [2, 3, 4])
    answer_logprobs(model, PROMPTS, ANSWERS, 1.0)
    torch.testing.assert_close(next_logits(model, [2, 3, 4]), before, rtol=0, atol=0)
