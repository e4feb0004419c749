"""Supervised fine-tuning: which tokens are trained, that each counts alike, and that packing changes nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.encoding import encode_prompt
from tasks.data.records import Demonstration, assistant, user
from tasks.errors import PreflineError
from tasks.training.batches import microbatches
from tasks.training.loop import fit
from tasks.training.sampling import Sampling, sample
from tasks.training.sft import Pack, SFTRow, first_fit, pack_loss, packing, perplexity, sft_loss, sft_rows
from tasks.training_config import FitConfig

EOS = 1
# The last is of two turns: 94 is the user's, and not trained
ROWS = [
    SFTRow([3, 50, 60, 4], [70, 71, EOS]),
    SFTRow([3, 4], [80, EOS]),
    SFTRow([3, 51, 4], [90, EOS, 3, 94, 4, 91, 92, 93, EOS], [True, True, False, False, False, True, True, True, True]),
]
THINKS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{{ m['content'] if m['role'] == 'user' else m['content'].split('</think>')[-1] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A template that leaves out what the assistant thought, as those of reasoning models do."""


def demonstration(number, answer, prompt="How warm is the lamp?"):
    """answer, prompt: a text, or messages."""
    return Demonstration(
        id=f"d{number}",
        prompt=[user(prompt)] if isinstance(prompt, str) else prompt,
        answer=[assistant(answer)] if isinstance(answer, str) else answer,
        source="march.jsonl",
        source_id=str(number),
        group_id="g",
    )


def loss_by_hand(model, rows):
    """-log p of each trained token after everything before it, one plain forward pass a token."""
    total = torch.zeros(())
    for row in rows:
        for t, token in enumerate(row.answer):
            if row.trained is None or row.trained[t]:
                total = total - model(input_ids=torch.tensor([row.prompt + row.answer[:t]])).logits[0, -1].log_softmax(-1)[token]
    return total


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


# What is trained -----------------------------------------------------------------------------------------------------


def test_only_answer_tokens_are_trained_eos_among_them(llama):
    """Loss and gradient are those of the trained tokens alone, so no token of a prompt or of a user can have a label."""
    found, expected = sft_loss(llama, ROWS), loss_by_hand(llama, ROWS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients(llama, found), gradients(llama, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_eos_of_an_answer_has_a_loss_of_its_own(llama):
    row = ROWS[1]
    without = SFTRow(row.prompt, row.answer[:-1])
    logits = llama(input_ids=torch.tensor([row.prompt + row.answer[:-1]])).logits[0, -1]
    assert (sft_loss(llama, [row]) - sft_loss(llama, [without])).item() == pytest.approx(-logits.log_softmax(-1)[EOS].item(), abs=1e-4)


def test_the_head_runs_before_trained_tokens_alone(llama):
    widths = []
    llama.lm_head.register_forward_hook(lambda module, inputs, logits: widths.append(logits.shape[:-1].numel()))
    sft_loss(llama, ROWS)
    assert widths == [sum(row.weight for row in ROWS)] == [11]


def test_a_model_that_pads_with_its_eos_still_learns_where_to_stop(llama, tmp_path):
    llama.config.pad_token_id = EOS
    config = FitConfig(epochs=60, batch=2, learning_rate=1e-2)
    fit(llama, ROWS[:2], sft_loss, config, seed=0, checkpoints=tmp_path, report=lambda *_, **__: None)
    greedy = Sampling(10, 0.0)
    answers = sample(llama, [row.prompt for row in ROWS[:2]], greedy, EOS, greedy.noise(2, 0))
    assert [answer.tokens for answer in answers] == [row.answer for row in ROWS[:2]]
    assert all(answer.stopped for answer in answers)


def test_the_weight_of_a_row_is_its_trained_tokens():
    assert [row.weight for row in ROWS] == [3, 2, 6]
    assert [row.width for row in ROWS] == [7, 4, 12]
    assert Pack(ROWS).weight == 11
    assert Pack(ROWS).width == 23


# Rows ----------------------------------------------------------------------------------------------------------------


TALK = [user("How warm is the lamp?"), assistant("Very."), user("And the kettle?"), assistant("Cold."), user("Sure?")]


def spans(tokenizer, row):
    """Runs of trained tokens, as text."""
    found, before = [], None
    for place in row.places:
        if before is None or place != before + 1:
            found.append([])
        found[-1].append(row.tokens[place])
        before = place
    return [tokenizer.decode(span) for span in found]


def test_rows_hold_prompt_and_answer_as_they_are_encoded(tokenizer):
    (row,), _ = sft_rows([demonstration(1, "Very warm.")], tokenizer, max_tokens=100)
    assert tokenizer.decode(row.prompt) == "<|user|>How warm is the lamp?<|assistant|>"
    assert tokenizer.decode(row.answer) == "Very warm.<|end|>"
    assert row.trained is None


@pytest.mark.parametrize(("every_turn", "expected"), [(False, ["Yes.<|end|>"]), (True, ["Very.<|end|>", "Cold.<|end|>", "Yes.<|end|>"])])
def test_the_answer_alone_is_trained_or_every_turn_of_the_assistant(tokenizer, every_turn, expected):
    (row,), _ = sft_rows([demonstration(1, "Yes.", TALK)], tokenizer, 200, every_turn)
    assert spans(tokenizer, row) == expected
    assert tokenizer.decode(row.tokens) == (
        "<|user|>How warm is the lamp?<|assistant|>Very.<|end|>"
        "<|user|>And the kettle?<|assistant|>Cold.<|end|>"
        "<|user|>Sure?<|assistant|>Yes.<|end|>"
    )


def test_what_a_user_says_inside_an_answer_is_not_trained(tokenizer):
    answer = [assistant("Very."), user("Sure?"), assistant("Yes.")]
    (row,), _ = sft_rows([demonstration(1, answer)], tokenizer, 200)
    assert spans(tokenizer, row) == ["Very.<|end|>", "Yes.<|end|>"]
    assert row.weight == len(row.places) < len(row.answer)


def test_before_every_trained_turn_stand_the_tokens_seen_in_use(tokenizer):
    (row,), _ = sft_rows([demonstration(1, "Yes.", TALK)], tokenizer, 200, every_turn=True)
    begins = [place for place in row.places if place - 1 not in row.places]
    assert [row.tokens[:begin] for begin in begins] == [encode_prompt(tokenizer, TALK[:number]) for number in (1, 3, 5)]


def test_with_a_template_that_drops_thoughts_each_turn_is_trained_as_it_is_seen_in_use(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", THINKS)
    thought = [*TALK[:1], assistant("<think>Hm.</think>Very."), *TALK[2:3], assistant("Cold."), *TALK[4:]]
    found, left_out = sft_rows([demonstration(417, "Yes.", thought)], tokenizer, 200, every_turn=True)
    assert left_out == 0
    assert [spans(tokenizer, row) for row in found] == [["<think>Hm.</think>Very.<|end|>"], ["Cold.<|end|>", "Yes.<|end|>"]]
    assert [row.prompt for row in found] == [encode_prompt(tokenizer, thought[:1]), encode_prompt(tokenizer, thought[:3])]
    assert "Hm." not in tokenizer.decode(found[1].tokens)
    (row,), _ = sft_rows([demonstration(417, "Yes.", thought)], tokenizer, 200)
    assert spans(tokenizer, row) == ["Yes.<|end|>"]


@pytest.mark.parametrize("answer", ["", " \n\t", [user("Hm?")], [assistant("Very."), user("Sure?"), assistant(" ")]])
def test_an_empty_answer_is_refused_by_file_and_line(tokenizer, answer):
    with pytest.raises(PreflineError, match=r"march\.jsonl, line 417.*empty"):
        sft_rows([demonstration(416, "Warm."), demonstration(417, answer)], tokenizer, max_tokens=100)


def test_an_empty_turn_of_the_prompt_is_refused_where_it_would_be_trained(tokenizer):
    row = demonstration(417, "Warm.", [user("hi"), assistant(""), user("How warm?")])
    assert len(sft_rows([row], tokenizer, 100)[0]) == 1
    with pytest.raises(PreflineError, match=r"line 417: a turn of the assistant is empty"):
        sft_rows([row], tokenizer, 100, every_turn=True)


def test_long_rows_are_counted_and_never_cut(tokenizer):
    rows = [demonstration(1, "Warm."), demonstration(2, "Warm. " * 50), demonstration(3, "Cold.")]
    (first, second), left_out = sft_rows(rows, tokenizer, max_tokens=60)
    assert left_out == 1
    assert [tokenizer.decode(row.answer) for row in (first, second)] == ["Warm.<|end|>", "Cold.<|end|>"]
    assert len(sft_rows(rows[:1], tokenizer, first.width)[0]) == 1


def test_where_no_row_fits_the_shortest_is_named(tokenizer):
    rows = [demonstration(1, "Warm. " * 50), demonstration(2, "Warm.")]
    (_, short), _ = sft_rows(rows, tokenizer, max_tokens=1000)
    with pytest.raises(
        PreflineError, match=rf"All 2 demonstrations are longer than max_tokens \({short.width - 1}\).* has {short.width}\."
    ):
        sft_rows(rows, tokenizer, short.width - 1)
    assert sft_rows([], tokenizer, 10) == ([], 0)


# Packing -------------------------------------------------------------------------------------------------------------


def test_a_pack_has_the_logits_loss_and_gradients_of_its_rows_alone(llama):
    logits = []
    llama.lm_head.register_forward_hook(lambda module, inputs, found: logits.append(found.detach().squeeze(0)))
    packed = pack_loss(llama, [Pack(ROWS)])
    alone = torch.stack([sft_loss(llama, [row]) for row in ROWS]).sum()
    torch.testing.assert_close(logits[0], torch.cat(logits[1:]), rtol=0, atol=1e-5)
    assert packed.item() == pytest.approx(alone.item(), rel=1e-6)
    for ours, theirs in zip(gradients(llama, packed), gradients(llama, alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


WIDTHS = st.lists(st.integers(2, 40), min_size=1, max_size=40)


@given(widths=WIDTHS, room=st.integers(1, 64))
def test_packs_hold_every_row_once_and_are_full(widths, room):
    rows = [SFTRow([number], [5] * (width - 1)) for number, width in enumerate(widths)]
    packs = first_fit(rows, room)
    assert sorted(row.prompt for pack in packs for row in pack.rows) == [row.prompt for row in rows]
    assert all(pack.width <= room or len(pack.rows) == 1 for pack in packs)
    # No two packs could be one: each row went into the first pack with room for it
    assert all(first.width + second.width > room for first in packs for second in packs if first is not second)


@given(widths=WIDTHS, tokens_at_once=st.integers(1, 200))
def test_packed_batches_fit_in_memory(widths, tokens_at_once):
    packs = [Pack([SFTRow([3], [5] * (width - 1))]) for width in widths]
    for batch in packing(64)(packs, tokens_at_once):
        assert len(batch) * max(pack.width for pack in batch) <= tokens_at_once or (len(batch) == 1 and len(batch[0].rows) == 1)


@pytest.mark.parametrize("tokens_at_once", [30, 1000])
def test_training_with_packing_is_training_without(make_llama, tokenizer, tmp_path, tokens_at_once):
    config = FitConfig(epochs=8, batch=4, learning_rate=1e-2, tokens_at_once=tokens_at_once)
    rows = [Pack([SFTRow([3, number, 4], [*range(20, 20 + length), EOS])]) for number, length in enumerate([1, 9, 3, 4, 7, 2, 5, 6])]
    ends, losses = [], []
    for name, cut in (("packed", packing(16)), ("plain", microbatches)):
        model, seen = make_llama(len(tokenizer)), []

        def report(done, total, seen=seen, **figures):
            seen.append(figures["loss"])

        fit(model, rows, pack_loss, config, seed=0, checkpoints=tmp_path / name, report=report, cut=cut)
        ends.append(model.state_dict())
        losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0] / 2
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=1e-3)


def test_packing_saves_passes_and_padding():
    rows = [Pack([SFTRow([3], [5] * (width - 1))]) for width in [10, 30] * 8]
    plain, packed = microbatches(rows, 200), packing(40)(rows, 200)
    assert sum(len(batch) * max(row.width for row in batch) for batch in packed) == 320 == sum(row.width for row in rows)
    assert len(packed) < len(plain)


# Perplexity ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(llama):
    llama.lm_head.weight.zero_()
    assert perplexity(llama, ROWS) == pytest.approx(len(llama.lm_head.weight), rel=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 16, 1000])
def test_perplexity_is_over_tokens_however_they_are_batched(llama, tokens_at_once):
    assert perplexity(llama, ROWS, tokens_at_once) == pytest.approx(math.exp(loss_by_hand(llama, ROWS).item() / 11), rel=1e-5)


@given(order=st.permutations(range(9)), tokens_at_once=st.integers(1, 100))
def test_perplexity_depends_neither_on_order_nor_on_batches(many, order, tokens_at_once):
    model, rows, expected = many
    assert perplexity(model, [rows[place] for place in order], tokens_at_once) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def many():
    """A model, nine rows of many lengths, and their perplexity by one plain pass each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=64, **sizes)).eval()
    rows = [SFTRow([3, *range(10, 10 + number)], [*range(40 - number, 40), EOS]) for number in range(9)]
    total = 0.0
    with torch.no_grad():
        for row in rows:
            logprobs = model(input_ids=torch.tensor([row.tokens])).logits[0].log_softmax(-1)
            total -= sum(float(logprobs[place - 1, row.tokens[place]]) for place in row.places)
    return model, rows, math.exp(total / sum(row.weight for row in rows))
