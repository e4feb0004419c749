"""Adapters: nothing changes before training, only they are trained, and merged they are a plain model that says the same."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tasks.errors import ConfigError
from tasks.training.adapters import adapters_off, has_adapters, merged, reference_of, with_adapters
from tasks.training.logprobs import tree_logprobs
from tasks.training.models import RewardModel, freeze_lower, load_policy, save, with_checkpointing, without_dropout
from tasks.training.processes import Processes
from tasks.training.trees import Tree
from tasks.training_config import AdapterConfig, ComputeConfig

RANK, WIDTH, WIDE = 2, 16, 24
CONFIG = AdapterConfig(rank=RANK, alpha=6.0)
TREES = [Tree([3, 4, 5], [[6, 7, 1], [8, 1]]), Tree([9, 3], [[5, 5, 4, 1]])]
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def llama_of(tied):
    sizes = {"vocab_size": 12, "hidden_size": WIDTH, "intermediate_size": WIDE, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, eos_token_id=1, bos_token_id=None, tie_word_embeddings=tied))


KINDS = {
    "llama, tied": lambda: llama_of(True),
    "llama, untied": lambda: llama_of(False),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)),
}


def build(kind):
    torch.manual_seed(0)
    model = KINDS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return without_dropout(model).eval()


@pytest.fixture(params=KINDS)
def policy(request):
    return build(request.param)


@pytest.fixture
def llama():
    return build("llama, tied")


@pytest.fixture
def reward(llama, tokenizer, tmp_path):
    save(llama, tokenizer, tmp_path / "sft")
    return RewardModel.from_policy(tmp_path / "sft", seed=0)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def says(model):
    """Scores, or log-probabilities of answers."""
    with torch.no_grad():
        return model(TREES) if isinstance(model, RewardModel) else tree_logprobs(model, TREES, 1.0)[0]


def loss_of(model):
    return model(TREES).square().sum() if isinstance(model, RewardModel) else -tree_logprobs(model, TREES, 1.0)[0].sum()


def train(model, steps=5):
    """Losses before and after."""
    before = says(model)
    first = loss_of(model).item()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.03)
    for _ in range(steps):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss_of(model).item() < first
    assert (says(model) - before).abs().max() > 0.1


# What is put in ----------------------------------------------------------------------------------------------------


def test_rank_0_does_nothing(llama):
    before = dict(llama.named_modules())
    assert with_adapters(llama, AdapterConfig(), seed=0) is llama
    assert dict(llama.named_modules()) == before
    assert trained(llama) == dict(llama.named_parameters()).keys()
    assert not has_adapters(llama)
    assert merged(llama) is llama
    assert dict(llama.named_modules()) == before


def test_before_training_the_model_says_what_it_said(policy):
    before, kind = says(policy), type(policy)
    assert with_adapters(policy, CONFIG, seed=0) is policy
    assert type(policy) is kind
    assert has_adapters(policy)
    assert torch.equal(says(policy), before)


def test_only_adapters_are_trained_and_the_head_has_none(llama):
    with_adapters(llama, CONFIG, seed=0)
    assert {name.split(".")[4] for name in trained(llama)} == LINEAR
    assert all(".lora_" in name for name in trained(llama))
    block = 4 * (WIDTH + WIDTH) + 3 * (WIDTH + WIDE)
    assert sum(parameter.numel() for parameter in llama.parameters() if parameter.requires_grad) == 2 * RANK * block


def test_the_head_of_a_reward_model_is_trained_beside_its_adapters(reward):
    before = says(reward)
    with_adapters(reward, CONFIG, seed=0)
    assert torch.equal(says(reward), before)
    assert {name for name in trained(reward) if ".lora_" not in name} == {"body.score.weight"}
    head = reward.body.score.weight.clone()
    train(reward)
    assert not torch.equal(reward.body.score.weight, head)


def test_adapters_depend_on_their_seed_alone_and_leave_the_shared_generator_as_it_was(policy):
    def drawn(model):
        return {name: parameter for name, parameter in model.named_parameters() if "lora_A" in name}

    kind = next(kind for kind in KINDS if type(build(kind)) is type(policy))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = drawn(with_adapters(policy, CONFIG, seed=7))
    assert torch.equal(torch.get_rng_state(), state)
    again, other = (drawn(with_adapters(build(kind), CONFIG, seed)) for seed in (7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_layers_are_chosen_by_name(llama):
    with_adapters(llama, AdapterConfig(rank=1, layers=["q_proj", "down_proj"]), seed=0)
    assert {name.split(".")[4] for name in trained(llama)} == {"q_proj", "down_proj"}
    one = with_adapters(build("gpt2"), AdapterConfig(rank=1, layers="c_fc"), seed=0)
    assert {name.split(".lora_")[0] for name in trained(one)} == {f"transformer.h.{i}.mlp.c_fc" for i in (0, 1)}


@pytest.mark.parametrize("layers", [["q_proj", "q_prok"], "q_prok", ["lm_head", "q_prok"], []])
def test_layers_that_the_model_does_not_have_are_refused(llama, layers):
    with pytest.raises(ConfigError, match=r"adapter\.layers") as caught:
        with_adapters(llama, AdapterConfig(rank=1, layers=layers), seed=0)
    assert "q_prok" in caught.value.what or not layers
    assert "q_proj" not in caught.value.what
    assert all(name in caught.value.advice for name in LINEAR)
    assert not has_adapters(llama)


def test_checkpoints_hold_adapters_only_and_bring_another_model_to_the_same_place(policy):
    kind = next(kind for kind in KINDS if type(build(kind)) is type(policy) and build(kind).config == policy.config)
    here = Processes(ComputeConfig(device="cpu"))
    with_adapters(policy, CONFIG, seed=0)
    train(policy)
    kept = here.weights(policy)
    assert kept.keys() == trained(policy)
    other = with_adapters(build(kind), CONFIG, seed=1)
    here.load(other, kept)
    assert torch.equal(says(other), says(policy))


def test_checkpointing_gives_adapters_the_same_gradients(policy):
    with_adapters(policy, CONFIG, seed=0)
    train(policy)
    policy.train()
    found = []
    for checkpointing in (False, True):
        with_checkpointing(policy, ComputeConfig(gradient_checkpointing=checkpointing))
        policy.zero_grad()
        loss_of(policy).backward()
        found.append([parameter.grad for parameter in policy.parameters() if parameter.requires_grad])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-6)
        assert plain.abs().max() > 0


# What comes out ----------------------------------------------------------------------------------------------------


def test_merging_by_hand(llama):
    """The weight gains alpha / rank times the product of the two matrices: 6 / 2 * 2 * (0.5 * 0.25) = 0.75 in every place."""
    layer = llama.model.layers[1].mlp.up_proj
    before = layer.weight.clone()
    with_adapters(llama, AdapterConfig(rank=2, alpha=6.0, layers=["up_proj"]), seed=0)
    with torch.no_grad():
        adapted = llama.model.layers[1].mlp.up_proj
        adapted.lora_A["default"].weight.fill_(0.5)
        adapted.lora_B["default"].weight.fill_(0.25)
    merged(llama)
    torch.testing.assert_close(llama.model.layers[1].mlp.up_proj.weight, before + 0.75)


def test_merged_is_a_plain_model_that_says_the_same_and_is_saved_like_any_other(policy, tokenizer, tmp_path):
    plain_names, tied = policy.state_dict().keys(), policy.config.tie_word_embeddings
    with_adapters(policy, CONFIG, seed=0)
    train(policy)
    with_them = says(policy)
    found = merged(policy)
    assert found.state_dict().keys() == plain_names
    assert not has_adapters(found)
    assert not any("lora" in type(module).__module__ for module in found.modules())
    assert trained(found) == dict(found.named_parameters()).keys()
    torch.testing.assert_close(says(found), with_them, atol=1e-5, rtol=0)
    assert (found.get_output_embeddings().weight is found.get_input_embeddings().weight) == tied
    save(found, tokenizer, tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) == (not tied)
    assert {path.name for path in tmp_path.glob("*adapter*")} == set()
    again = load_policy(tmp_path)
    torch.testing.assert_close(says(again), says(found), atol=1e-6, rtol=1e-6)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied


def test_a_reward_model_with_adapters_is_saved_with_its_head_and_bias(reward, tokenizer, tmp_path):
    with_adapters(reward, CONFIG, seed=0)
    train(reward)
    reward.bias = 0.5
    scores = says(reward)
    merged(reward).save(tokenizer, tmp_path / "reward")
    torch.testing.assert_close(says(RewardModel.load(tmp_path / "reward")), scores, atol=1e-5, rtol=0)


# The reference -----------------------------------------------------------------------------------------------------


def test_switched_off_the_policy_is_its_own_reference(policy):
    before = says(policy)
    with_adapters(policy, CONFIG, seed=0)
    train(policy)
    learnt = says(policy)
    with adapters_off(policy) as reference:
        assert reference is policy
        assert torch.equal(says(reference), before)
    assert torch.equal(says(policy), learnt)
    with torch.inference_mode(), adapters_off(policy):
        assert torch.equal(says(policy), before)
    with pytest.raises(ZeroDivisionError), adapters_off(policy):
        _ = 1 / 0
    assert torch.equal(says(policy), learnt)


def test_frozen_layers_stay_frozen_when_adapters_are_switched_on_again(llama):
    with_adapters(llama, CONFIG, seed=0)
    freeze_lower(llama, 1)
    expected = trained(llama)
    assert {name.split(".")[2] for name in expected} == {"1"}
    with adapters_off(llama):
        assert trained(llama) == set()
    assert trained(llama) == expected


@pytest.mark.parametrize("rank", [0, RANK])
def test_the_reference_of_a_policy_is_what_it_was(llama, rank):
    with_adapters(llama, AdapterConfig(rank=rank), seed=0)
    before = says(llama)
    reference = reference_of(llama)
    train(llama)
    with reference() as model:
        assert torch.equal(says(model), before)
        assert (model is llama) == (rank > 0)
    train(llama)  # and the policy can still be trained
    with reference() as model:
        assert torch.equal(says(model), before)


# In the stages -----------------------------------------------------------------------------------------------------


def test_stages_train_with_adapters_write_plain_models_and_end_alike_after_a_kill(line, toy, tmp_path):
    config = toy(adapter={"rank": 4}, compute={"gradient_checkpointing": True})
    for name, model in (("sft", load_policy), ("reward_model", RewardModel.load)):
        found = line.run(name, config)
        weights = load_file(found.path / "model" / "model.safetensors")
        plain = model(found.path / "model")
        assert weights.keys() <= (plain.body if name == "reward_model" else plain).state_dict().keys()
        line.kill(name, 10, tmp_path, config)
        assert line.run(name, config, runs=tmp_path).digest == found.digest
        if name == "sft":
            before, start = load_file(line["base"].path / "model" / "model.safetensors"), "model.embed_tokens.weight"
            assert torch.equal(weights[start], before[start])  # what has no adapter is the base model's
            assert found.metrics["perplexity"] < found.metrics["perplexity_before"] - 1
        else:
            assert found.metrics["accuracy"] > 0.5


# Four bits ---------------------------------------------------------------------------------------------------------

FOUR_BITS = AdapterConfig(rank=RANK, base="4bit")


def test_four_bits_without_bitsandbytes_say_what_to_install(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(ConfigError, match=r"adapter\.base: 4bit needs bitsandbytes") as caught:
        with_adapters(llama, FOUR_BITS, seed=0)
    assert 'pip install "prefline[4bit]"' in caught.value.advice


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install prefline[4bit]")


@pytest.mark.parametrize("kind", ["llama, tied", "llama, untied", "reward"])
def test_four_bits_are_trained_and_merged_into_a_model_of_fp32_that_says_the_same(bitsandbytes, kind, reward, tokenizer, tmp_path):
    model = reward if kind == "reward" else build(kind)
    names, before = model.state_dict().keys(), says(model)
    with_adapters(model, FOUR_BITS, seed=0)
    small = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8}
    assert {name.split(".")[-3] for name in small} == LINEAR
    assert len(small) == 2 * len(LINEAR)
    assert {name for name in trained(model) if ".lora_" not in name} == ({"body.score.weight"} if kind == "reward" else set())
    rounded = says(model)
    assert not torch.equal(rounded, before)
    train(model)
    learnt = says(model)
    if kind != "reward":
        with adapters_off(model):
            assert torch.equal(says(model), rounded)
    found = merged(model)
    assert found.state_dict().keys() == names
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    torch.testing.assert_close(says(found), learnt, atol=1e-5, rtol=0)
    if kind == "reward":
        found.save(tokenizer, tmp_path / "merged")
    else:
        save(found, tokenizer, tmp_path / "merged")
    again = (RewardModel.load if kind == "reward" else load_policy)(tmp_path / "merged")
    torch.testing.assert_close(says(again), says(found), atol=1e-6, rtol=1e-6)


def test_four_bits_are_near_the_weights_they_stand_for(bitsandbytes, llama):
    """NF4's 16 values, times the largest weight of a block, are at most 0.304 apart: no weight moves by more than half of that."""
    before = {name: weight.clone() for name, weight in llama.state_dict().items()}
    after = merged(with_adapters(llama, FOUR_BITS, seed=0)).state_dict()
    for name, weight in before.items():
        moved = (after[name] - weight).abs().max()
        assert (moved > 0) == (name.split(".")[-2] in LINEAR)
        assert moved < 0.16 * weight.abs().max()


def test_four_bits_are_refused_for_a_model_without_linear_layers(bitsandbytes):
    with pytest.raises(ConfigError, match=r"adapter\.base: 4bit .* gpt2"):
        with_adapters(build("gpt2"), FOUR_BITS, seed=0)
