"""Trees by hand, and against the texts they stand for, read one by one."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tasks.training.trees import Tree, lay_out, reads_trees

COMMON = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS = {
    "llama": COMMON,
    "qwen2": COMMON,
    "gemma": COMMON | {"head_dim": 8},
    "gpt2": {"vocab_size": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
}
SMALL = [Tree([3, 4], [[5, 6, 1], [7]]), Tree([8], [[9, 1]])]


def build(kind, **settings):
    """The transformer without a head."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **settings)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


# By hand -----------------------------------------------------------------------------------------------------------


def test_a_small_layout_by_hand():
    layout = lay_out(SMALL)
    assert layout.tokens.tolist() == [[3, 4, 5, 6, 1, 7], [8, 9, 1, 0, 0, 0]]
    assert layout.positions[0].tolist() == [0, 1, 2, 3, 4, 2]  # the second answer begins where the prompt ends
    assert layout.positions[1, :3].tolist() == [0, 1, 2]
    assert layout.row.tolist() == [0, 0, 1]
    assert layout.targets.tolist() == [[5, 6, 1], [7, 0, 0], [9, 1, 0]]
    assert layout.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert layout.places.tolist() == [[2, 3, 4], [5, 0, 0], [1, 2, 0]]
    assert layout.before.tolist() == [[1, 2, 3], [1, 0, 0], [0, 1, 0]]
    assert layout.last.tolist() == [4, 5, 2]


def test_a_small_attention_by_hand():
    attention = lay_out(SMALL).attention
    assert attention.shape == (2, 1, 6, 6)
    assert attention[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],  # the second answer sees the prompt and itself, and not the first
    ]
    assert attention[1, 0, :3].int().tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert attention.any(-1).all()  # padding that saw nothing would be not a number


def test_trees_of_one_answer_are_plain_text_that_needs_no_mask():
    layout = lay_out([tree for whole in SMALL for tree in whole.apart()])
    assert layout.tokens.tolist() == [[3, 4, 5, 6, 1], [3, 4, 7, 0, 0], [8, 9, 1, 0, 0]]
    assert layout.arguments() == {"input_ids": layout.tokens, "attention_mask": None, "position_ids": None, "use_cache": False}
    assert layout.last.tolist() == [4, 2, 2]


def test_the_width_of_a_tree_is_that_of_its_row():
    assert [tree.width for tree in SMALL] == [6, 3]
    assert SMALL[0].apart() == [Tree([3, 4], [[5, 6, 1]]), Tree([3, 4], [[7]])]


# Against texts alone -----------------------------------------------------------------------------------------------

TREES = [Tree([3, 4, 5], [[6, 7, 8, 1], [9, 1], [6, 7, 8, 2, 2, 1]]), Tree([5, 5, 5, 5, 2], [[3]]), Tree([7], [[7, 7], [7, 8]])]


@torch.no_grad()
def assert_read_as_alone(model, layout, trees):
    """Whatever the layout: the states of all answers, and those before their tokens, are those of prompt + answer alone.

    Returns what was compared, for each answer: its prompt, the states of its row, and those of its text alone.
    """
    together = model(**layout.arguments()).last_hidden_state
    compared = []
    for number, (prompt, answer) in enumerate((tree.prompt, answer) for tree in trees for answer in tree.answers):
        alone = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).last_hidden_state[0]
        of_row, length = together[layout.row[number]], len(answer)
        torch.testing.assert_close(of_row[layout.places[number, :length]], alone[len(prompt) :], atol=1e-5, rtol=0)
        torch.testing.assert_close(of_row[layout.before[number, :length]], alone[len(prompt) - 1 : -1], atol=1e-5, rtol=0)
        torch.testing.assert_close(of_row[layout.last[number]], alone[-1], atol=1e-5, rtol=0)
        compared.append((prompt, of_row, alone))
    return compared


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_each_text_alone(kind):
    for prompt, of_row, alone in assert_read_as_alone(build(kind, **KINDS[kind]), lay_out(TREES), TREES):
        torch.testing.assert_close(of_row[: len(prompt)], alone[: len(prompt)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_reads_trees_says_so_and_is_left_as_it_was(kind, training):
    model = build(kind, **KINDS[kind]).train(training)
    state = torch.get_rng_state()
    assert reads_trees(model, 64)
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)


OTHERS = {
    "mistral": COMMON | {"sliding_window": 4},
    "gemma2": COMMON | {"head_dim": 8, "sliding_window": 4},
    "bloom": {"vocab_size": 16, "hidden_size": 16, "n_layer": 2, "n_head": 2},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_with_a_sliding_window_or_positions_by_distance_does_not_read_trees(kind):
    model = build(kind, **OTHERS[kind]).train()
    assert not reads_trees(model, 64)
    assert model.training


def test_a_window_that_is_switched_off_is_none():
    assert reads_trees(build("mistral", **COMMON, sliding_window=None), 64)
