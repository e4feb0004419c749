"""TRL on the workload, in an environment of its own: one timed epoch, or one step with all that it computed.

`python peer_trl.py time sft|reward|group|dpo|ppo ...` (see --help) prints a line of JSON; benchmarks/peers.py calls it.
`python peer_trl.py step sft|reward|... FOLDER` (STEPS) writes what one step made of the models in FOLDER; benchmarks/parity.py
calls it. SFT, reward and DPO take TRL 1.16, PPO takes 1.12, the last release that has it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import trl
import workload
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainerCallback
from workload import SCALES, TINY, Ranking, Scale

QUIET: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True}
ON = {"cpu": {"use_cpu": True, "bf16": False}, "cuda": {"use_cpu": False, "bf16": True}}
PLAIN: dict[str, Any] = {"gradient_checkpointing": False, "num_train_epochs": 1}
MAX_LENGTH = 256
STEP_ROWS = 32
"""Rows of the one step of parity, and PPO's answers in it."""


def sft(models: dict[str, PreTrainedModel], rows: list[Ranking], folder: Path | None, settings: dict[str, Any]) -> Trainer:
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"prompt": row.prompt, "completion": row.answers[0]} for row in rows])
    args = SFTConfig(max_length=MAX_LENGTH, **settings)
    return SFTTrainer(models["policy"], args=args, train_dataset=data, processing_class=workload.tokenizer(folder))


def reward(models: dict[str, PreTrainedModel], rows: list[Ranking], folder: Path | None, settings: dict[str, Any]) -> Trainer:
    from trl import RewardConfig, RewardTrainer

    args = RewardConfig(max_length=MAX_LENGTH, **settings)
    return RewardTrainer(models["scorer"], args=args, train_dataset=_pairs(rows), processing_class=workload.tokenizer(folder))


def dpo(models: dict[str, PreTrainedModel], rows: list[Ranking], folder: Path | None, settings: dict[str, Any]) -> Trainer:
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(max_length=MAX_LENGTH, beta=workload.DPO_BETA, **settings)
    words = workload.tokenizer(folder)
    return DPOTrainer(models["policy"], models["reference"], args=args, train_dataset=_pairs(rows), processing_class=words)


def ppo(models: dict[str, PreTrainedModel], rows: list[Ranking], folder: Path | None, settings: dict[str, Any]) -> Trainer:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    words = workload.tokenizer(folder, "left")
    data = Dataset.from_list([{"input_ids": words(row.prompt, add_special_tokens=False)["input_ids"]} for row in rows])
    args = PPOConfig(
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        total_episodes=len(rows),
        stop_token="eos",
        missing_eos_penalty=1.0,
        num_sample_generations=0,
        local_rollout_forward_batch_size=settings["per_device_train_batch_size"],
        **settings,
    )
    return PPOTrainer(
        args=args,
        processing_class=words,
        model=models["policy"],
        ref_model=models["reference"],
        reward_model=models["scorer"],
        value_model=models["critic"],
        train_dataset=data,
        eval_dataset=data.select(range(8)),
    )


def _pairs(rows: list[Ranking]) -> Dataset:
    return Dataset.from_list([{"prompt": p, "chosen": better, "rejected": worse} for p, better, worse in workload.pairs(rows)])


TRAINERS = {"sft": sft, "reward": reward, "group": reward, "dpo": dpo, "ppo": ppo, "ppo-shared": ppo, "ppo-mixed": ppo}
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "reward": ("reward", {}),
    "reward-centred": ("reward", {"center_rewards_coefficient": 0.01}),
    "dpo": ("dpo", {}),
    "dpo-ipo": ("dpo", {"loss_type": ["ipo"]}),
    "dpo-normalised": ("dpo", {"loss_type": ["sigmoid_norm"]}),
    "ppo": ("ppo", {}),
}
"""Losses that parity compares, by our name: the trainer, and its settings."""


# Time ----------------------------------------------------------------------------------------------------------------


def timed(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    """An epoch's rows a second (rankings for "group", episodes for PPO), peak memory, and how good the model is after it."""
    online = what in workload.ONLINE
    asked = scale.question if online else scale.prompt
    rows = workload.rankings(count, asked, scale.reply, answers=4 if what == "group" else 2)
    models: dict[str, PreTrainedModel] = {}
    if online or what in ("sft", "dpo"):
        models["policy"] = workload.policy(folder)
    if online or what == "dpo":
        models["reference"] = workload.policy(folder)
    if online or what in ("reward", "group"):
        models["scorer"] = workload.scorer(folder)
    if online:
        models["critic"] = workload.scorer(folder)
    if what == "ppo-mixed":
        for name in ("policy", "reference"):
            workload.end_sometimes(models[name], scale)
    batch = scale.answers if online else scale.batch
    settings = QUIET | PLAIN | ON[scale.device] | {"output_dir": tempfile.mkdtemp(), "seed": seed, "per_device_train_batch_size": batch}
    if what == "group":  # a step's rankings are 6 pairs each, in batches of the usual size
        settings["gradient_accumulation_steps"] = 6 * scale.rankings // batch
    if online:
        settings |= {"learning_rate": scale.online_learning_rate, "num_ppo_epochs": 4, "response_length": scale.new_tokens}
        settings |= {"temperature": scale.temperature, "logging_steps": 1}
    else:
        settings |= {"learning_rate": scale.learning_rate, "logging_steps": 50}
    trainer = TRAINERS[what](models, rows, folder, settings)
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    found: dict[str, Any] = {"a_second": count / seconds, "seconds": seconds, "peak_mib": workload.peak_mib()}
    if online:
        rounds = [entry["objective/rlhf_reward"] for entry in trainer.state.log_history if "objective/rlhf_reward" in entry]
        found["loss"] = -sum(rounds) / len(rounds)
    else:
        kind, model = ("reward", "scorer") if what == "group" else (what, "scorer" if what == "reward" else "policy")
        found["loss"] = workload.held_out_loss(kind, models[model], scale, folder)
    return found | {"versions": {"trl": trl.__version__, "torch": torch.__version__.split("+")[0]}}


# One step -------------------------------------------------------------------------------------------------------------


def step(what: str, folder: Path) -> None:
    """One step from FOLDER's models: NAME-trl.safetensors with the gradients, NAME-trl.json with the rest."""
    models: dict[str, PreTrainedModel] = {}
    for name in ("policy", "reference"):
        models[name] = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    for name in ("scorer", "critic"):
        models[name] = AutoModelForSequenceClassification.from_pretrained(folder / name, dtype=torch.float32, num_labels=1)
    scale = TINY
    rows = workload.rankings(STEP_ROWS, scale.question if what == "ppo" else scale.prompt, scale.reply)
    settings = QUIET | PLAIN | ON["cpu"] | {"output_dir": tempfile.mkdtemp()}
    settings |= {"per_device_train_batch_size": STEP_ROWS, "learning_rate": 1e-3}
    if what == "ppo":
        settings |= {"num_ppo_epochs": 2, "response_length": scale.new_tokens, "temperature": scale.temperature, "logging_steps": 1}
        _ppo_steps(ppo(models, rows, None, settings), folder)
        return
    kind, more = STEPS[what]
    settings |= {"max_steps": 1, "max_grad_norm": 0.0} | more  # 0 is TRL's word for no clipping
    trainer = TRAINERS[kind](models, rows, None, settings)
    losses: list[float] = []
    of_trl = trainer.compute_loss

    def compute_loss(*arguments: Any, **named: Any) -> Any:
        loss = of_trl(*arguments, **named)
        losses.append(float(loss[0] if isinstance(loss, tuple) else loss))
        return loss

    trainer.compute_loss = compute_loss
    trainer.add_callback(Gradients(folder / f"{what}-trl.safetensors"))
    trainer.train()
    columns = [name for name in trainer.train_dataset.column_names if name.endswith("ids")]
    tokens = [{name: row[name] for name in columns} for row in trainer.train_dataset]
    (folder / f"{what}-trl.json").write_text(json.dumps({"losses": losses, "tokens": tokens}), encoding="utf-8")


class Gradients(TrainerCallback):
    """Saves the gradients as the optimiser is about to use them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        save_file({n: p.grad.clone() for n, p in kwargs["model"].named_parameters() if p.grad is not None}, self.path)


PPO_KNOWN = ("query_responses", "responses", "logprobs", "ref_logprobs", "values", "scores", "returns", "advantages")
PPO_MASKS = ("padding_mask", "padding_mask_p1")


def _ppo_steps(trainer: Trainer, folder: Path) -> None:
    """PPO's losses are computed within train(): read there, at the moment it goes backward, with weights and gradients."""
    backward = trainer.accelerator.backward
    losses = []

    def spied(loss: torch.Tensor, **named: Any) -> None:
        weights = {f"weight/{n}": p.detach().clone() for n, p in trainer.model.named_parameters()}
        backward(loss, **named)
        local = sys._getframe(1).f_locals
        gradients = {f"gradient/{n}": p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        known = {name: local[name].clone().contiguous() for name in (*PPO_KNOWN, *PPO_MASKS)}
        losses.append({"policy": float(local["pg_loss"]), "value": float(local["vf_loss"]), "context": local["context_length"]})
        save_file(weights | gradients | known, folder / f"ppo-trl-{len(losses)}.safetensors")

    trainer.accelerator.backward = spied
    trainer.train()
    (folder / "ppo-trl.json").write_text(json.dumps(losses), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["time", "step"])
    parser.add_argument("what", help="of TRAINERS for time, of STEPS for step")
    parser.add_argument("folder", nargs="?", type=Path, help="step: the models, and where to write")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="its folder, instead of the tiny model")
    parser.add_argument("--scale", choices=list(SCALES), default="tiny")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.kind == "step":
        step(given.what, given.folder)
    else:
        print(json.dumps(timed(given.what, given.rows, SCALES[given.scale], given.model, given.seed)))


if __name__ == "__main__":
    main()
