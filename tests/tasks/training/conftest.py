"""The training stages over a toy set: short questions about the colour of things, asked and answered in every split."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest

from tasks.config import PipelineConfig
from tasks.data.dvc_store import folder_md5
from tasks.data.prepare import COMPARISONS, DEMONSTRATIONS
from tasks.data.records import Comparison, Demonstration, assistant, user, write_jsonl
from tasks.data.snapshot import Snapshot, dataset
from tasks.stage import Context, StageResult

ITEMS = ["lamp", "kettle", "chair", "rug", "clock", "mug", "vase", "bowl", "tray", "shelf", "desk", "stool", "fan", "bell"]
SPLITS = ["train"] * 5 + ["judge"] * 4 + ["validation"] * 3 + ["test"] * 2
FIT = {"epochs": 15, "batch": 4, "learning_rate": 2e-2, "checkpoint_seconds": 0}
TOY = {
    "tiny": {"layers": 1, "width": 16, "feed_forward": 32, "heads": 2, "vocabulary": 300, "context": 64},
    "max_tokens": 60,
    "max_new_tokens": 6,
    "sft": FIT,
    "reward_model": FIT | {"min_accuracy": 0},  # three held-out prompts can't be surely above chance
    "judge": FIT | {"min_accuracy": 0},
    "policy": {"rounds": 3, "answers": 8, "minibatch": 8, "epochs": 1, "judge_every": 1, "choose": "last", "learning_rate": 1e-3},
}


ASKED = [[3, 4, 5, 6, 7], [8], [3, 2, 4], [9, 8, 7, 6], [2, 2], [5], [6, 7], [10, 11, 3]]
"""Prompts of a model of 12 tokens."""


@pytest.fixture(scope="session")
def toy():
    """toy(sft={...}, max_tokens=...) -> the toy set's configuration; what is given of a section is added to it."""

    def configuration(**changes):
        merged = {name: TOY.get(name, {}) | value if isinstance(value, dict) else value for name, value in changes.items()}
        return PipelineConfig.model_validate(TOY | merged)

    return configuration


@pytest.fixture(scope="session")
def make_line():
    """make_line(root, turned, people, greeted) -> a Line. turned: splits whose rankings are upside down.

    people: who makes the rankings, each True where honest and False where all of theirs are upside down. greeted: the
    demonstrations' prompts begin with a greeting and its answer.
    """
    return Line


@pytest.fixture(scope="session")
def line(tmp_path_factory):
    """The Line of one nameless, honest person; stages that ran for one test are there for the others."""
    return Line(tmp_path_factory.mktemp("line"))


class Killed(BaseException):
    pass


class KillsAt:
    """An observer that ends a stage when it reports a step."""

    def __init__(self, step):
        self.step = step

    def started(self, stage, key, settings): ...

    def finished(self, result): ...

    def failed(self, stage, error): ...

    def progressed(self, stage, done, total, metrics):
        if done == self.step:
            raise Killed


class Watches(KillsAt):
    """An observer that keeps what is reported: (step, metrics)."""

    def __init__(self):
        self.seen = []

    def progressed(self, stage, done, total, metrics):
        self.seen.append((done, metrics))


class Line:
    """The training stages over one data set, each run when it is first asked for: line["sft"] is its result."""

    def __init__(self, root, turned=(), people=None, greeted=False):
        self.context = Context(root, root / "runs")
        self.results = {"data": snapshot(root, turned, people or {None: True}, greeted)}

    def __getitem__(self, name):
        if name not in self.results:
            self.results[name] = self.run(name)
        return self.results[name]

    def stage(self, name):
        from tasks.training import policy, scorers, stages

        known = (stages.base_model, stages.train_sft, scorers.train_reward_model, scorers.train_judge, policy.optimise_policy)
        return next(one for one in known if one.name == name)

    def run(self, name, config=None, observers=(), runs=None, **others):
        """A stage's result, from the Line's own inputs or others. runs: a folder of its own, so that the stage runs again."""
        stage = self.stage(name)
        context = Context(self.context.root, runs or self.context.runs, observers)
        return stage.run(
            config or PipelineConfig.model_validate(TOY), {each: others.get(each) or self[each] for each in stage.inputs}, context
        )

    def kill(self, name, step, runs, config=None):
        """Run a stage up to a step, and kill it there."""
        with pytest.raises(Killed):
            self.run(name, config, [KillsAt(step)], runs)

    def reported(self, name, runs, config=None):
        """A stage's result, and what it reported: [(step, metrics)]."""
        watch = Watches()
        return self.run(name, config, [watch], runs), watch.seen

    @property
    def data(self):
        return dataset(self["data"], self.context.root)


def answers(item):
    """Best first."""
    return [f"The {item} is red.", f"Red {item}.", "Dunno."]


def comparisons(item, split, annotator, honest):
    first, second, third = answers(item) if honest else answers(item)[::-1]
    for number, (chosen, rejected) in enumerate([(first, second), (first, third), (second, third)]):
        yield Comparison(
            id=f"{item}{number}{annotator}",
            prompt=[user(f"Colour of the {item}?")],
            chosen=[assistant(chosen)],
            rejected=[assistant(rejected)],
            source="toy.jsonl",
            source_id=str(number),
            group_id=item,
            ranking=f"{item}{annotator}",
            annotator=annotator,
            split=split,
        )


def demonstration(item, split, greeted):
    return Demonstration(
        id=item,
        prompt=[*([user("Hi."), assistant("Yes?")] if greeted else []), user(f"Colour of the {item}?")],
        answer=[assistant(answers(item)[0])],
        source="toy.jsonl",
        source_id="1",
        group_id=item,
        split=split,
    )


def snapshot(root, turned, people, greeted):
    """The toy set as the snapshot stage leaves it."""
    folder = root / "data"
    folder.mkdir(parents=True)
    rows = [
        row
        for item, split in zip(ITEMS, SPLITS, strict=True)
        for who, honest in people.items()
        for row in comparisons(item, split, who, honest and split not in turned)
    ]
    write_jsonl(folder / COMPARISONS, rows)
    write_jsonl(folder / DEMONSTRATIONS, [demonstration(item, split, greeted) for item, split in zip(ITEMS, SPLITS, strict=True)])
    seen = Snapshot(folder="data", md5=folder_md5(folder), comparisons=len(rows), demonstrations=len(ITEMS), rejects=0, splits={})
    (root / "snapshot").mkdir()
    (root / "snapshot" / "snapshot.json").write_text(seen.model_dump_json())
    return StageResult(stage="snapshot", key="k", path=root / "snapshot", digest=seen.md5, metrics={}, seconds=0.0)


@pytest.fixture
def reward(policy_folder):
    """A reward model that has learnt nothing yet."""
    from tasks.training.models import RewardModel

    return RewardModel.from_policy(policy_folder, seed=0)


@pytest.fixture
def models(make_llama):
    """A policy that has moved away from its reference, a critic and a reward model, all of 12 tokens."""
    import torch
    from transformers import LlamaForSequenceClassification

    from tasks.training.models import RewardModel
    from tasks.training.rollouts import Models

    def scorer(seed):
        config = copy.deepcopy(make_llama(12).config)
        config.num_labels = 1
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return RewardModel(model)

    reference = partial(nullcontext, make_llama(12, seed=2, spread=0.5))
    return Models(make_llama(12, seed=1, spread=0.5), reference, scorer(4), scorer(3))


@pytest.fixture
def roll_out():
    """roll_out(models, config) -> a round's answers to eight prompts, weighed."""
    from tasks.training.rollouts import ask, weigh
    from tasks.training.sampling import Sampling

    def make(models, config, seed=0, beta=0.1):
        sampling = Sampling(6, config.temperature)
        return weigh(ask(models, ASKED, config, sampling, 1, sampling.noise(len(ASKED), seed)), config, beta)

    return make


@pytest.fixture
def make_shop(policy_folder, tokenizer, tmp_path):
    """make_shop(checkpoints, report, rows, method={...}, ...) -> the Workshop of a policy of random weights over the toy set.

    rows: comparisons in place of the toy set's. What is named otherwise is of the policy's configuration.
    """
    from tasks.data.encoding import encode_prompt
    from tasks.data.snapshot import Dataset
    from tasks.training.models import RewardModel
    from tasks.training.onlooker import Onlooker
    from tasks.training.processes import Processes
    from tasks.training.sampling import Sampling
    from tasks.training.workshop import Workshop
    from tasks.training_config import AdapterConfig, ComputeConfig, PolicyConfig

    room, longest = 50, 6
    for seed, name in enumerate(("reward_model", "judge")):
        RewardModel.from_policy(policy_folder, seed).save(tokenizer, tmp_path / name)

    def make(checkpoints="checkpoints", report=lambda *_, **__: None, rows=None, adapter=None, **changes):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        asked = [row for item, split in zip(ITEMS, SPLITS, strict=True) for row in comparisons(item, split, None, True)]
        write_jsonl(folder / COMPARISONS, asked if rows is None else rows)
        held, config, compute = Dataset(folder, "md5"), PolicyConfig(**changes), ComputeConfig()
        sampling = Sampling(longest, config.temperature)
        models = {"sft": policy_folder, "reward_model": tmp_path / "reward_model"}
        return Workshop(
            config=config,
            adapter=AdapterConfig(**(adapter or {})),
            compute=compute,
            max_tokens=room + longest,
            seed=3,
            held=held,
            tokenizer=tokenizer,
            prompts=[encode_prompt(tokenizer, prompt.messages) for prompt in held.prompts("train", "judge")],
            sampling=sampling,
            **models,
            onlooker=Onlooker(held, tokenizer, room, sampling, 3, **models, judge=tmp_path / "judge"),
            here=Processes(compute),
            checkpoints=tmp_path / checkpoints,
            report=report,
        )

    return make
