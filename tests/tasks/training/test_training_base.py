"""The base model from every kind of source, and what is said where a source is no good."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel, PreTrainedTokenizerFast

from tasks.config import TinyConfig
from tasks.data.encoding import encode_answer, encode_prompt
from tasks.data.records import assistant, user
from tasks.errors import ConfigError
from tasks.training.base import TEMPLATE, build_base, tiny_llama
from tasks.training.models import describe, load_policy, save

TINY = TinyConfig(layers=1, width=16, feed_forward=24, heads=2, vocabulary=300, context=64)
TEXTS = ["How warm is the red lamp?", "The red lamp is warm."]


def logits(model, tokens=((3, 76, 77, 1), (4, 100, 101, 102))):
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens)).logits


def build(source):
    return build_base(str(source), TINY, TEXTS, seed=0)


# From nothing --------------------------------------------------------------------------------------------------------


def test_tiny_llama_depends_on_its_seed_alone(tokenizer):
    first = tiny_llama(TINY, tokenizer, seed=7)
    torch.rand(3)
    assert torch.equal(logits(first), logits(tiny_llama(TINY, tokenizer, seed=7)))
    assert not torch.equal(logits(first), logits(tiny_llama(TINY, tokenizer, seed=8)))


def test_tiny_llama_has_the_shape_asked_for():
    model, tokenizer = build("tiny-llama")
    assert len(tokenizer) <= 300
    width, feed_forward, vocabulary = 16, 24, len(tokenizer)
    layer = 4 * width * width + 3 * width * feed_forward + 2 * width
    assert describe(model) == {
        "architecture": "LlamaForCausalLM",
        "parameters": vocabulary * width + layer + width,  # the head is the embedding again
        "context": 64,
        "vocabulary": vocabulary,
    }


def test_pad_and_eos_of_the_tiny_tokenizer_are_tokens_of_their_own(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer("<|user|><|assistant|><|end|>")["input_ids"] == [3, 4, tokenizer.eos_token_id]
    assert tokenizer.bos_token_id is None


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_is_unknown_to_the_tiny_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


# From a folder -------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_model_and_tokenizer(llama, tokenizer, policy_folder):
    model, loaded = build(policy_folder)
    assert torch.equal(logits(model), logits(llama))
    assert loaded("The red lamp")["input_ids"] == tokenizer("The red lamp")["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.padding_side == "left"


def test_a_half_precision_folder_is_read_in_fp32(llama, tokenizer, tmp_path):
    save(llama.to(torch.bfloat16), tokenizer, tmp_path)
    assert {parameter.dtype for parameter in build(tmp_path)[0].parameters()} == {torch.float32}


def folder_with_tokenizer(llama, tokenizer, folder, **special):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **special)
    save(llama, bare, folder)
    return folder


def test_a_tokenizer_without_pad_and_template_is_given_both(llama, tokenizer, tmp_path):
    _, found = build(folder_with_tokenizer(llama, tokenizer, tmp_path, eos_token="<|end|>"))
    assert found.pad_token == "<|end|>"
    assert found.chat_template == TEMPLATE


def test_a_tokenizer_without_eos_is_refused(llama, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="end-of-sequence"):
        build(folder_with_tokenizer(llama, tokenizer, tmp_path, pad_token="<|pad|>"))


def test_a_tokenizer_that_knows_more_tokens_than_the_model_is_refused(make_llama, tokenizer, tmp_path):
    save(make_llama(tokenizer.vocab_size - 1), tokenizer, tmp_path)
    with pytest.raises(ConfigError, match=f"embeddings for {tokenizer.vocab_size - 1} tokens, its tokenizer knows {tokenizer.vocab_size}"):
        build(tmp_path)


def test_a_tokenizer_that_ends_texts_with_a_token_of_no_embedding_is_refused(llama, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=rf"embeddings for {len(tokenizer)} tokens, its tokenizer ends texts with token {len(tokenizer)}"):
        build(folder_with_tokenizer(llama, tokenizer, tmp_path, eos_token="</s>"))


def test_a_tokenizer_to_which_the_models_end_is_a_word_is_refused(llama, tokenizer, tmp_path):
    llama.config.eos_token_id = 77
    with pytest.raises(ConfigError, match=rf"ends texts with token 77 .* takes for the word '{tokenizer.convert_ids_to_tokens(77)}'"):
        build(folder_with_tokenizer(llama, tokenizer, tmp_path, eos_token="<|end|>"))
    llama.config.eos_token_id = 400
    with pytest.raises(ConfigError, match=r"ends texts with token 400 .* does not know"):
        build(folder_with_tokenizer(llama, tokenizer, tmp_path, eos_token="<|end|>"))


@pytest.mark.parametrize("ends", [None, 1, [77, 1], 4])
def test_a_model_may_end_texts_in_several_ways_of_which_the_tokenizer_marks_one(llama, tokenizer, tmp_path, ends):
    """As chat models do, which end turns with a mark of their own: <|assistant|>, 4, is one here, and not the tokenizer's EOS."""
    llama.config.eos_token_id = ends
    save(llama, tokenizer, tmp_path)
    assert build(tmp_path)[1].eos_token_id == 1


@pytest.mark.parametrize("kind", ["cohere", "granite"])
def test_a_model_that_can_not_score_is_refused_before_anything_is_trained(tokenizer, tmp_path, kind):
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(kind, **sizes, num_key_value_heads=2, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    save(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path)
    with pytest.raises(ConfigError, match=f"of the kind {kind}, which transformers has no scoring head for"):
        build(tmp_path)


def test_a_model_whose_scoring_head_reads_other_things_is_refused_too(tokenizer, tmp_path):
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    save(BertLMHeadModel(BertConfig(**sizes, is_decoder=True, eos_token_id=1, pad_token_id=0)), tokenizer, tmp_path)
    with pytest.raises(ConfigError, match="of the kind bert, which"):
        build(tmp_path)


def test_a_model_that_reads_images_too_is_refused(tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 300, "num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=sizes | {"image_size": 28, "patch_size": 14}, eos_token_id=1)
    save(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path)
    with pytest.raises(ConfigError, match="of the kind gemma3, which reads more than text"):
        build(tmp_path)


def beginning(tokenizer, token):
    """The tokenizer's insides, which put a token before every text they are given."""
    inside = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inside.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, inside.token_to_id(token))])
    return inside


@pytest.mark.parametrize("template", [None, "{{ bos_token }}" + TEMPLATE], ids=["ours", "brought"])
@pytest.mark.parametrize("added", [True, False])
def test_a_text_begins_with_bos_once_where_its_model_has_read_it(llama, tokenizer, tmp_path, template, added):
    """By the tokenizer itself (its post-processor), by the template that the model brings, or by both: never twice."""
    inside = beginning(tokenizer, "<|system|>") if added else tokenizer.backend_tokenizer
    special = {"bos_token": "<|system|>", "eos_token": "<|end|>"}
    save(llama, PreTrainedTokenizerFast(tokenizer_object=inside, chat_template=template, **special), tmp_path)
    _, found = build(tmp_path)
    text = encode_prompt(found, [user("How warm?")]) + encode_answer(found, [user("How warm?")], [assistant("Very.")])
    assert (text.count(2), text[0] == 2) == ((1, True) if added or template else (0, False))
    assert text.count(1) == 1
    assert found.eos_token_id == 1


def test_a_pad_that_is_given_does_not_become_what_ends_a_text(llama, tokenizer, tmp_path):
    """PAD and EOS share an id, and the model's own ideas of both are left alone: masks say where text is."""
    folder_with_tokenizer(llama, tokenizer, tmp_path, eos_token="<|end|>")
    model, found = build(tmp_path)
    assert (found.pad_token_id, found.eos_token_id) == (1, 1)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (1, 0)
    assert encode_answer(found, [user("How warm?")], [assistant("Very.")])[-1] == 1
    assert (len(found), model.config.vocab_size) == (len(tokenizer), len(tokenizer))


def test_tokens_added_to_a_tokenizer_get_embeddings_and_change_no_others(llama, tokenizer, tmp_path):
    larger = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", pad_token="[PAD]")
    save(llama, larger, tmp_path)
    model, found = build(tmp_path)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == len(found) == len(tokenizer) + 1
    assert torch.equal(logits(model)[..., : len(tokenizer)], logits(llama))
    assert torch.equal(logits(model), logits(build(tmp_path)[0]))


def to_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


BROKEN = {
    "weights as pickle only": (to_pickle, "no file named model.safetensors"),
    "weights cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]),
        "loaded",
    ),
    "weights empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "loaded"),
    "a weight missing": (without_a_weight, r"lacks weights .*layers\.0\.mlp\.up_proj"),
    "weights of another shape": (lambda folder: with_config(folder, hidden_size=32), "loaded"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
    "config of an unknown kind": (lambda folder: with_config(folder, model_type="nonesuch"), "nonesuch"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "tokenizer cut off": (lambda folder: (folder / "tokenizer.json").write_text("{"), "loaded"),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "tokenizer"),
}


@pytest.mark.parametrize(("breaks", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_refused_with_its_name(policy_folder, breaks, says):
    breaks(policy_folder)
    with pytest.raises(ConfigError, match=says) as caught:
        build(policy_folder)
    assert policy_folder.name in caught.value.what
    assert caught.value.advice


def test_code_that_a_model_brings_is_never_run(policy_folder, tmp_path):
    with_config(policy_folder, model_type="theirs", auto_map={"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"})
    (policy_folder / "theirs.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="custom code"):
        build(policy_folder)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./nowhere", "~/nowhere-at-all", "a/b/c", "nowhere", "nobody/nothing", "no/such.gguf"]
)
def test_a_model_that_does_not_exist_is_named(source):
    with pytest.raises(ConfigError, match=r"^model: ") as caught:
        build(source)
    assert source.strip("./~") in caught.value.what
    assert caught.value.advice


# From GGUF -----------------------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
    "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
}


def write_gguf(path, model, tokenizer):
    """A Llama in F32 as llama.cpp lays it out: the halves of each rotary pair interleaved, the vocabulary as a list."""
    config, heads = model.config, model.config.num_attention_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    trained = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(trained["vocab"], key=trained["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token.startswith("<|") else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in trained["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            array = np.ascontiguousarray(array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape))
        if not name.startswith("lm_head"):  # tied to the embedding
            writer.add_tensor(f"{GGUF_NAMES[name.removesuffix('.weight')]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_file(tokenizer, tmp_path):
    model = tiny_llama(TINY, tokenizer, seed=0)
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    return tmp_path / "tiny.gguf", model


def test_a_gguf_file_gives_its_model_and_tokenizer(gguf_file, tokenizer):
    path, original = gguf_file
    model, found = build(path)
    torch.testing.assert_close(logits(model)[..., : len(tokenizer)], logits(original))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    text = "<|user|>How warm is the blue lamp?<|assistant|>Very.<|end|>"
    assert found(text, add_special_tokens=False)["input_ids"] == tokenizer(text)["input_ids"]
    assert (found.eos_token, found.pad_token, found.chat_template) == ("<|end|>", "<|end|>", TEMPLATE)


def test_a_model_from_gguf_can_be_trained_saved_and_loaded_again(gguf_file, tmp_path):
    model, tokenizer = build(gguf_file[0])
    before = logits(model)
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.logsumexp(-1).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(logits(model), before)
    save(model, tokenizer, tmp_path / "saved")
    assert torch.equal(logits(load_policy(tmp_path / "saved")), logits(model))
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_gguf_file_that_was_cut_off_is_refused(gguf_file, share):
    path, _ = gguf_file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ConfigError, match=r"tiny\.gguf can't be read as GGUF"):
        build(path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path, policy_folder):
    shutil.copy(policy_folder / "model.safetensors", tmp_path / "wrong.gguf")
    with pytest.raises(ConfigError, match=r"wrong\.gguf can't be read as GGUF"):
        build(tmp_path / "wrong.gguf")
