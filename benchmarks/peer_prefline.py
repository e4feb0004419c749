"""Our engine on the workload: `python peer_prefline.py time|floor|profile WHAT ...` or `sweep` prints a line of JSON.

Called by benchmarks/peers.py. Start-up and tokenising are outside the time, as they are of the peer's train(). Nothing is saved
and nobody looks on, because the peer does neither. time generate: transformers' own sampling, the peer of ours.

floor: the bare forward and backward passes of the same batches, laid out beforehand: no optimiser, clipping or losses beyond
what a backward pass needs. profile: where the time goes; each part without those within it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import workload
from clock import Clock
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import PreTrainedModel
from workload import SCALES, Scale

from tasks.training import batches, online, rollouts
from tasks.training.adapters import reference_of
from tasks.training.cache import cache_for
from tasks.training.dpo import Row, preference_loss, set_reference
from tasks.training.loop import fit, order_of_epoch, own_batches
from tasks.training.models import RewardModel, left_padded, positions, without_dropout
from tasks.training.onlooker import Look
from tasks.training.processes import Processes, layers_of
from tasks.training.reward_model import Group, group_loss
from tasks.training.rollouts import Models, Rollout
from tasks.training.sampling import Sampling, sample
from tasks.training.sft import SFTRow, sft_loss
from tasks.training.trees import Layout, Tree, lay_out, reads_trees
from tasks.training.updates import Learner
from tasks.training_config import ComputeConfig, DPOConfig, FitConfig, KLConfig, PolicyConfig, PPOConfig


@dataclass(frozen=True)
class Job:
    """work(): what is timed. loss(): how good the result is. models: what passes go through. bare(): the floor of work, which has run.

    flops(): floating-point operations of the blocks of the models that did work: 2 a weight and token forward, 4 backward.
    """

    work: Callable[[], None]
    loss: Callable[[], float]
    models: list[PreTrainedModel]
    bare: Callable[[], Callable[[], None]]
    flops: Callable[[], int]


def prepare(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> Job:
    """Rows as tokens, models loaded: all but the work itself."""
    here = _here(scale)
    if what in workload.ONLINE:
        return _online(what, count, scale, folder, seed, here)
    words = workload.tokenizer(folder)
    found = workload.rankings(count, scale.prompt, scale.reply, answers=4 if what == "group" else 2)
    rows = [workload.encoded(words, row) for row in found]
    config = {
        "epochs": 1.0,
        "batch": scale.rankings if what == "group" else scale.batch,
        "learning_rate": scale.learning_rate,
        "schedule": "linear",
        "warmup": 0.0,
        "checkpoint_seconds": 1e6,
        "looks": 0,
    }
    if what == "sft":
        policy = without_dropout(workload.policy(folder))
        answers = [SFTRow(prompt, both[0]) for prompt, both in rows]
        return _fitted(what, policy, policy, answers, sft_loss, FitConfig(**config), seed, here, scale, folder)
    together = reads_trees(workload.policy(folder).base_model, 512)
    groups = [Group(prompt, answers, _ranked(len(answers)), together=together) for prompt, answers in rows]
    if what == "dpo":
        policy = without_dropout(workload.policy(folder))
        dpo = DPOConfig(**config | {"looks": 1}, beta=workload.DPO_BETA)  # a look needs somebody to look: there is nobody
        loss = partial(preference_loss, config=dpo)
        return _fitted(what, policy, policy, [Row(group) for group in groups], loss, dpo, seed, here, scale, folder)
    scorer = RewardModel(workload.scorer(folder))
    return _fitted("reward", scorer, scorer.body, groups, group_loss, FitConfig(**config), seed, here, scale, folder)


def _ranked(answers: int) -> list[tuple[int, int]]:
    """All pairs of answers that stand best first."""
    return [(better, worse) for better in range(answers) for worse in range(better + 1, answers)]


def _fitted(
    what: str,
    model: nn.Module,
    transformer: PreTrainedModel,
    rows: list[Any],
    loss: Callable[..., Tensor],
    config: FitConfig,
    seed: int,
    here: Processes,
    scale: Scale,
    folder: Path | None,
) -> Job:
    def work() -> None:
        checkpoints = Path(tempfile.mkdtemp())
        if isinstance(config, DPOConfig):
            set_reference(model, rows, config, here, checkpoints)
        cut = batches.microbatches  # looked up here, so that a profile can time it
        fit(model, rows, loss, config, seed=seed, checkpoints=checkpoints, report=lambda *_, **__: None, here=here, cut=cut)

    def bare() -> Callable[[], None]:
        order = order_of_epoch(len(rows), seed, 0)
        windows = [[rows[i] for i in order[first : first + config.batch]] for first in range(0, len(rows), config.batch)]
        parts = [part for window in windows for part, _ in own_batches(window, config.tokens_at_once, here)]
        layouts = [lay_out(_trees(part), here.device) for part in parts]
        asked = batches.microbatches(rows, config.tokens_at_once) if what == "dpo" else []
        reference = [lay_out(_trees(part), here.device) for part in asked]
        read = _read_end if what == "reward" else _read_answers

        def passes() -> None:
            with torch.inference_mode(), here.autocast():
                for layout in reference:
                    read(transformer, layout)
            for layout in layouts:
                with here.autocast():
                    loss = read(transformer, layout)
                loss.backward()
                model.zero_grad(set_to_none=True)

        return passes

    tokens = sum(row.width for row in rows)
    each = 8 if what == "dpo" else 6  # the reference reads too
    loss_of = partial(workload.held_out_loss, what, transformer, scale, folder)
    return Job(work, loss_of, [transformer], bare, lambda: each * _weights_of_blocks(transformer) * tokens)


def _weights_of_blocks(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for block in layers_of(model) for parameter in block.parameters())


def _here(scale: Scale) -> Processes:
    return Processes(ComputeConfig(device=scale.device, precision="bf16" if scale.device == "cuda" else "fp32"))


def _trees(part: list[Any]) -> list[Tree]:
    """Of rows of SFT, groups, or DPO's rows."""
    if isinstance(part[0], SFTRow):
        return [Tree(row.prompt, [row.answer]) for row in part]
    return [tree for row in part for tree in (row.group if isinstance(row, Row) else row).trees]


def _read_answers(model: PreTrainedModel, layout: Layout) -> Tensor:
    """A language model's pass over the answers, ending in one number."""
    hidden = model.base_model(**layout.arguments()).last_hidden_state
    rows = layout.row.unsqueeze(1).expand_as(layout.before)[layout.mask]
    logits = model.get_output_embeddings()(hidden[rows, layout.before[layout.mask]])
    return nn.functional.cross_entropy(logits, layout.targets[layout.mask])


def _read_end(model: PreTrainedModel, layout: Layout) -> Tensor:
    """A classifier's."""
    hidden = model.base_model(**layout.arguments()).last_hidden_state
    return model.score(hidden[layout.row, layout.last]).sum()


def _read_values(model: PreTrainedModel, layout: Layout) -> Tensor:
    """A critic's."""
    hidden = model.base_model(**layout.arguments()).last_hidden_state
    return (model.score(hidden[layout.row.unsqueeze(1), layout.before]).squeeze(-1) * layout.mask).sum()


# PPO -----------------------------------------------------------------------------------------------------------------


def _online(what: str, count: int, scale: Scale, folder: Path | None, seed: int, here: Processes) -> Job:
    words = workload.tokenizer(folder, "left")
    questions = workload.rankings(count, scale.question, scale.reply)
    prompts = [workload.encoded(words, row)[0] for row in questions]
    rounds = count // scale.answers
    config = PolicyConfig(
        temperature=scale.temperature,
        rounds=rounds,
        answers=scale.answers,
        minibatch=scale.answers,
        epochs=4,
        learning_rate=scale.online_learning_rate,
        kl=KLConfig(weight=0.05),
        checkpoint_seconds=1e6,
        judge_every=rounds,
        choose="last",
        ppo=PPOConfig(critic_learning_rate=scale.online_learning_rate),
    )
    policy, reference = (without_dropout(workload.policy(folder)).to(here.device) for _ in range(2))
    if what == "ppo-mixed":
        for model in (policy, reference):
            workload.end_sometimes(model, scale.temperature)
    scorer, critic = (RewardModel(workload.scorer(folder)).to(here.device) for _ in range(2))
    learner = Learner(Models(policy, reference_of(reference), scorer, critic, rollouts.sample), config, here)
    sampling = Sampling(scale.new_tokens, scale.temperature)
    online._keep = lambda *_: None
    seen: list[dict[str, float]] = []
    learnt: list[Rollout] = []
    learn = learner.learn

    def noted(rollout: Rollout, seed: int) -> dict[str, float]:
        learnt.append(rollout)
        return learn(rollout, seed)

    learner.learn = noted

    def nobody(number: int, _: PreTrainedModel) -> Look:
        return Look(number, kl=0.0, length=0.0, stopped=0.0, own=[0.0], judge=[0.0], gold=None)

    def work() -> None:
        checkpoints = Path(tempfile.mkdtemp())
        settings: dict[str, Any] = {"sampling": sampling, "eos": words.eos_token_id, "seed": seed, "checkpoints": checkpoints}
        online.run_rounds(learner, prompts, nobody, **settings, report=lambda *_, **stats: seen.append(stats))

    def bare() -> Callable[[], None]:
        rounds = [_bare_round(rollout, config, here) for rollout in learnt]

        def passes() -> None:
            for asked, read, taught in rounds:
                with torch.inference_mode(), here.autocast():
                    _bare_sampling(policy, *asked)
                    for layout in read:
                        _read_answers(reference, layout), _read_end(scorer.body, layout), _read_values(critic.body, layout)
                for layout in taught * config.epochs:
                    with here.autocast():
                        loss = _read_answers(policy, layout) + _read_values(critic.body, layout)
                    loss.backward()
                    learner.models.trained.zero_grad(set_to_none=True)

        return passes

    bodies = [policy, reference, scorer.body, critic.body]

    def flops() -> int:
        tokens = sum(tree.width for rollout in learnt for tree in rollout.trees)
        return (2 * 6 * config.epochs + 2 * 4) * _weights_of_blocks(policy) * tokens  # all four models read, two of them learn

    return Job(work, lambda: -statistics.fmean(stats["reward_with_penalty"] for stats in seen), bodies, bare, flops)


def _bare_round(
    rollout: Rollout, config: PolicyConfig, here: Processes
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Layout], list[Layout]]:
    """What is read in a round: prompts, mask and tokens of sampling; batches of scoring; batches of a minibatch, which is all answers."""
    prompts, mask = left_padded([tree.prompt for tree in rollout.trees])
    answers = pad_sequence([torch.tensor(tree.answers[0]) for tree in rollout.trees], batch_first=True)
    layouts = [lay_out(part, here.device) for part in batches.microbatches(rollout.trees, config.tokens_at_once)]
    return (prompts.to(here.device), mask.to(here.device), answers.to(here.device)), layouts, layouts


def _bare_sampling(model: PreTrainedModel, prompts: Tensor, mask: Tensor, answers: Tensor) -> None:
    """The passes that sampling these answers takes, where none leaves the batch."""
    cache = cache_for(model)
    places = positions(mask)
    model(input_ids=prompts, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
    following = mask.sum(1, keepdim=True)
    for step in range(answers.shape[1] - 1):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        tokens = answers[:, step : step + 1]
        model(input_ids=tokens, attention_mask=mask, position_ids=following + step, past_key_values=cache, use_cache=True)


# Sampling ------------------------------------------------------------------------------------------------------------


def sampled(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    """Tokens of answers a second, by our sample() or by transformers' generate(), in batches of scale.answers."""
    words = workload.tokenizer(folder, "left")
    prompts = [workload.encoded(words, row)[0] for row in workload.rankings(count, scale.question, scale.reply)]
    here = _here(scale)
    model = without_dropout(workload.policy(folder)).to(here.device).eval()
    if folder is None or scale.device == "cuda":  # random weights never say EOS
        workload.end_sometimes(model, scale.temperature)
    draw = {"sampling": _by_us, "generate": _by_transformers}[what]
    lengths: list[int] = []

    def work() -> None:
        for first in range(0, count, scale.answers):
            lengths.extend(draw(model, prompts[first : first + scale.answers], scale, words.eos_token_id, seed + first))

    with here.autocast():
        draw(model, prompts[:8], replace(scale, new_tokens=4), words.eos_token_id, seed)  # warm
        seconds = _seconds(work)
    return {
        "a_second": sum(lengths) / seconds,
        "seconds": seconds,
        "peak_mib": workload.peak_mib(),
        "loss": statistics.fmean(lengths),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]},
    }


def _by_us(model: PreTrainedModel, prompts: list[list[int]], scale: Scale, eos: int, seed: int) -> list[int]:
    sampling = Sampling(scale.new_tokens, scale.temperature)
    return [len(answer.tokens) for answer in sample(model, prompts, sampling, eos, sampling.noise(len(prompts), seed))]


@torch.inference_mode()
def _by_transformers(model: PreTrainedModel, prompts: list[list[int]], scale: Scale, eos: int, seed: int) -> list[int]:
    torch.manual_seed(seed)
    tokens, mask = (tensor.to(model.device) for tensor in left_padded(prompts))
    how = {"do_sample": True, "temperature": scale.temperature, "top_k": 0, "top_p": 1.0, "pad_token_id": 0, "eos_token_id": eos}
    said = model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=scale.new_tokens, **how)[:, tokens.shape[1] :].tolist()
    return [row.index(eos) + 1 if eos in row else len(row) for row in said]


# Measuring -----------------------------------------------------------------------------------------------------------


def timed(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    job = prepare(what, count, scale, folder, seed)
    seconds = _seconds(job.work)
    found = {"a_second": count / seconds, "seconds": seconds, "peak_mib": workload.peak_mib(), "loss": job.loss()}
    found["tflops_a_second"] = job.flops() / seconds / 1e12
    return found | {"versions": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}}


def floor(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    """Seconds of the work and of its bare passes; both have run once before, to be warm."""
    first = prepare(what, count, scale, folder, seed)
    first.work()
    bare = first.bare()
    bare()
    again = prepare(what, count, scale, folder, seed)
    ours, least = _seconds(again.work), _seconds(bare)
    return {"seconds": ours, "floor": least, "times_floor": ours / least}


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def profile(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    """Shares of the time: passes with a gradient to come (forward) and without (reading), backward, and so on."""
    clock = Clock()
    for module in [module for name, module in sys.modules.items() if name.startswith("tasks.training.")]:
        for name in ("lay_out", "microbatches"):
            if hasattr(module, name):
                setattr(module, name, clock.timing("data", getattr(module, name)))
    rollouts.sample = clock.timing("sampling beside its passes", sample)
    torch.Tensor.backward = clock.timing("backward", torch.Tensor.backward)
    Processes.clip = clock.timing("clipping", Processes.clip)
    register_optimizer_step_pre_hook(lambda *_: clock.enter("optimiser"))
    register_optimizer_step_post_hook(lambda *_: clock.leave())
    job = prepare(what, count, scale, folder, seed)
    for model in job.models:
        for part in (model.base_model, model.get_output_embeddings()):
            if part is not None:
                part.register_forward_pre_hook(lambda *_: clock.enter("forward" if torch.is_grad_enabled() else "reading"))
                part.register_forward_hook(lambda *_: clock.leave())
    clock.start()
    with clock.on("other"):
        seconds = _seconds(job.work)
    return {"seconds": seconds, "shares": {name: round(value / seconds, 4) for name, value in clock.spent.most_common()}}


def sweep(scale: Scale, folder: Path | None) -> dict[str, Any]:
    """What a pass costs beside its tokens, in tokens: the straight line through the times of batches of 1 to 64 rows."""
    width = 2 * (sum(scale.prompt) + sum(scale.reply)) // 4
    policy, here = workload.policy(folder).to(scale.device), _here(scale)
    tokens, seconds = [], []

    def passes(layout: Layout) -> None:
        with here.autocast():
            loss = _read_answers(policy, layout)
        loss.backward()

    for rows in (1, 2, 4, 8, 16, 32, 64):
        layout = lay_out([Tree([2] * (width // 2), [[3] * (width - width // 2)])] * rows, scale.device)
        times = [_seconds(partial(passes, layout)) for _ in range(8)]
        tokens.append(rows * width)
        seconds.append(statistics.median(times[1:]))
    # Relative errors count alike: else the widest batches alone would say what the narrowest cost
    slope, call = np.polyfit(tokens, seconds, 1, w=1 / np.array(seconds))
    return {"width": width, "call_in_tokens": call / slope, "seconds": dict(zip(map(str, tokens), seconds, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["time", "floor", "profile", "sweep"])
    parser.add_argument("what", nargs="?", help="sft, reward, group, dpo, ppo, ppo-mixed; time alone: sampling, generate")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="its folder, instead of the tiny model")
    parser.add_argument("--scale", choices=list(SCALES), default="tiny")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    scale = SCALES[given.scale]
    if given.kind == "sweep":
        print(json.dumps(sweep(scale, given.model)))
        return
    measure = {"time": timed, "floor": floor, "profile": profile}[given.kind]
    if given.what in ("sampling", "generate"):
        measure = sampled
    print(json.dumps(measure(given.what, given.rows, scale, given.model, given.seed)))


if __name__ == "__main__":
    main()
