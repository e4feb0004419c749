"""Supervised fine-tuning: which tokens are trained, and that each counts alike."""

import math

import pytest
import torch

from tasks.data.records import Demonstration, assistant, user
from tasks.errors import PreflineError
from tasks.training.loop import fit
from tasks.training.sampling import Sampling, sample
from tasks.training.sft import SFTRow, perplexity, sft_loss, sft_rows
from tasks.training_config import FitConfig

EOS = 1
ROWS = [SFTRow([3, 50, 60, 4], [70, 71, EOS]), SFTRow([3, 4], [80, EOS]), SFTRow([3, 51, 4], [90, 91, 92, 93, EOS])]


def demonstration(number, answer, prompt="How warm is the lamp?"):
    return Demonstration(
        id=f"d{number}",
        prompt=[user(prompt)],
        answer=[assistant(answer)],
        source="march.jsonl",
        source_id=str(number),
        group_id=prompt,
    )


def loss_by_hand(model, rows):
    """-log p of each answer token after everything before it, one plain forward pass a token."""
    total = torch.zeros(())
    for row in rows:
        for t, token in enumerate(row.answer):
            total = total - model(input_ids=torch.tensor([row.prompt + row.answer[:t]])).logits[0, -1].log_softmax(-1)[token]
    return total


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_only_answer_tokens_are_trained_eos_among_them(llama):
    """Loss and gradient are those of the answer tokens alone, so no prompt token can have a label."""
    found, expected = sft_loss(llama, ROWS), loss_by_hand(llama, ROWS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients(llama, found), gradients(llama, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_eos_of_an_answer_has_a_loss_of_its_own(llama):
    row = ROWS[1]
    without = SFTRow(row.prompt, row.answer[:-1])
    logits = llama(input_ids=torch.tensor([row.prompt + row.answer[:-1]])).logits[0, -1]
    assert (sft_loss(llama, [row]) - sft_loss(llama, [without])).item() == pytest.approx(-logits.log_softmax(-1)[EOS].item(), abs=1e-4)


def test_a_model_that_pads_with_its_eos_still_learns_where_to_stop(llama, tmp_path):
    llama.config.pad_token_id = EOS
    config = FitConfig(epochs=60, batch=2, learning_rate=1e-2)
    fit(llama, ROWS[:2], sft_loss, config, seed=0, checkpoints=tmp_path, report=lambda *_, **__: None)
    answers = sample(llama, [row.prompt for row in ROWS[:2]], Sampling(10, 0.0), EOS, torch.Generator())
    assert [answer.tokens for answer in answers] == [row.answer for row in ROWS[:2]]
    assert all(answer.stopped for answer in answers)


def test_the_weight_of_a_row_is_its_trained_tokens():
    assert [row.weight for row in ROWS] == [3, 2, 5]
    assert [row.tokens for row in ROWS] == [7, 4, 8]


def test_rows_hold_prompt_and_answer_as_they_are_encoded(tokenizer):
    (row,), _ = sft_rows([demonstration(1, "Very warm.")], tokenizer, max_tokens=100)
    assert tokenizer.decode(row.prompt) == "<|user|>How warm is the lamp?<|assistant|>"
    assert tokenizer.decode(row.answer) == "Very warm.<|end|>"


def test_an_empty_answer_is_refused_by_file_and_line(tokenizer):
    with pytest.raises(PreflineError, match=r"march\.jsonl, line 417.*empty"):
        sft_rows([demonstration(416, "Warm."), demonstration(417, "")], tokenizer, max_tokens=100)


def test_long_rows_are_counted_and_never_cut(tokenizer):
    rows = [demonstration(1, "Warm."), demonstration(2, "Warm. " * 50), demonstration(3, "Cold.")]
    (first, second), dropped = sft_rows(rows, tokenizer, max_tokens=60)
    assert dropped == 1
    assert [tokenizer.decode(row.answer) for row in (first, second)] == ["Warm.<|end|>", "Cold.<|end|>"]
    assert len(sft_rows(rows[:1], tokenizer, first.tokens)[0]) == 1
    assert sft_rows(rows[:1], tokenizer, first.tokens - 1) == ([], 1)


@torch.no_grad()
def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(llama):
    llama.lm_head.weight.zero_()
    assert perplexity(llama, ROWS) == pytest.approx(len(llama.lm_head.weight), rel=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 16, 1000])
def test_perplexity_is_over_tokens_however_they_are_batched(llama, tokens_at_once):
    assert perplexity(llama, ROWS, tokens_at_once) == pytest.approx(math.exp(loss_by_hand(llama, ROWS).item() / 10), rel=1e-5)
