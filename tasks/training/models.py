"""Models at work: loading and saving, what of them is trained, prompts for generation, the reward model.

Always with trust_remote_code off and safetensors only. Padding is handled by masks and never by the PAD id, so that a
tokenizer whose PAD is its EOS works as well as one with a PAD of its own.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tasks.data.records import digest
from tasks.errors import ConfigError
from tasks.training.batches import in_batches
from tasks.training.end_to_end import cut_for
from tasks.training.processes import layers_of
from tasks.training.trees import Layout, Tree, lay_out_for, read_end_to_end
from tasks.training_config import ComputeConfig

transformers_logging.disable_progress_bar()  # the stage's own bar is enough
transformers_logging.set_verbosity_error()

REWARD_BIAS = "prefline_reward_bias"
"""Key in a reward model's config.json: added to every score, so that demonstrations have mean 0."""
REWARD_TEMPERATURE = "prefline_reward_temperature"
"""What margins are divided by where they are to say how sure a score is. No score is."""
REWARD_ETA = "prefline_reward_eta"
"""The lead of which less is called a tie, in reward units, where ties had a likelihood of their own."""


def load_policy(folder: Path) -> PreTrainedModel:
    """A causal language model from a folder that Prefline wrote, in fp32, with dropout off."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    read_end_to_end(model)
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


def with_checkpointing(model: nn.Module, compute: ComputeConfig) -> nn.Module:
    """Where compute asks for it, blocks forget what they computed and compute it again going backward: same gradients."""
    if compute.gradient_checkpointing:
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                break  # it switches on all blocks within
    return model


def freeze_lower(model: PreTrainedModel, layers: int) -> None:
    """Keep the embeddings and the lowest blocks as they are, and with the embeddings a head that is tied to them.

    layers: how many blocks; 0 freezes nothing. Raises ConfigError where the model has fewer.
    """
    blocks = layers_of(model)
    if layers > len(blocks):
        raise ConfigError(
            f"policy.frozen_layers: {layers}, but the model has {len(blocks)} layers.",
            f"Set policy.frozen_layers to at most {len(blocks)}.",
        )
    if layers > 0:
        embeddings = [module for module in model.base_model.modules() if isinstance(module, nn.Embedding)]
        for part in [*embeddings, *blocks[:layers]]:
            part.requires_grad_(False)


def reference_sharing(policy: PreTrainedModel) -> PreTrainedModel:
    """The policy as it is now, to compare with it later: a copy of what is trained, beside the very tensors that are not."""
    kept = [*(parameter for parameter in policy.parameters() if not parameter.requires_grad), *policy.buffers()]
    return copy.deepcopy(policy, {id(tensor): tensor for tensor in kept}).requires_grad_(False).eval()


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


# Prompts for generation -----------------------------------------------------------------------------------------------------


def left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows as one rectangle and its mask, both (rows, longest), int64; what is sampled follows right behind each."""
    width = max(len(row) for row in rows)
    tokens, mask = torch.zeros((2, len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return tokens, mask


def positions(mask: Tensor) -> Tensor:
    """Position ids that count from a row's first real token."""
    return (mask.cumsum(-1) - mask).long()


# The reward model --------------------------------------------------------------------------------------------------


class RewardModel(nn.Module):
    """A language model's body with a scalar head; the score of a text is read at its own last token.

    Saved as a Hugging Face sequence classifier of one label, plus bias, temperature and eta in its config.json.
    """

    def __init__(self, body: PreTrainedModel) -> None:
        super().__init__()
        self.body: PreTrainedModel = without_dropout(body)
        read_end_to_end(body)
        self.bias = float(getattr(body.config, REWARD_BIAS, 0.0))
        self.temperature = float(getattr(body.config, REWARD_TEMPERATURE, 1.0))
        self.raw_eta: nn.Parameter | None = None
        if hasattr(body.config, REWARD_ETA):
            self.learn_ties(getattr(body.config, REWARD_ETA))

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
        return cls(
            AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, **config
            )
        )

    def learn_ties(self, eta: float) -> None:
        """From now on eta is trained too, as a softplus, so that it stays above 0."""
        self.raw_eta = nn.Parameter(torch.tensor([eta + math.log(-math.expm1(-eta))]))

    @property
    def eta(self) -> Tensor | None:
        """Rao and Kupper's, (1,); None where ties are left out."""
        return None if self.raw_eta is None else F.softplus(self.raw_eta)

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        setattr(self.body.config, REWARD_BIAS, self.bias)
        setattr(self.body.config, REWARD_TEMPERATURE, self.temperature)
        if self.eta is not None:
            setattr(self.body.config, REWARD_ETA, self.eta.item())
        save(self.body, tokenizer, folder)

    @property
    def device(self) -> torch.device:
        return self.body.device

    def forward(self, trees: Sequence[Tree]) -> Tensor:
        """Scores of all answers of the trees, in order, (answers,): each read at its own last token, never by a token's id."""
        layout = lay_out_for(self.body, trees)
        return self._head(self._hidden(layout)[layout.row, layout.last])

    def values(self, trees: Sequence[Tree]) -> Tensor:
        """What a critic says before each token of all answers, in order, (answers, longest answer); 0 on padding."""
        layout = lay_out_for(self.body, trees)
        return self._head(self._hidden(layout)[layout.row.unsqueeze(1), layout.before]) * layout.mask

    def _hidden(self, layout: Layout) -> Tensor:
        return self.body.base_model(**layout.arguments()).last_hidden_state

    def _head(self, hidden: Tensor) -> Tensor:
        return self.body.score(hidden).squeeze(-1).float() + self.bias


@torch.inference_mode()
def score_trees(model: nn.Module, trees: Sequence[Tree], tokens_at_once: int = 8192) -> list[list[float]]:
    """Scores of each tree's answers, in the trees' order, whatever their neighbours. model: a reward model or an ensemble."""

    def read(part: list[Tree]) -> list[list[float]]:
        scores = iter(model(part).tolist())
        return [list(islice(scores, len(tree.answers))) for tree in part]

    return in_batches(trees, tokens_at_once, read, cut_for(model))


def score_texts(model: nn.Module, rows: list[list[int]], tokens_at_once: int = 8192) -> list[float]:
    """Scores of token rows, in their order, whatever their neighbours."""
    return [score for (score,) in score_trees(model, [Tree([], [row]) for row in rows], tokens_at_once)]


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
