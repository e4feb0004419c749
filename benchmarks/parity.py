"""Are our losses and gradients TRL's? `python benchmarks/parity.py --trl116 PYTHON --trl112 PYTHON`, each of an environment's own.

The same weights and the same batch, one step of each: SFT, Bradley-Terry, DPO by TRL 1.16's trainers, PPO by 1.12's, through
their own train(), against ours through the engine (trees, batches of similar length, log-probabilities at the answers
alone). Relative differences, in fp32: of the loss, of the whole gradient, and of the parameter that differs most. They go
to benchmarks/results/parity.json and as a table to the terminal. Exit code 1 where one is above TOLERANCE.

PPO is compared on TRL's own rollouts, in two epochs: in the second the policy has moved, and ratios are clipped. TRL trains
the value of one state more than we do, the one after an answer's end token; with that state given to ours too, they agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import workload
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification, PreTrainedModel

from tasks.training.adapters import reference_of
from tasks.training.batches import in_batches
from tasks.training.dpo import Row, preference_loss, set_reference
from tasks.training.estimators import whiten
from tasks.training.logprobs import tree_logprobs
from tasks.training.loop import accumulate
from tasks.training.models import RewardModel, load_policy
from tasks.training.processes import Processes
from tasks.training.reward_model import Group, group_loss
from tasks.training.rollouts import Episode, Models, Rollout, weigh
from tasks.training.sft import SFTRow, sft_loss
from tasks.training.trees import Tree
from tasks.training.updates import Learner
from tasks.training_config import ComputeConfig, DPOConfig, FitConfig, KLConfig, PolicyConfig, PPOConfig

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "parity.json"
TOLERANCE = 1e-5
ROWS = 32
AT_ONCE = 2048
"""Tokens: few enough that ours cuts the batch into several."""
UNCLIPPED = 1e9
FIT = FitConfig(batch=ROWS, tokens_at_once=AT_ONCE, clip_gradient=UNCLIPPED)
PREFERENCES = {
    "dpo": DPOConfig(beta=workload.DPO_BETA),
    "dpo-ipo": DPOConfig(beta=workload.DPO_BETA, loss="ipo", length_normalised=True),
    "dpo-normalised": DPOConfig(beta=workload.DPO_BETA, length_normalised=True),
}
"""TRL's ipo is of means over tokens; sigmoid_norm is what it calls sigmoid of those."""
ONLINE = PolicyConfig(
    temperature=workload.TINY.temperature,
    answers=ROWS,
    minibatch=ROWS,
    kl=KLConfig(weight=0.05),
    clip_gradient=UNCLIPPED,
    tokens_at_once=AT_ONCE,
    ppo=PPOConfig(value_weight=0.1),
)
Gradients = Mapping[str, Tensor]
Found = dict[str, Any]


def make_models(folder: Path) -> None:
    """Weights far enough from their start that distributions are uneven, EOS often likely; the reference is near the policy."""
    generator = torch.Generator().manual_seed(1)

    def moved(model: PreTrainedModel, by: float) -> PreTrainedModel:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))
        return model

    policy = moved(workload.policy(), 0.05)
    with torch.no_grad():
        policy.get_input_embeddings().weight[workload.tokenizer().eos_token_id] *= 6
    policy.save_pretrained(folder / "policy")
    moved(policy, 0.01).save_pretrained(folder / "reference")
    for name in ("scorer", "critic"):
        moved(workload.scorer(), 0.05).save_pretrained(folder / name)


def load_reward_model(folder: Path) -> RewardModel:
    return RewardModel(LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1))


# Supervised losses ---------------------------------------------------------------------------------------------------


def fitted(what: str, folder: Path, python: str, here: Processes) -> dict[str, Found]:
    """One step of both, from the same start."""
    run_trl(python, what, folder)
    seen = json.loads((folder / f"{what}-trl.json").read_text(encoding="utf-8"))
    theirs = load_file(folder / f"{what}-trl.safetensors")
    words = workload.tokenizer()
    rows = [workload.encoded(words, row) for row in workload.rankings(ROWS, workload.TINY.prompt, workload.TINY.reply)]
    groups = [Group(prompt, answers, [(0, 1)], together=True) for prompt, answers in rows]
    texts = [prompt + answer for prompt, answers in rows for answer in answers[: 1 if what == "sft" else 2]]
    if what == "sft":
        model: nn.Module = load_policy(folder / "policy")
        loss = step(model, [SFTRow(prompt, answers[0]) for prompt, answers in rows], sft_loss, here)
    elif what in PREFERENCES:
        model, config = load_policy(folder / "policy"), PREFERENCES[what]
        preferences = [Row(group) for group in groups]
        set_reference(load_policy(folder / "reference"), preferences, config, here, folder / f"{what}-reference")
        loss = step(model, preferences, partial(preference_loss, config=config), here)
    else:
        scorer = load_reward_model(folder / "scorer")
        loss = step(scorer, groups, partial(group_loss, centring=0.01 if what == "reward-centred" else 0.0), here)
        model = scorer.body
    if sorted(texts) != sorted(texts_of_trl(seen["tokens"])):
        raise ValueError(f"{what}: TRL was given other tokens.")
    return {what: compared(loss, seen["losses"][0], gradients(model), theirs)}


def step(model: nn.Module, rows: list[Any], loss: Callable[..., Tensor], here: Processes) -> float:
    mean, _ = accumulate(model, rows, loss, FIT, here)
    return mean


def texts_of_trl(rows: list[dict[str, list[int]]]) -> list[list[int]]:
    """Whole texts from the columns of a prepared data set."""
    if "input_ids" in rows[0]:
        return [row["input_ids"] for row in rows]
    return [row.get("prompt_ids", []) + row[side] for row in rows for side in ("chosen_ids", "rejected_ids")]


# PPO -----------------------------------------------------------------------------------------------------------------


def online(folder: Path, python: str, here: Processes) -> dict[str, Found]:
    """What both make of TRL's answers, and two steps on them: each from the weights that TRL had before it."""
    run_trl(python, "ppo", folder)
    losses = json.loads((folder / "ppo-trl.json").read_text(encoding="utf-8"))
    found: dict[str, Found] = {}
    for number, loss in enumerate(losses, 1):
        trl = load_file(folder / f"ppo-trl-{number}.safetensors")
        if number == 1:
            found |= reading(folder, trl, loss["context"])
        for name, extended in ((f"ppo, epoch {number}", True), (f"ppo, epoch {number}, our states", False)):
            models = models_at(folder, trl)
            learner = Learner(models, ONLINE, here)
            stats = learner._step(rollout_of(trl, loss["context"], extended), [])  # its gradients are looked at before they are used
            critic = {name: part / ONLINE.ppo.value_weight for name, part in gradients(models.critic.body).items()}
            theirs = {name: part / ONLINE.ppo.value_weight for name, part in of(trl, "gradient/value_model.").items()}
            if extended:
                found[f"{name}, value"] = compared(stats["value_loss"], loss["value"], critic, theirs)
            else:
                found[f"ppo, epoch {number}, policy"] = compared(
                    stats["policy_loss"], loss["policy"], gradients(models.policy), of(trl, "gradient/policy.")
                ) | {"clipped": stats["clip_fraction"]}
                found[f"{name}, value"] = compared(stats["value_loss"], loss["value"], critic, theirs) | {"expected": True}
    return found


def models_at(folder: Path, trl: Mapping[str, Tensor]) -> Models:
    """Policy and critic with the weights that TRL's had; the rest as it was given to both."""
    policy, critic = load_policy(folder / "policy"), load_reward_model(folder / "critic")
    for model, name in ((policy, "policy"), (critic.body, "value_model")):
        model.load_state_dict(of(trl, f"weight/{name}."), strict=False)  # tied weights are named once
    return Models(policy, reference_of(load_policy(folder / "reference")), load_reward_model(folder / "scorer"), critic)


def of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def lengths_of(trl: Mapping[str, Tensor]) -> list[int]:
    """Tokens of each answer, the end token included; it also ends where the policy happens to say <pad>."""
    return (~trl["padding_mask"]).sum(1).tolist()


def trees_of(trl: Mapping[str, Tensor], context: int, lengths: list[int]) -> list[Tree]:
    """Prompts without their padding, and so many tokens of the responses."""
    prompts, responses = trl["query_responses"][:, :context].tolist(), trl["responses"].tolist()
    return [
        Tree([token for token in prompt if token], [response[:length]])
        for prompt, response, length in zip(prompts, responses, lengths, strict=True)
    ]


def rollout_of(trl: Mapping[str, Tensor], context: int, extended: bool) -> Rollout:
    """TRL's rollout as ours. extended: with the state after the end, for its value: the token that is added is never read."""
    padding = trl["padding_mask_p1" if extended else "padding_mask"]
    mask = (~padding).float()
    trees = trees_of(trl, context, mask.sum(1).int().tolist())
    names = {"logprobs": "logprobs", "reference": "ref_logprobs", "values": "values", "advantages": "advantages", "returns": "returns"}
    known = {own: trl[theirs] * mask for own, theirs in names.items()}
    return Rollout(trees, mask=mask, **known, beta=ONLINE.kl.weight, stats={})


def reading(folder: Path, trl: Mapping[str, Tensor], context: int) -> dict[str, Found]:
    """What the four models say of the answers, and what PPO makes of it."""
    lengths = lengths_of(trl)
    trees = trees_of(trl, context, lengths)
    models = models_at(folder, trl)
    mask = (~trl["padding_mask"]).float()

    def told(read: Callable[[list[Tree]], Tensor]) -> list[Any]:
        return in_batches(trees, AT_ONCE, lambda part: read(part).tolist())

    with torch.inference_mode(), models.reference() as reference:
        said = {
            "log-probabilities": told(lambda part: tree_logprobs(models.policy, part, ONLINE.temperature)[0]),
            "reference": told(lambda part: tree_logprobs(reference, part, ONLINE.temperature)[0]),
            "values": told(models.critic.values),
        }
        scores = [score for score, _ in told(models.scores)]
    width = mask.shape[1]
    own = {
        name: torch.tensor([row[:length] + [0.0] * (width - length) for row, length in zip(rows, lengths, strict=True)])
        for name, rows in said.items()
    }
    theirs = {"log-probabilities": "logprobs", "reference": "ref_logprobs", "values": "values"}
    found: dict[str, Found] = {f"ppo, {name}": {"apart": apart(own[name], trl[theirs[name]] * mask)} for name in said}
    stopped = [tree.answers[0][-1] == workload.tokenizer().eos_token_id for tree in trees]
    penalised = torch.tensor(scores) - ONLINE.no_stop_penalty * (1 - torch.tensor(stopped).float())
    found["ppo, scores"] = {"apart": apart(penalised, trl["scores"])}
    episodes = [
        Episode(tree, stop, score, 0.0, *(rows[i][:length] for rows in said.values()))
        for i, (tree, stop, score, length) in enumerate(zip(trees, stopped, scores, lengths, strict=True))
    ]
    rollout = weigh(episodes, ONLINE, ONLINE.kl.weight)
    whole = torch.tensor(lengths) == width  # where nothing follows the end, TRL puts the score where we do
    found["ppo, returns of answers that were cut"] = {"apart": apart(rollout.returns[whole], trl["returns"][whole])}
    tokens = mask.sum()
    white = whiten(trl["returns"] - trl["values"], mask) * ((tokens - 1) / tokens).sqrt()  # TRL divides the variance by n - 1
    found["ppo, advantages whitened"] = {"apart": apart(white, trl["advantages"])}
    found["ppo, answers"] = {"cut": int(whole.sum()), "stopped": sum(stopped), "of": len(trees), "tokens": int(tokens)}
    return found


# Comparing -----------------------------------------------------------------------------------------------------------


def gradients(model: nn.Module) -> Gradients:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def apart(own: float | Tensor, theirs: float | Tensor) -> float:
    """|own - theirs| / |theirs|, of numbers or of whole tensors; beside what is 0 but for rounding, the difference itself."""
    own, theirs = torch.as_tensor(own).double(), torch.as_tensor(theirs).double()
    size = float(theirs.norm())
    return float((own - theirs).norm()) / (size if size > 1e-6 else 1.0)


def compared(own: float, theirs: float, gradient: Gradients, of_trl: Gradients) -> Found:
    """Losses, and how far apart they are; gradients too. Raises ValueError unless they are of the same parameters."""
    if gradient.keys() != of_trl.keys():
        raise ValueError(f"Gradients of different parameters: {sorted(gradient.keys() ^ of_trl.keys())}")
    whole = [torch.cat([side[name].flatten() for name in sorted(gradient)]) for side in (gradient, of_trl)]
    worst = max(apart(gradient[name], of_trl[name]) for name in gradient)
    return {"ours": own, "trl": theirs, "apart": apart(own, theirs), "gradient": apart(*whole), "worst_parameter": worst}


def run_trl(python: str, what: str, folder: Path) -> None:
    command = [python, str(HERE / "peer_trl.py"), "step", what, str(folder), "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def line(name: str, found: Found) -> str:
    """A row of the table in docs/benchmarks.md."""
    cells = [f"{found[key]:.6f}" if key in found else "" for key in ("ours", "trl")]
    cells += [f"{found[key]:.1e}" if key in found else "" for key in ("apart", "gradient", "worst_parameter")]
    return f"| {name} | {' | '.join(cells)} |"


def measure(folder: Path, trl116: str, trl112: str) -> dict[str, Found]:
    make_models(folder)
    here = Processes(ComputeConfig(device="cpu"))
    found: dict[str, Found] = {}
    print("| | ours | TRL | loss apart | gradient apart | worst parameter |\n|:---|---:|---:|---:|---:|---:|")
    for what in ("sft", "reward", "reward-centred", *PREFERENCES, "ppo"):
        new = online(folder, trl112, here) if what == "ppo" else fitted(what, folder, trl116, here)
        for name, one in new.items():
            print(line(name, one), flush=True)
        found |= new
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trl116", required=True, help="python of an environment with torch 2.13 and trl 1.16.0")
    parser.add_argument("--trl112", required=True, help="python of an environment with torch 2.13 and trl 1.12.0")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.trl116, given.trl112)
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    RESULTS.write_text(json.dumps({"versions": versions, "found": found}, indent=1) + "\n", encoding="utf-8")
    far = {name: one for name, one in found.items() if not one.get("expected") and max_apart(one) > TOLERANCE}
    print(f"Above {TOLERANCE:g}: {', '.join(far) or 'nothing'}")
    return bool(far)


def max_apart(found: Found) -> float:
    return max((found[key] for key in ("apart", "gradient") if key in found), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
