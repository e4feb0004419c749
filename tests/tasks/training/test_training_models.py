"""Models on disk and in memory: saving and loading, memory traded for time, and layers that stay as they are."""

import copy
import errno

import pytest
import torch
from safetensors import SafetensorError
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tasks.errors import ConfigError
from tasks.training.base import train_tokenizer
from tasks.training.logprobs import tree_logprobs
from tasks.training.models import (
    RewardModel,
    context_of,
    describe,
    freeze_lower,
    load_policy,
    reference_sharing,
    save,
    tokenizer_fingerprint,
    with_checkpointing,
)
from tasks.training.trees import Tree
from tasks.training_config import ComputeConfig

TREES = [Tree([3, 4, 5], [[6, 7, 1], [8, 1]]), Tree([9, 3], [[5, 5, 4, 1]])]
CHECKPOINTING = ComputeConfig(gradient_checkpointing=True)


def logits(model, tokens=((3, 6, 7, 1), (4, 10, 11, 2))):
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens)).logits


@pytest.fixture
def make_deep():
    """make_deep(tied) -> a Llama of three blocks that knows 12 tokens."""

    def make(tied):
        torch.manual_seed(0)
        sizes = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, eos_token_id=1, bos_token_id=None, tie_word_embeddings=tied))

    return make


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=33, bos_token_id=1, eos_token_id=1))


# On disk -----------------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_with_equal_logits(llama, policy_folder):
    assert torch.equal(logits(load_policy(policy_folder)), logits(llama))


def test_weights_are_saved_as_safetensors_and_nothing_that_can_run_code(policy_folder):
    assert {path.suffix for path in policy_folder.iterdir()} == {".json", ".safetensors", ".jinja"}


def test_a_half_precision_folder_is_loaded_in_fp32(llama, tokenizer, tmp_path):
    save(llama.to(torch.bfloat16), tokenizer, tmp_path)
    assert {parameter.dtype for parameter in load_policy(tmp_path).parameters()} == {torch.float32}


def test_a_full_disk_while_saving_is_an_os_error(llama, tokenizer, tmp_path, monkeypatch):
    def full(_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(llama, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save(llama, tokenizer, tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_the_fingerprint_tells_vocabularies_apart(llama, tokenizer, tmp_path):
    for name, kind in {"one": tokenizer, "same": tokenizer, "other": train_tokenizer(["blue kettle"] * 9, 290)}.items():
        save(llama, kind, tmp_path / name)
    one, same, other = (tokenizer_fingerprint(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other


def test_the_context_is_read_under_either_of_its_names(make_llama, gpt2):
    assert context_of(make_llama(5, context=77)) == 77
    assert context_of(gpt2) == 33


def test_a_description_counts_a_tied_head_once(make_deep):
    block = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16
    for tied, heads in ((True, 0), (False, 1)):
        assert describe(make_deep(tied))["parameters"] == 12 * 16 + 3 * block + 16 + heads * 12 * 16


# Gradient checkpointing --------------------------------------------------------------------------------------------


def gradients(model, loss):
    """By parameter, and how often a block was worked through, forward and again while going backward."""
    calls = []
    layers = (model.body if isinstance(model, RewardModel) else model).base_model.layers
    for layer in layers:
        layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    loss(model).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, len(calls)


def policy_loss(model):
    return -tree_logprobs(model, TREES, 1.0)[0].sum()


def reward_loss(model):
    return model(TREES).square().sum()


@pytest.mark.parametrize("loss", [policy_loss, reward_loss])
def test_checkpointing_gives_the_same_gradients_in_two_passes_through_each_block(make_deep, tokenizer, tmp_path, loss):
    model = make_deep(tied=True)
    if loss is reward_loss:
        save(model, tokenizer, tmp_path)
        model = RewardModel.from_policy(tmp_path, seed=0)
    plain, once = gradients(with_checkpointing(copy.deepcopy(model), ComputeConfig()), loss)
    found, twice = gradients(with_checkpointing(model, CHECKPOINTING), loss)
    assert (once, twice) == (3, 6)
    assert plain.keys() == found.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-6)
        assert gradient.abs().max() > 0


# Frozen layers -----------------------------------------------------------------------------------------------------


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def of_blocks(model, *numbers):
    return {name for name, _ in model.named_parameters() if any(f".{number}." in name for number in numbers)}


@pytest.mark.parametrize(("tied", "head"), [(True, set()), (False, {"lm_head.weight"})])
def test_embeddings_and_lower_blocks_are_frozen_and_a_tied_head_with_them(make_deep, tied, head):
    model = make_deep(tied)
    everything = trained(model)
    freeze_lower(model, 0)
    assert trained(model) == everything
    freeze_lower(model, 2)
    assert trained(model) == of_blocks(model, 2) | {"model.norm.weight"} | head
    freeze_lower(model, 3)
    assert trained(model) == {"model.norm.weight"} | head


def test_embeddings_of_positions_are_frozen_too(gpt2):
    freeze_lower(gpt2, 1)
    assert trained(gpt2) == of_blocks(gpt2, 1) | {"transformer.ln_f.weight", "transformer.ln_f.bias"}


def test_more_layers_to_freeze_than_there_are_is_refused(make_deep):
    with pytest.raises(ConfigError, match=r"policy\.frozen_layers: 4, but the model has 3 layers"):
        freeze_lower(make_deep(tied=True), 4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [0, 2])
def test_a_reference_shares_what_is_frozen_and_stays_what_it_is(make_deep, tied, frozen):
    policy = make_deep(tied)
    freeze_lower(policy, frozen)
    reference = reference_sharing(policy)
    theirs = dict(reference.named_parameters())
    for name, parameter in policy.named_parameters():
        assert (theirs[name].data_ptr() == parameter.data_ptr()) == (not parameter.requires_grad)
    for name, buffer in policy.named_buffers():
        assert dict(reference.named_buffers())[name].data_ptr() == buffer.data_ptr()
    assert trained(reference) == set()
    assert not reference.training
    before = logits(policy)
    assert torch.equal(logits(reference), before)
    optimizer = torch.optim.AdamW([parameter for parameter in policy.parameters() if parameter.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        policy_loss(policy).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(logits(reference), before)
    assert (logits(policy) - before).abs().max() > 0.1
