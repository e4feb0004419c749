"""Log-probabilities of given answers against plain forward passes, one row and one token at a time."""

import pytest
import torch

from tasks.training import logprobs as module
from tasks.training.logprobs import given_logprobs, logprobs_at, read_answers
from tasks.training.trees import Tree, trees_of

EOS = 1
PROMPTS = [[3, 4, 5, 6, 7], [8], [3, 1, 4], [9, 8, 7, 6, 5, 4, 3], [2, 2], [5]]
"""Of different lengths; one has an EOS inside."""

ANSWERS = [[2, 3, EOS], [4], [5, EOS], [6, 7, 8, 9, EOS], [EOS], [3, 3]]


@pytest.fixture
def model(make_llama):
    """12 tokens, EOS likely enough that rows end at different times."""
    return make_llama(12, seed=58, spread=0.8)


@torch.no_grad()
def next_logits(model, text):
    """Logits after a text, with no batch, no padding, no mask and no cache."""
    return model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]


def plain_logprobs(model, prompt, answer, temperature):
    texts = [prompt + answer[:t] for t in range(len(answer))]
    return [(next_logits(model, text) / temperature).log_softmax(-1)[token].item() for text, token in zip(texts, answer, strict=True)]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_one_text_at_a_time(model, temperature):
    logprobs = read_answers(model, trees_of(PROMPTS, ANSWERS), temperature).logprobs
    for row, prompt, answer in zip(logprobs.tolist(), PROMPTS, ANSWERS, strict=True):
        assert row[: len(answer)] == pytest.approx(plain_logprobs(model, prompt, answer, temperature), abs=1e-5)


@pytest.mark.parametrize("at_once", [1, 12, 8192])
def test_given_logprobs_are_the_same_however_many_tokens_fit_in_memory(model, monkeypatch, at_once):
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", at_once)
    found = given_logprobs(model, PROMPTS, ANSWERS, 0.7)
    for row, prompt, answer in zip(found, PROMPTS, ANSWERS, strict=True):
        assert row == pytest.approx(plain_logprobs(model, prompt, answer, 0.7), abs=1e-5)


def test_logprobs_of_some_tokens_are_those_of_all_of_them(model):
    trees = [Tree(prompt, [answer]) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    wanted = [[0, 2], [0], [1], [1, 4], [0], [1]]
    expected = [plain_logprobs(model, tree.prompt, tree.answers[0], 1.0)[i] for tree, own in zip(trees, wanted, strict=True) for i in own]
    assert logprobs_at(model, trees, wanted).tolist() == pytest.approx(expected, abs=1e-5)


def test_padding_has_logprob_0_so_that_its_ratio_is_1_and_its_kl_0(model):
    read = read_answers(model, trees_of(PROMPTS, ANSWERS), 1.0)
    logprobs, mask, entropy = read.logprobs, read.mask, read.entropy
    assert mask.sum(1).tolist() == [float(len(answer)) for answer in ANSWERS]
    assert logprobs[mask == 0].abs().max() == 0
    assert entropy[mask == 0].abs().max() == 0
    assert logprobs[mask == 1].max() < 0


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_entropy_is_that_of_the_tempered_distribution(model, temperature):
    entropy = read_answers(model, trees_of(PROMPTS, ANSWERS), temperature).entropy
    logprobs = (next_logits(model, PROMPTS[3] + ANSWERS[3][:2]) / temperature).log_softmax(-1)
    assert entropy[3, 2].item() == pytest.approx(-(logprobs.exp() * logprobs).sum().item(), abs=1e-5)


def test_the_gradient_of_a_padded_batch_is_that_of_its_rows_alone(model):
    def gradient(prompts, answers):
        model.zero_grad()
        logprobs = read_answers(model, trees_of(prompts, answers), 0.7).logprobs
        logprobs.sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    alone = [gradient([prompt], [answer]) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    for found, *parts in zip(gradient(PROMPTS, ANSWERS), *alone, strict=True):
        torch.testing.assert_close(found, sum(parts), rtol=1e-4, atol=1e-5 * float(found.abs().max()))


def test_the_language_model_head_runs_on_the_answers_positions_only(model):
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, output: seen.append(output.numel()))
    read_answers(model, trees_of(PROMPTS, ANSWERS), 1.0)
    assert seen == [sum(len(answer) for answer in ANSWERS) * 12]


def test_asking_for_logprobs_leaves_nothing_behind_on_the_model(model):
    before = next_logits(model, [2, 3, 4])
    read_answers(model, trees_of(PROMPTS, ANSWERS), 1.0)
    torch.testing.assert_close(next_logits(model, [2, 3, 4]), before, rtol=0, atol=0)
