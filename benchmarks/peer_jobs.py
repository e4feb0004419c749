"""Our engine's work on the workload, and the bare passes that are its floor; timed by peer_prefline.py."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import workload
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from workload import Scale

from tasks.training import online, rollouts
from tasks.training.adapters import reference_of
from tasks.training.cache import cache_for
from tasks.training.dpo import Row, preference_loss, set_reference
from tasks.training.end_to_end import cut_for
from tasks.training.loop import fit, order_of_epoch, own_batches
from tasks.training.models import RewardModel, left_padded, positions, without_dropout
from tasks.training.onlooker import Look
from tasks.training.processes import Processes, layers_of
from tasks.training.reward_model import Group, group_loss
from tasks.training.rollouts import Models, Rollout, ValueHead
from tasks.training.sampling import Sampling
from tasks.training.sft import SFTRow, sft_loss
from tasks.training.trees import Layout, Tree, lay_out_for, read_end_to_end, reads_trees
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
    here = processes_of(scale)
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
        policy = _policy(folder)
        answers = [SFTRow(prompt, both[0]) for prompt, both in rows]
        return _fitted(what, policy, policy, answers, sft_loss, FitConfig(**config), seed, here, scale, folder)
    together = reads_trees(workload.policy(folder).base_model, 512)
    groups = [Group(prompt, answers, _ranked(len(answers)), together=together) for prompt, answers in rows]
    if what == "dpo":
        policy = _policy(folder)
        dpo = DPOConfig(**config | {"looks": 1}, beta=workload.DPO_BETA)  # a look needs somebody to look: there is nobody
        loss = partial(preference_loss, config=dpo)
        return _fitted(what, policy, policy, [Row(group) for group in groups], loss, dpo, seed, here, scale, folder)
    scorer = RewardModel(workload.scorer(folder))
    return _fitted("reward", scorer, scorer.body, groups, group_loss, FitConfig(**config), seed, here, scale, folder)


def _policy(folder: Path | None) -> PreTrainedModel:
    """Read as a policy that comes from a folder is."""
    policy = workload.policy(folder)
    read_end_to_end(policy)
    return without_dropout(policy)


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
        fit(model, rows, loss, config, seed=seed, checkpoints=checkpoints, report=lambda *_, **__: None, here=here)

    def bare() -> Callable[[], None]:
        order = order_of_epoch(len(rows), seed, 0)
        windows = [[rows[i] for i in order[first : first + config.batch]] for first in range(0, len(rows), config.batch)]
        cut = cut_for(model)
        parts = [part for window in windows for part, _ in own_batches(window, config.tokens_at_once, here, cut)]
        layouts = [lay_out_for(transformer, _trees(part)) for part in parts]
        asked = cut(rows, config.tokens_at_once) if what == "dpo" else []
        reference = [lay_out_for(transformer, _trees(part)) for part in asked]
        read = _read_end if what == "reward" else read_answers

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


def processes_of(scale: Scale) -> Processes:
    return Processes(ComputeConfig(device=scale.device, precision="bf16" if scale.device == "cuda" else "fp32"))


def _trees(part: list[Any]) -> list[Tree]:
    """Of rows of SFT, groups, or DPO's rows."""
    if isinstance(part[0], SFTRow):
        return [Tree(row.prompt, [row.answer]) for row in part]
    return [tree for row in part for tree in (row.group if isinstance(row, Row) else row).trees]


def _states(model: PreTrainedModel, layout: Layout) -> Tensor:
    """A pass without a head: all that a critic on the policy needs of it."""
    return model.base_model(**layout.arguments()).last_hidden_state


def read_answers(model: PreTrainedModel, layout: Layout) -> Tensor:
    """A language model's pass over the answers, ending in one number."""
    hidden = _states(model, layout)
    rows = layout.row.unsqueeze(1).expand_as(layout.before)[layout.mask]
    logits = model.get_output_embeddings()(hidden[rows, layout.before[layout.mask]])
    return nn.functional.cross_entropy(logits, layout.targets[layout.mask])


def _read_end(model: PreTrainedModel, layout: Layout) -> Tensor:
    """A classifier's."""
    hidden = _states(model, layout)
    return model.score(hidden[layout.row, layout.last]).sum()


def _read_values(model: PreTrainedModel, layout: Layout) -> Tensor:
    """A critic's."""
    hidden = _states(model, layout)
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
    policy, reference = (_policy(folder).to(here.device) for _ in range(2))
    if what == "ppo-mixed":
        for model in (policy, reference):
            workload.end_sometimes(model, scale)
    scorer = RewardModel(workload.scorer(folder)).to(here.device)
    shared = what == "ppo-shared"
    critic = ValueHead(policy.get_output_embeddings().in_features) if shared else RewardModel(workload.scorer(folder))
    critic.to(here.device)
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
        """Log-probabilities of old are kept from sampling; a critic on the policy needs its states alone for values."""
        rounds = [_bare_round(rollout, config, policy) for rollout in learnt]
        lessons: list[Callable[[Layout], Tensor]] = [partial(read_answers, policy)]
        if isinstance(critic, ValueHead):
            values = partial(_states, policy)
        else:
            values = partial(_read_values, critic.body)
            lessons.append(values)

        def passes() -> None:
            for asked, read, taught in rounds:
                with torch.inference_mode(), here.autocast():
                    _bare_sampling(policy, *asked)
                    for layout in read:
                        read_answers(reference, layout), _read_end(scorer.body, layout), values(layout)
                for layout, lesson in product(taught * config.epochs, lessons):
                    with here.autocast():
                        loss = lesson(layout)
                    loss.backward()
                    learner.models.trained.zero_grad(set_to_none=True)

        return passes

    bodies = [policy, reference, scorer.body, *([critic.body] if isinstance(critic, RewardModel) else [])]
    trained = len(bodies) - 2

    def flops() -> int:
        tokens = sum(tree.width for rollout in learnt for tree in rollout.trees)
        return (trained * 6 * config.epochs + 2 * 4) * _weights_of_blocks(policy) * tokens  # all models read, some of them learn

    return Job(work, lambda: -statistics.fmean(stats["reward_with_penalty"] for stats in seen), bodies, bare, flops)


def _bare_round(
    rollout: Rollout, config: PolicyConfig, model: PreTrainedModel
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Layout], list[Layout]]:
    """What is read in a round: prompts, mask and tokens of sampling; batches of scoring; batches of a minibatch, which is all answers."""
    prompts, mask = left_padded([tree.prompt for tree in rollout.trees])
    answers = pad_sequence([torch.tensor(tree.answers[0]) for tree in rollout.trees], batch_first=True)
    parts = cut_for(model)(rollout.trees, config.tokens_at_once)
    layouts = [lay_out_for(model, part) for part in parts]
    return (prompts.to(model.device), mask.to(model.device), answers.to(model.device)), layouts, layouts


def _bare_sampling(model: PreTrainedModel, prompts: Tensor, mask: Tensor, answers: Tensor) -> None:
    """The passes that sampling these answers takes, where none leaves the batch."""
    cache = cache_for(model)
    places = positions(mask)
    model(input_ids=prompts, attention_mask=mask, position_ids=places, cache=cache, use_cache=True, logits_to_keep=1)
    following = mask.sum(1, keepdim=True)
    for step in range(answers.shape[1] - 1):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        tokens = answers[:, step : step + 1]
        model(input_ids=tokens, attention_mask=mask, position_ids=following + step, cache=cache, use_cache=True)
