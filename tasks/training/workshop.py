"""What every method of optimising a policy is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tasks.data.snapshot import Dataset
from tasks.training.loop import Report
from tasks.training.onlooker import Onlooker
from tasks.training.processes import Processes
from tasks.training.sampling import Sampling
from tasks.training_config import AdapterConfig, ComputeConfig, PolicyConfig


@dataclass(frozen=True)
class Workshop:
    """sft, reward_model: folders of models. prompts: token ids, those that leave room for an answer."""

    config: PolicyConfig
    adapter: AdapterConfig
    compute: ComputeConfig
    max_tokens: int
    seed: int
    held: Dataset
    tokenizer: PreTrainedTokenizerBase
    prompts: list[list[int]]
    sampling: Sampling
    sft: Path
    reward_model: Path
    onlooker: Onlooker
    here: Processes
    checkpoints: Path
    report: Report

    @property
    def eos(self) -> int:
        return self.tokenizer.eos_token_id
