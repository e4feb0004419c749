"""Our layer of a cache against the one of transformers that joins keys and values anew each time."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tasks.training.cache import ROOM, RoomyLayer, cache_for


def test_keys_and_values_are_those_of_a_layer_that_joins_them():
    """A prompt, answers to it that branch off, rows that leave, and more tokens than there is room for at once."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = RoomyLayer(), DynamicLayer()
    rows, steps = 3, [*([1] * 5), "repeat", *([1] * 4), "shrink", *([1] * (2 * ROOM)), "reverse", 3, "one", 1]
    orders = {"repeat": [0, 0, 2, 1, 1, 1], "shrink": [0, 4, 2, 5], "reverse": [3, 2, 1, 0], "one": [2]}
    for new in [7, *steps]:
        if isinstance(new, str):
            order = torch.tensor(orders[new])
            rows = len(order)
            ours.reorder_cache(order)
            theirs.reorder_cache(order)
        else:
            states = torch.randn(2, rows, 2, new, 4, generator=generator)
            for found, expected in zip(ours.update(*states.clone()), theirs.update(*states), strict=True):
                assert torch.equal(found, expected)
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


def test_tokens_are_written_into_place():
    layer = RoomyLayer()
    layer.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4))
    layer.update(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4))
    place = layer.keys.data_ptr()
    for _ in range(ROOM):
        layer.update(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4))
    assert layer.keys.data_ptr() == place
    layer.reorder_cache(torch.tensor([1]))
    assert layer.keys.data_ptr() == place


def test_layers_of_other_kinds_stay_what_they_are():
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=2, n_head=2, n_positions=16))
    sliding = MistralForCausalLM(
        MistralConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=4,
        )
    )
    assert [type(layer) for layer in cache_for(plain).layers] == [RoomyLayer, RoomyLayer]
    assert [type(layer) for layer in cache_for(sliding).layers] == [DynamicSlidingWindowLayer, DynamicSlidingWindowLayer]
