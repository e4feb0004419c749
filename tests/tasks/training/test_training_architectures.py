"""Whatever the architecture: one policy while sampling and afterwards, scores that know no neighbours, and weights that learn."""

from dataclasses import dataclass

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.training.logprobs import tree_logprobs
from tasks.training.loop import fit
from tasks.training.models import RewardModel, load_policy, save, score_texts, without_dropout
from tasks.training.sampling import Sampling, sample
from tasks.training.trees import Tree, reads_trees, trees_of
from tasks.training_config import FitConfig

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
    "tie_word_embeddings": False,
}
OF_GPT2 = {"vocab_size": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1, "eos_token_id": EOS}
DROPPED = {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}
TIED = {"tie_word_embeddings": True}
# Short sliding windows, so that answers outgrow them; caps and scales strong enough to matter.
ARCHITECTURES = {
    "gpt2": OF_GPT2 | DROPPED,
    "gpt2, untied": OF_GPT2 | DROPPED | {"tie_word_embeddings": False},
    "llama": COMMON,
    "llama, tied": COMMON | TIED,
    "qwen2": COMMON,
    "qwen2, tied": COMMON | TIED,
    "qwen3": COMMON | {"head_dim": 8},
    "mistral": COMMON | {"sliding_window": 4},
    "gemma": COMMON | TIED | {"head_dim": 8},
    "gemma2": COMMON | TIED | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 0.5},
    "gemma3_text": COMMON | TIED | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 0.5},
    "phi3": COMMON | {"resid_pdrop": 0.3},
    "gpt_neox": COMMON | {"hidden_dropout": 0.3},
    "opt": COMMON | TIED | {"ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.3},
    "bloom": {"vocab_size": 16, "hidden_size": 16, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    "starcoder2": COMMON | TIED | {"residual_dropout": 0.3, "embedding_dropout": 0.3},
    "cohere": COMMON | TIED | {"logit_scale": 3.0},
    "granite": COMMON | {"logits_scaling": 3.0},
}
WITHOUT_CLASSIFIER = {"cohere", "granite"}
SCORING = [name for name in ARCHITECTURES if name not in WITHOUT_CLASSIFIER]
WITHOUT_TREES = {"mistral", "gemma2", "gemma3_text", "bloom"}
"""Sliding windows, and positions by distance."""


def build(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name.split(",")[0], **ARCHITECTURES[name])).float()
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings
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


def assert_same_weights(one, other):
    """Exactly; what they say may differ in the last bit, because sums depend on where in memory a weight begins."""
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in one.state_dict().items())


# The policy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_passes_in_training_mode_are_equal(name):
    model = build(name)
    assert differ_in_training_mode(model)  # the dropout is there to be switched off
    assert not differ_in_training_mode(without_dropout(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampling_and_answer_logprobs_see_one_policy(name, temperature):
    model = without_dropout(build(name))
    prompts, sampling = PROMPTS * 8, Sampling(10, temperature)
    found = sample(model, prompts, sampling, EOS, sampling.noise(len(prompts), seed=0))
    answers = [answer.tokens for answer in found]
    assert len({len(answer) for answer in answers}) > 2  # rows left the batch at different times
    logprobs, _ = tree_logprobs(model, trees_of(prompts, answers), temperature)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
        plain = logits.log_softmax(-1).gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1).tolist()
        assert found[row].logprobs == pytest.approx(plain, abs=1e-5)
        assert logprobs[row, : len(answer)].tolist() == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_likeliest_answers_are_those_of_transformers_one_by_one(name):
    model, sampling = without_dropout(build(name)), Sampling(10, temperature=0)
    found = sample(model, PROMPTS, sampling, EOS, sampling.noise(len(PROMPTS), seed=0))
    for prompt, answer in zip(PROMPTS, found, strict=True):
        alone = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=10, do_sample=False, eos_token_id=EOS
        )
        assert answer.tokens == alone[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trees_are_read_where_the_model_says_so(name):
    model = without_dropout(build(name)).train()
    reads = reads_trees(model.base_model, 64)
    assert reads == (name not in WITHOUT_TREES)
    assert model.training
    if reads:
        tree = Tree([3, 4, 5, 6, 7, 8], [[9, 10, 11, 12, 13, 1], [4, 4, 8, 2, 5, 5, 5, 5, 5, 1], [6]])
        with torch.no_grad():
            together, apart = (tree_logprobs(model, trees, 1.0)[0] for trees in ([tree], tree.apart()))
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@dataclass(frozen=True)
class Row:
    tree: Tree
    width: int = 8
    weight: float = 1.0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_lowers_the_loss_and_what_is_saved_comes_back(name, tokenizer, tmp_path):
    def loss(model, rows):
        return -tree_logprobs(model, [row.tree for row in rows], 1.0)[0].sum()

    model = without_dropout(build(name))
    rows = [Row(Tree(prompt, [[7, 5, EOS]])) for prompt in PROMPTS]
    config = FitConfig(epochs=3, batch=len(rows), learning_rate=0.02, warmup=0.0)
    before = loss(model, rows).item()
    fit(model, rows, loss, config, seed=0, checkpoints=tmp_path / "checkpoints", report=lambda *_, **__: None)
    after = loss(model, rows).item()
    assert after < before - 0.1
    save(model, tokenizer, tmp_path / "model")
    again = load_policy(tmp_path / "model")
    assert_same_weights(again, model)
    assert loss(again, rows).item() == pytest.approx(after, rel=1e-6)
    assert not differ_in_training_mode(again)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == model.config.tie_word_embeddings


# The reward model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORING)
def test_a_text_is_scored_alike_alone_in_a_batch_and_with_whatever_behind_it(name, tokenizer, tmp_path):
    save(build(name), tokenizer, tmp_path / "policy")
    reward = RewardModel.from_policy(tmp_path / "policy", seed=0).train()
    texts = [*PROMPTS, [5, EOS, 6, 0, 7]]  # EOS and PAD within a text are words like any other
    alone = [reward([Tree([], [text])]).item() for text in texts]
    assert alone == [reward([Tree([], [text])]).item() for text in texts]
    for text, score in zip(texts, alone, strict=True):  # read by the plain classifier's body, where the text ends
        with torch.no_grad():
            hidden = reward.body.base_model(input_ids=torch.tensor([text])).last_hidden_state[0, -1]
            assert reward.body.score(hidden).item() == pytest.approx(score, abs=1e-5)
    assert score_texts(reward, texts) == pytest.approx(alone, abs=1e-5)
    assert score_texts(reward, [*texts, [9] * 40])[: len(texts)] == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.1
    reward.save(tokenizer, tmp_path / "reward")
    again = RewardModel.load(tmp_path / "reward")
    assert_same_weights(again, reward)
    assert score_texts(again, texts) == pytest.approx(score_texts(reward, texts), abs=1e-6)
