"""One policy, whatever the architecture: no dropout, and the same log-probabilities while sampling and afterwards."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.errors import ConfigError
from tasks.training.logprobs import answer_logprobs
from tasks.training.models import RewardModel, load_policy, score_texts, without_dropout
from tasks.training.sampling import Sampling, sample

EOS = 1
PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [2, 3], [5, 6, 7], [8], [4, 4, 4, 4]]
COMMON = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "attention_dropout": 0.3,
}
OF_GPT2 = {"vocab_size": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1, "eos_token_id": EOS}
# Short sliding windows, so that answers outgrow them; caps and scales strong enough to matter.
ARCHITECTURES = {
    "gpt2": OF_GPT2 | {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "llama": COMMON,
    "qwen2": COMMON,
    "mistral": COMMON | {"sliding_window": 4},
    "gemma": COMMON | {"head_dim": 8},
    "gemma2": COMMON | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 0.5},
    "gemma3_text": COMMON | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 0.5},
    "phi3": COMMON | {"resid_pdrop": 0.3},
    "gpt_neox": COMMON | {"hidden_dropout": 0.3},
    "opt": COMMON | {"ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.3},
    "bloom": {"vocab_size": 16, "hidden_size": 16, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    "starcoder2": COMMON | {"residual_dropout": 0.3, "embedding_dropout": 0.3},
    "cohere": COMMON | {"logit_scale": 3.0},
    "granite": COMMON | {"logits_scaling": 3.0},
}
WITHOUT_CLASSIFIER = {"cohere", "granite"}


def build(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **ARCHITECTURES[name])).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def differ_in_training_mode(model):
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4]])
    model.train()
    with torch.no_grad():
        first, second = (model(input_ids=tokens).logits for _ in range(2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_passes_in_training_mode_are_equal(name):
    model = build(name)
    assert differ_in_training_mode(model)  # the dropout is there to be switched off
    assert not differ_in_training_mode(without_dropout(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampling_and_answer_logprobs_see_one_policy(name, temperature):
    model = without_dropout(build(name))
    prompts = PROMPTS * 8
    found = sample(model, prompts, Sampling(10, temperature), EOS, torch.Generator().manual_seed(0))
    answers = [answer.tokens for answer in found]
    assert len({len(answer) for answer in answers}) > 2  # rows left the batch at different times
    logprobs, _, _ = answer_logprobs(model, prompts, answers, temperature)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
        plain = logits.log_softmax(-1).gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1).tolist()
        assert found[row].logprobs == pytest.approx(plain, abs=1e-5)
        assert logprobs[row, : len(answer)].tolist() == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - WITHOUT_CLASSIFIER))
def test_policy_and_reward_model_load_without_dropout_and_score_alone_as_in_a_batch(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    assert not differ_in_training_mode(load_policy(tmp_path))
    reward = RewardModel.from_policy(tmp_path, seed=0)
    tokens, mask = torch.tensor([PROMPTS[0]]), torch.ones(1, 7, dtype=torch.long)
    reward.train()
    assert torch.equal(reward(tokens, mask), reward(tokens, mask))
    together = score_texts(reward, PROMPTS)
    assert together == pytest.approx([score_texts(reward, [prompt])[0] for prompt in PROMPTS], abs=1e-5)
    assert max(together) - min(together) > 0.1


@pytest.mark.parametrize("name", sorted(WITHOUT_CLASSIFIER))
def test_an_architecture_that_can_not_score_is_refused_by_name(name, tmp_path):
    build(name).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=name):
        RewardModel.from_policy(tmp_path, seed=0)
