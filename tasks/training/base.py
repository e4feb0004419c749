"""The base model and its tokenizer: from a name, a folder, a GGUF file, or from nothing.

Always with trust_remote_code off and safetensors only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tasks.config import TinyConfig
from tasks.errors import ConfigError

TINY = "tiny-llama"

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""For a model that brings no chat template. encode_prompt leaves BOS to templates, so one that belongs is put before it."""


def build_base(source: str, tiny: TinyConfig, texts: Iterable[str], seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and tokenizer that `model:` in params.yaml names.

    source: "tiny-llama" (random weights, tokenizer trained on texts), a .gguf file, a local folder, or a Hugging Face
    name. Raises ConfigError where there is nothing of that name.
    """
    if source == TINY:
        tokenizer = train_tokenizer(texts, tiny.vocabulary)
        return tiny_llama(tiny, tokenizer, seed), tokenizer
    model, tokenizer = pretrained(source, seed=seed)
    _must_score(source, model)
    return model, tokenizer


def pretrained(source: str, key: str = "model", seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model and its tokenizer, which has a chat template: from a .gguf file, a local folder or a Hugging Face name.

    key: of the configuration, for messages. Raises ConfigError where there is nothing of that name, or nothing that fits.
    """
    path = Path(source).expanduser()
    model, tokenizer = _from_gguf(path, key) if path.suffix == ".gguf" else _from_hub(source, path, key)
    _must_belong(source, model, tokenizer, key)
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:  # tokens added later, as reading a GGUF file does: a text may hold them
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # only fills a rectangle; masks say where text is
    if tokenizer.chat_template is None:
        tokenizer.chat_template = ("{{ bos_token }}" if _begins_with_bos(tokenizer) else "") + TEMPLATE
    tokenizer.padding_side = "left"
    return model, tokenizer


def _must_score(source: str, model: PreTrainedModel) -> None:
    """Raises ConfigError where no reward model can be made of the model: now, and not when SFT is done."""
    if model.config.get_text_config() is not model.config:
        raise ConfigError(
            f"model: {source} is of the kind {model.config.model_type}, which reads more than text.", "Choose a model of text alone."
        )
    try:
        with torch.device("meta"):  # shapes without weights
            scorer = AutoModelForSequenceClassification.from_config(model.config)
    except ValueError:
        scorer = None
    if not isinstance(getattr(scorer, "score", None), nn.Linear):
        raise ConfigError(
            f"model: {source} is of the kind {model.config.model_type}, which transformers has no scoring head for: "
            "it can't be made a reward model.",
            "Choose another base model, for instance of the kinds llama, qwen2, gemma2, mistral or gpt2.",
        )


def _must_belong(source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Raises ConfigError where the tokenizer has no EOS, or shows that it is another model's."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ConfigError(
            f"{key}: {source} has a tokenizer without an end-of-sequence token.",
            "Prefline trains where answers end; choose a model whose tokenizer has one.",
        )
    embeddings = model.get_input_embeddings().num_embeddings
    if max(tokenizer.vocab_size, eos + 1) > embeddings:
        knows = f"knows {tokenizer.vocab_size}" if eos < embeddings else f"ends texts with token {eos}"
        raise ConfigError(
            f"{key}: {source} has embeddings for {embeddings} tokens, its tokenizer {knows}.",
            "The two do not belong together; take both from one place.",
        )
    ends = model.config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if ends and marks.isdisjoint(ends):
        word = tokenizer.convert_ids_to_tokens(ends[0]) if ends[0] < len(tokenizer) else None
        raise ConfigError(
            f"{key}: {source} ends texts with token {ends[0]} (eos_token_id in config.json), which its tokenizer "
            + ("does not know." if word is None else f"takes for the word {word!r}."),
            "If the two belong together set eos_token_id to the tokenizer's; else take both from one place.",
        )


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does the tokenizer put a BOS before every text it is given, as its model has read them all?"""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _from_gguf(path: Path, key: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantised to fp32 and rebuilt without the quantisation settings, which would refuse to be saved or trained."""
    if not path.is_file():
        raise ConfigError(f"{key}: no file {path}.", "Give the path of a .gguf file, a folder or a Hugging Face name.")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, OSError, KeyError, NotImplementedError, struct.error) as error:
        raise ConfigError(
            f"{key}: {path} can't be read as GGUF ({error}).", "Is it whole, and an architecture that transformers converts?"
        ) from error
    config = AutoConfig.for_model(
        loaded.config.model_type, **{k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "model_type")}
    )
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model.float(), tokenizer


def _from_hub(source: str, path: Path, key: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not (path / "config.json").is_file():
        raise ConfigError(
            f"{key}: {path} is not a folder with a model (no config.json).",
            "Give a folder in Hugging Face format, a .gguf file or a Hugging Face name.",
        )
    place = path if looks_local else source
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{key}: {source} can't be loaded ({reason}).",
            "Without a network a name must be in the local cache already; a folder or a .gguf file always works.",
        ) from error
    if found["missing_keys"]:
        raise ConfigError(
            f"{key}: {source} lacks weights that a {type(model).__name__} needs: {', '.join(sorted(found['missing_keys'])[:3])}.",
            "They would be random. Give a causal language model whose files are all there.",
        )
    return model, tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the texts, so that no text is unknown to it. PAD and EOS are tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=special[2:],
        chat_template=TEMPLATE,
        padding_side="left",
    )


def tiny_llama(tiny: TinyConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Llama from random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=tiny.width,
            intermediate_size=tiny.feed_forward,
            num_hidden_layers=tiny.layers,
            num_attention_heads=tiny.heads,
            num_key_value_heads=tiny.heads,
            max_position_embeddings=tiny.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
