"""Models: the base model from a name, a folder, a GGUF file or from nothing; batches of tokens; the reward model.

Always with trust_remote_code off and safetensors only. Padding is handled by masks and never by the PAD id, so that a
tokenizer whose PAD is its EOS works as well as one with a PAD of its own.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
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
from transformers.utils import logging as transformers_logging

from tasks.config import TinyConfig
from tasks.data.records import digest
from tasks.errors import ConfigError

transformers_logging.disable_progress_bar()  # the stage's own bar is enough
transformers_logging.set_verbosity_error()

TINY = "tiny-llama"
REWARD_BIAS = "prefline_reward_bias"
"""Key in a reward model's config.json: added to every score, so that demonstrations have mean 0."""

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""For a model that brings no chat template."""


def load_policy(folder: Path) -> PreTrainedModel:
    """A causal language model from a folder that Prefline wrote, in fp32, with dropout off."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    return without_dropout(model)


def without_dropout(model: nn.Module) -> nn.Module:
    """Dropout off for good, in training mode too: a ratio of two passes over one answer must be exactly 1."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    for owner in [*model.modules(), *configs]:  # some architectures keep a number and call F.dropout
        for name, value in list(vars(owner).items()):
            if "drop" in name and type(value) is float:
                setattr(owner, name, 0.0)
        if isinstance(owner, nn.Dropout):
            owner.p = 0.0
    return model


# The base model ----------------------------------------------------------------------------------------------------


def build_base(source: str, tiny: TinyConfig, texts: Iterable[str], seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and tokenizer that `model:` in params.yaml names.

    source: "tiny-llama" (random weights, tokenizer trained on texts), a .gguf file, a local folder, or a Hugging Face
    name. Raises ConfigError where there is nothing of that name.
    """
    if source == TINY:
        tokenizer = train_tokenizer(texts, tiny.vocabulary)
        return tiny_llama(tiny, tokenizer, seed), tokenizer
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        model, tokenizer = _from_gguf(path)
    else:
        model, tokenizer = _from_hub(source, path)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model: {source} has a tokenizer without an end-of-sequence token.",
            "Prefline trains where answers end; choose a model whose tokenizer has one.",
        )
    embeddings = model.get_input_embeddings().num_embeddings
    if tokenizer.vocab_size > embeddings:
        raise ConfigError(
            f"model: {source} has embeddings for {embeddings} tokens, its tokenizer knows {tokenizer.vocab_size}.",
            "The two do not belong together; take both from one place.",
        )
    if len(tokenizer) > embeddings:  # tokens added later, as reading a GGUF file does: a text may hold them
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # only fills a rectangle; masks say where text is
    if tokenizer.chat_template is None:
        tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = "left"
    return model, tokenizer


def _from_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantised to fp32 and rebuilt without the quantisation settings, which would refuse to be saved or trained."""
    if not path.is_file():
        raise ConfigError(f"model: no file {path}.", "Give the path of a .gguf file, a folder or a Hugging Face name.")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, OSError, KeyError, NotImplementedError, struct.error) as error:
        raise ConfigError(
            f"model: {path} can't be read as GGUF ({error}).", "Is it whole, and an architecture that transformers converts?"
        ) from error
    config = AutoConfig.for_model(
        loaded.config.model_type, **{k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "model_type")}
    )
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model.float(), tokenizer


def _from_hub(source: str, path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not (path / "config.json").is_file():
        raise ConfigError(
            f"model: {path} is not a folder with a model (no config.json).",
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
            f"model: {source} can't be loaded ({reason}).",
            "Without a network a name must be in the local cache already; a folder or a .gguf file always works.",
        ) from error
    if found["missing_keys"]:
        raise ConfigError(
            f"model: {source} lacks weights that a {type(model).__name__} needs: {', '.join(sorted(found['missing_keys'])[:3])}.",
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


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model folder in Hugging Face format, weights as safetensors. Raises OSError where the disk is full."""
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # it hides the system's error number in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(folder)) from error
    tokenizer.save_pretrained(folder)


def context_of(model: PreTrainedModel) -> int:
    """The longest text the model can read, in tokens."""
    return int(getattr(model.config, "max_position_embeddings", 0) or getattr(model.config, "n_positions", 0) or 1 << 30)


# Batches of tokens ----------------------------------------------------------------------------------------------------------


def pad(rows: list[list[int]], value: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """Rows as one rectangle and its mask, both (rows, longest), int64."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), value)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return tokens, mask


def positions(mask: Tensor) -> Tensor:
    """Position ids that count from a row's first real token, whichever side the padding is on."""
    return (mask.cumsum(-1) - mask).long()


# The reward model --------------------------------------------------------------------------------------------------


class RewardModel(nn.Module):
    """A language model's body with a scalar head; the score of a text is read at its own last token.

    Saved as a Hugging Face sequence classifier of one label, plus a bias in its config.json.
    """

    def __init__(self, body: PreTrainedModel) -> None:
        super().__init__()
        self.body: PreTrainedModel = without_dropout(body)
        self.bias = float(getattr(body.config, REWARD_BIAS, 0.0))

    @classmethod
    def from_policy(cls, folder: Path, seed: int) -> RewardModel:
        """The policy's body with a fresh head: weight N(0, 1 / sqrt(d + 1)), bias 0 (Stiennon et al. 2020)."""
        model = cls._read(folder, num_labels=1)
        head: nn.Linear = model.body.score
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.normal_(0.0, (head.in_features + 1) ** -0.5, generator=generator)
        return model

    @classmethod
    def load(cls, folder: Path) -> RewardModel:
        return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path, **config: int) -> RewardModel:
        try:
            body = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, **config
            )
        except ValueError as error:
            kind = AutoConfig.from_pretrained(folder).model_type
            raise ConfigError(
                f"model: {kind} can't be made a reward model: transformers has no sequence classifier for it.",
                "Choose another base model, for instance of the kinds llama, qwen2, gemma2, mistral or gpt2.",
            ) from error
        return cls(body)

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        setattr(self.body.config, REWARD_BIAS, self.bias)
        save(self.body, tokenizer, folder)

    def values(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The head's output at every position, (rows, time): what a critic needs."""
        return self._head(self._hidden(tokens, mask))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Scores of texts, (rows,). The mask says where a text ends, never a token's id."""
        return self._head(self._hidden(tokens, mask)[torch.arange(len(tokens)), mask.cumsum(1).argmax(1)])

    def _hidden(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.body.base_model(input_ids=tokens, attention_mask=mask, position_ids=positions(mask), use_cache=False).last_hidden_state

    def _head(self, hidden: Tensor) -> Tensor:
        return self.body.score(hidden).squeeze(-1) + self.bias


@torch.inference_mode()
def score_texts(model: RewardModel, rows: list[list[int]], tokens_at_once: int = 8192) -> list[float]:
    """Scores of token rows, in their order, whatever their neighbours."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = [0.0] * len(rows)
    while order:
        longest = len(rows[order[-1]])
        take = order[-max(1, tokens_at_once // longest) :]
        del order[-len(take) :]
        for i, score in zip(take, model(*pad([rows[i] for i in take], 0)).tolist(), strict=True):
            scores[i] = score
    return scores


def describe(model: PreTrainedModel) -> dict[str, str | int]:
    """What a person wants to know of a model, for manifests and cards."""
    return {
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "context": context_of(model),
        "vocabulary": int(model.config.vocab_size),
    }


def tokenizer_fingerprint(folder: Path) -> str:
    """The vocabulary's digest: two models whose digests differ do not read the same tokens."""
    body = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return digest(body["model"].get("vocab"))
