"""Rows read end to end: by hand, against each text alone, and against rows that are padded."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training_trees import COMMON, KINDS, OTHERS, TREES, assert_read_as_alone, build
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.training.batches import MOST, microbatches
from tasks.training.end_to_end import BLOCK, ENOUGH, LOGITS_AT_ONCE, blocks_of, cut_for, reads_end_to_end
from tasks.training.logprobs import tree_logprobs
from tasks.training.models import RewardModel, load_policy, without_dropout
from tasks.training.sampling import Sampling, sample
from tasks.training.trees import Tree, lay_out_for, read_end_to_end

PLAIN = [Tree([3, 4, 5], [[6, 7, 8, 1]]), Tree([5], [[5, 5, 5, 2]]), Tree([7], [[7, 8]]), Tree([2, 2], [[9]])]


def asked(model):
    """The model, read end to end if it can be."""
    read_end_to_end(model)
    return model


# Blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "blocks"),
    [
        ([30, 30, 30], [3]),
        ([60, 20, 20], [1, 2]),  # 80 tokens of padding cost more than another block
        ([22, 21, 20], [3]),  # 3 do not
        ([], []),
    ],
)
def test_blocks_by_hand(widths, blocks):
    assert BLOCK < 80
    assert [part.stop - part.start for part in blocks_of(widths)] == blocks


@given(widths=st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_no_cut_into_blocks_is_cheaper(widths):
    """In whatever order the rows come."""

    def cost(ends):
        return sum((end - first) * max(widths[first:end]) + BLOCK for first, end in pairwise(ends))

    every = [[0, *cuts, len(widths)] for count in range(len(widths)) for cuts in combinations(range(1, len(widths)), count)]
    assert cost([0, *(part.stop for part in blocks_of(widths))]) == min(map(cost, every))


@given(widths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 300))
def test_batches_laid_end_to_end_keep_to_the_budget_and_are_as_few_as_can_be(widths, budget):
    rows = [Tree([], [[2] * width]) for width in widths]
    batches = microbatches(rows, budget, end_to_end=True)
    assert sorted(row.width for batch in batches for row in batch) == sorted(widths)
    fullest, room = 0, 0
    for width in sorted(widths, reverse=True):  # of neighbours, filling each batch as far as it goes makes the fewest
        if width > room:
            fullest, room = fullest + 1, max(budget, width)
        room -= width
    assert len(batches) == fullest
    assert all(len(batch) == 1 or (sum(row.width for row in batch) <= budget and len(batch) <= MOST) for batch in batches)


def test_a_layout_by_hand():
    layout = lay_out_for(asked(build("llama", **COMMON)), [Tree([3, 4], [[5, 6, 1], [7]]), Tree([8], [[9, 1]])])
    assert [(block.rows, block.width) for block in layout.blocks] == [(2, 6)]  # 3 tokens of padding are cheaper than a block
    assert layout.tokens.tolist() == [[3, 4, 5, 6, 1, 7, 8, 9, 1, 0, 0, 0]]
    assert layout.positions[0, :9].tolist() == [0, 1, 2, 3, 4, 2, 0, 1, 2]
    assert layout.row.tolist() == [0, 0, 0]
    assert layout.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert layout.places[layout.mask].tolist() == [2, 3, 4, 5, 7, 8]
    assert layout.before[layout.mask].tolist() == [1, 2, 3, 1, 6, 7]
    assert layout.last.tolist() == [4, 5, 8]
    assert layout.blocks[0].mask.shape == (2, 1, 6, 6)


def test_plain_rows_need_no_mask():
    model = asked(build("llama", **COMMON))
    wide = Tree([], [[5] * 60])
    blocks = lay_out_for(model, [wide, *PLAIN]).blocks
    assert [(block.rows, block.width, block.mask) for block in blocks] == [(1, 60, None), (4, 7, None)]


# What is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trees", [TREES, PLAIN, [Tree([5], [[5] * 39]), *TREES, *PLAIN]], ids=["trees", "plain", "several blocks"])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_each_text_alone(kind, trees):
    model = asked(build(kind, **KINDS[kind]))
    assert reads_end_to_end(model)
    assert_read_as_alone(model, lay_out_for(model, trees), trees)


def with_head(kind):
    torch.manual_seed(0)
    return without_dropout(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind])).float())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_padded_rows(kind, checkpointing):
    found = []
    for prepare in (asked, lambda model: model):
        model = prepare(with_head(kind)).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        tree_logprobs(model, [*TREES, *PLAIN], 0.7)[0].square().sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert (found[0] - found[1]).norm() <= 1e-5 * found[1].norm()


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_says_the_same(kind):
    prompts, sampling = [[3, 4, 5], [6], [7, 7]], Sampling(6, 1.0)
    noise = sampling.noise(3, 0)
    said = [sample(prepare(with_head(kind)), prompts, sampling, 1, noise) for prepare in (asked, lambda model: model)]
    assert [answer.tokens for answer in said[0]] == [answer.tokens for answer in said[1]]


def test_models_from_folders_are_read_end_to_end_and_their_files_do_not_say_so(tmp_path):
    with_head("llama").save_pretrained(tmp_path / "before")
    policy = load_policy(tmp_path / "before")
    assert reads_end_to_end(policy)
    assert reads_end_to_end(RewardModel.from_policy(tmp_path / "before", seed=0).body)
    policy.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "config.json").read_text() for name in ("before", "after"))
    assert before == after


# Who is asked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_is_asked_is_left_as_it_was(kind, training):
    model = build(kind, **(KINDS | OTHERS)[kind]).train(training)
    used, state = model.config._attn_implementation, torch.get_rng_state()
    read_end_to_end(model)
    assert reads_end_to_end(model) == (kind in KINDS)
    assert reads_end_to_end(model) or model.config._attn_implementation == used
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_whose_layers_look_at_their_neighbours_keeps_its_rows_apart():
    """As convolutions and state spaces do: what stands before a row would run into it."""
    model = build("llama", **COMMON)
    model.layers[0].register_forward_hook(lambda _, __, hidden: hidden + hidden.roll(1, 1))
    read_end_to_end(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_hands_nothing_on_keeps_its_rows_apart():
    model = build("llama", **COMMON)
    forward = model.layers[1].self_attn.forward
    model.layers[1].self_attn.forward = lambda *given, blocks=None, **named: forward(*given, **named)
    read_end_to_end(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_pass_on_a_cpu_is_no_longer_than_pays_and_has_room_for_its_logits():
    rows = [Tree([], [[2] * 64])] * (ENOUGH // 64)
    small, large = (asked(build("llama", **COMMON | {"vocab_size": size})) for size in (16, 2**17))
    assert len(cut_for(small)(rows, 8192)) == 1
    assert len(cut_for(small)(rows + rows, 8192)) == 2
    batches = cut_for(large)(rows, 8192)
    assert all(sum(row.width for row in batch) * 2**17 <= LOGITS_AT_ONCE for batch in batches)
    assert len(cut_for(small)(rows, ENOUGH // 4)) == 4
