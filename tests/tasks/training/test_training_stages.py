"""The training stages on a toy set: what each reads, what each leaves, and that a kill changes nothing."""

import json
import statistics

import pytest
import torch

from tasks.config import PipelineConfig
from tasks.data.dvc_store import folder_md5
from tasks.data.encoding import load_tokenizer
from tasks.data.prepare import COMPARISONS, DEMONSTRATIONS
from tasks.data.records import Comparison, Demonstration, assistant, user, write_jsonl
from tasks.data.snapshot import Snapshot, dataset
from tasks.errors import ConfigError, PreflineError
from tasks.stage import Context, StageResult
from tasks.training import stages
from tasks.training.models import RewardModel, load_policy, score_texts
from tasks.training.sft import sft_rows

ITEMS = ["lamp", "kettle", "chair", "rug", "clock", "mug", "vase", "bowl", "tray", "shelf", "desk", "stool", "fan", "bell"]
SPLITS = ["train"] * 5 + ["judge"] * 4 + ["validation"] * 3 + ["test"] * 2
FIT = {"epochs": 15, "batch": 4, "learning_rate": 2e-2, "checkpoint_seconds": 1e-9}
CONFIG = PipelineConfig.model_validate(
    {
        "tiny": {"layers": 1, "width": 16, "feed_forward": 32, "heads": 2, "vocabulary": 300, "context": 64},
        "max_tokens": 60,
        "max_new_tokens": 6,
        "sft": FIT,
        "reward_model": FIT,
        "judge": FIT,
        "policy": {"rounds": 3, "answers": 8, "minibatch": 8, "epochs": 1, "judge_every": 1, "choose": "last", "learning_rate": 1e-3},
    }
)


def answers(item):
    """Best first."""
    return [f"The {item} is red.", f"Red {item}.", "Dunno."]


def comparisons(item, split, said=answers, annotator=None):
    first, second, third = said(item)
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


def demonstration(item, split):
    return Demonstration(
        id=item,
        prompt=[user(f"Colour of the {item}?")],
        answer=[assistant(answers(item)[0])],
        source="toy.jsonl",
        source_id="1",
        group_id=item,
        split=split,
    )


def upside_down(item):
    return answers(item)[::-1]


NOBODY = {None: answers}
"""Who makes the rankings, and how: somebody without a name."""


def snapshot(root, turned=(), people=NOBODY):
    """The toy set as the snapshot stage leaves it, every ranking made by each of the people, in some splits upside down."""
    folder = root / "data"
    folder.mkdir(parents=True)
    rows = [
        row
        for item, split in zip(ITEMS, SPLITS, strict=True)
        for who, said in people.items()
        for row in comparisons(item, split, upside_down if split in turned else said, who)
    ]
    write_jsonl(folder / COMPARISONS, rows)
    write_jsonl(folder / DEMONSTRATIONS, [demonstration(item, split) for item, split in zip(ITEMS, SPLITS, strict=True)])
    seen = Snapshot(folder="data", md5=folder_md5(folder), comparisons=len(rows), demonstrations=len(ITEMS), rejects=0, splits={})
    (root / "snapshot").mkdir()
    (root / "snapshot" / "snapshot.json").write_text(seen.model_dump_json())
    return StageResult(stage="snapshot", key="k", path=root / "snapshot", digest=seen.md5, metrics={}, seconds=0.0)


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


class Line:
    """The training stages over one data set, each run when it is first asked for."""

    def __init__(self, root, turned=(), people=NOBODY):
        self.context = Context(root, root / "runs")
        self.results = {"data": snapshot(root, turned, people)}

    def __getitem__(self, name):
        if name not in self.results:
            self.results[name] = self.run(name)
        return self.results[name]

    def run(self, name, config=CONFIG, observers=(), runs=None):
        stage = {
            s.name: s for s in (stages.base_model, stages.train_sft, stages.train_reward_model, stages.train_judge, stages.optimise_policy)
        }[name]
        context = Context(self.context.root, runs or self.context.runs, observers)
        return stage.run(config, {each: self[each] for each in stage.inputs}, context)

    @property
    def data(self):
        return dataset(self["data"], self.context.root)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return Line(tmp_path_factory.mktemp("line"))


def weights(result):
    return (result.path / "model" / "model.safetensors").read_bytes()


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


# What is learnt ------------------------------------------------------------------------------------------------------


def test_sft_learns_from_demonstrations_of_train_and_judge_alone(line):
    metrics = line["sft"].metrics
    assert (metrics["demonstrations"], metrics["left_out"]) == (9, 0)
    assert metrics["perplexity"] < metrics["perplexity_before"] / 2


@pytest.mark.parametrize("name", ["reward_model", "judge"])
def test_scorers_learn_what_people_prefer(line, name):
    metrics = line[name].metrics
    assert metrics["comparisons"] == (15 if name == "reward_model" else 12)
    assert metrics["held_out_comparisons"] == 9
    assert metrics["accuracy"] > 0.7
    assert metrics["margin"] > 0


def test_each_model_is_taught_by_its_own_split_and_by_no_other(line, tmp_path):
    turned = {split: Line(tmp_path / split, {split}) for split in ("train", "judge", "validation", "test")}
    changed = {
        name: {split for split, other in turned.items() if weights(other[name]) != weights(line[name])}
        for name in ("sft", "reward_model", "judge")
    }
    assert changed == {"sft": set(), "reward_model": {"train"}, "judge": {"judge"}}


def test_judge_and_reward_model_differ_in_their_head_and_their_order_of_data(line, monkeypatch, tmp_path):
    seen = []

    def spy(model, rows, loss, config, seed, *rest):
        seen.append((model.body.score.weight.detach().clone(), seed))
        raise Killed

    monkeypatch.setattr(stages, "fit", spy)
    for name in ("reward_model", "judge"):
        with pytest.raises(Killed):
            line.run(name, runs=tmp_path)
    (head, seed), (other_head, other_seed) = seen
    assert not torch.equal(head, other_head)
    assert seed != other_seed


@pytest.mark.parametrize("name", ["reward_model", "judge"])
def test_demonstrations_have_mean_reward_0(line, name):
    model, tokenizer = RewardModel.load(line[name].path / "model"), load_tokenizer(line[name].path / "model")
    rows, _ = sft_rows(line.data.demonstrations("validation"), tokenizer, CONFIG.max_tokens)
    scores = score_texts(model, [row.prompt + row.answer for row in rows])
    assert len(scores) == 3
    assert statistics.fmean(scores) == pytest.approx(0, abs=1e-5)
    assert model.bias != 0


LIMITS = [("sft", {"sft": FIT | {"max_demonstrations": 4}}, 4), ("reward_model", {"reward_model": FIT | {"max_comparisons": 7}}, 6)]


@pytest.mark.parametrize(("name", "changes", "expected"), LIMITS, ids=["demonstrations", "whole rankings of three"])
def test_a_limit_on_the_data_holds(line, name, changes, expected):
    config = PipelineConfig.model_validate(CONFIG.model_dump() | changes)
    metrics = line.run(name, config).metrics
    assert metrics["demonstrations" if name == "sft" else "comparisons"] == expected


PEOPLE = {"ann": answers, "bob": answers, "cem": answers, "liar": upside_down}


def test_reliability_weighs_the_comparisons_of_the_model_that_asks_for_it(tmp_path):
    config = PipelineConfig.model_validate(CONFIG.model_dump() | {"reward_model": FIT | {"weights": "annotator"}})
    line = Line(tmp_path / "line", people=PEOPLE)
    plain, weighed = line.run("reward_model"), line.run("reward_model", config)
    found = json.loads((weighed.path / "weights.json").read_text())
    assert found["liar"] == 0
    assert found["ann"] == found["bob"] == found["cem"] == pytest.approx(4 / 3)
    assert (weighed.metrics["least_weight"], weighed.metrics["most_weight"]) == (0, max(found.values()))
    assert not (plain.path / "weights.json").exists()
    assert "least_weight" not in plain.metrics
    assert weights(weighed) != weights(plain)
    judge = line.run("judge", config)
    assert not (judge.path / "weights.json").exists()
    # What is said in other splits has no part in it
    other = Line(tmp_path / "other", {"judge", "test"}, PEOPLE).run("reward_model", config)
    assert json.loads((other.path / "weights.json").read_text()) == found
    assert weights(other) == weights(weighed)


# PPO -------------------------------------------------------------------------------------------------------------------


def test_ppo_writes_its_rounds_its_history_and_a_policy(line):
    made = line["ppo"]
    rounds = json.loads((made.path / "rounds.json").read_text())
    assert (rounds["chosen_round"], rounds["validation_prompts"]) == (3, 3)
    assert [one["round"] for one in rounds["rounds"]] == [0, 1, 2, 3]
    for one in rounds["rounds"]:
        assert set(one) == {"round", "kl", "length", "stopped", "own", "judge", "gold"}
        assert len(one["own"]) == len(one["judge"]) == 3
        assert one["gold"] is None  # no truth is known of this set
    history = [json.loads(row) for row in (made.path / "history.jsonl").read_text().splitlines()]
    assert len(history) == 3
    assert {json.loads(row)["round"] for row in (made.path / "samples.jsonl").read_text().splitlines()} == {0, 1, 2, 3}
    assert not same(load_policy(made.path / "model"), load_policy(line["sft"].path / "model"))


def test_round_0_is_the_sft_model_at_kl_0(line):
    rounds = json.loads((line["ppo"].path / "rounds.json").read_text())["rounds"]
    assert rounds[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rounds[3]["kl"]) > 1e-5


def test_the_critic_starts_as_the_reward_model_and_the_reference_is_sft_even_after_a_resume(line, monkeypatch, tmp_path):
    seen = []
    optimise = stages.optimise

    def spy(models, *rest):
        seen.append(models)
        assert same(models.critic, RewardModel.load(line["reward_model"].path / "model"))
        assert models.critic.bias == models.reward_model.bias
        assert models.critic is not models.reward_model
        assert same(models.policy, load_policy(line["sft"].path / "model"))
        return optimise(models, *rest)

    monkeypatch.setattr(stages, "optimise", spy)
    with pytest.raises(Killed):
        line.run("ppo", observers=[KillsAt(2)], runs=tmp_path)
    line.run("ppo", runs=tmp_path)
    assert len(seen) == 2
    for models in seen:
        assert same(models.reference, load_policy(line["sft"].path / "model"))
        assert same(models.reward_model, RewardModel.load(line["reward_model"].path / "model"))


# Kills and refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "step"), [("sft", 3), ("reward_model", 2), ("judge", 1), ("ppo", 1), ("ppo", 2), ("ppo", 3)])
def test_a_stage_that_was_killed_ends_in_the_very_files_of_an_unbroken_run(line, tmp_path, name, step):
    with pytest.raises(Killed):
        line.run(name, observers=[KillsAt(step)], runs=tmp_path)
    resumed = line.run(name, runs=tmp_path)
    assert resumed.digest == line[name].digest
    assert resumed.metrics == line[name].metrics


def test_another_seed_gives_other_models(line):
    other = CONFIG.model_copy(update={"seed": 1})
    assert weights(line.run("base", other)) != weights(line["base"])
    assert weights(line.run("sft", other)) != weights(line["sft"])  # from the same base: in another order
    assert weights(line.run("reward_model", other)) != weights(line["reward_model"])


def test_texts_longer_than_the_base_model_reads_are_refused_before_training(line):
    config = PipelineConfig.model_validate(CONFIG.model_dump() | {"model": str(line["base"].path / "model"), "max_tokens": 65})
    with pytest.raises(ConfigError, match=r"65 is more than .* can read .64 tokens"):
        line.run("base", config)


def test_prompts_that_leave_no_room_for_an_answer_are_refused(line):
    config = PipelineConfig.model_validate(CONFIG.model_dump() | {"max_new_tokens": 55})
    with pytest.raises(PreflineError, match=r"None of 9 prompts fits in 5 tokens"):
        line.run("ppo", config)


def test_scorers_without_usable_comparisons_are_refused(line):
    config = PipelineConfig.model_validate(CONFIG.model_dump() | {"max_tokens": 10})
    with pytest.raises(PreflineError, match="0 groups of comparisons"):
        line.run("reward_model", config)
