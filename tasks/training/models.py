"""Models at work: loading and saving, batches of tokens, the reward model.

Always with trust_remote_code off and safetensors only. Padding is handled by masks and never by the PAD id, so that a
tokenizer whose PAD is its EOS works as well as one with a PAD of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tasks.data.records import digest
from tasks.errors import ConfigError
from tasks.training.batches import microbatches
from tasks.training.trees import Layout, Tree, lay_out

transformers_logging.disable_progress_bar()  # the stage's own bar is enough
transformers_logging.set_verbosity_error()

REWARD_BIAS = "prefline_reward_bias"
"""Key in a reward model's config.json: added to every score, so that demonstrations have mean 0."""


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

    def forward(self, trees: Sequence[Tree]) -> Tensor:
        """Scores of all answers of the trees, in order, (answers,): each read at its own last token, never by a token's id."""
        layout = lay_out(trees, self.body.device)
        return self._head(self._hidden(layout)[layout.row, layout.last])

    def values(self, trees: Sequence[Tree]) -> Tensor:
        """What a critic says before each token of all answers, in order, (answers, longest answer); 0 on padding."""
        layout = lay_out(trees, self.body.device)
        return self._head(self._hidden(layout)[layout.row.unsqueeze(1), layout.before]) * layout.mask

    def _hidden(self, layout: Layout) -> Tensor:
        return self.body.base_model(**layout.arguments()).last_hidden_state

    def _head(self, hidden: Tensor) -> Tensor:
        return self.body.score(hidden).squeeze(-1).float() + self.bias


@torch.inference_mode()
def score_texts(model: RewardModel, rows: list[list[int]], tokens_at_once: int = 8192) -> list[float]:
    """Scores of token rows, in their order, whatever their neighbours."""
    scores = [0.0] * len(rows)
    for part in microbatches([_Text(i, row) for i, row in enumerate(rows)], tokens_at_once):
        for text, score in zip(part, model([Tree([], [text.tokens]) for text in part]).tolist(), strict=True):
            scores[text.place] = score
    return scores


@dataclass(frozen=True)
class _Text:
    place: int
    tokens: list[int]

    @property
    def width(self) -> int:
        return len(self.tokens)


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
