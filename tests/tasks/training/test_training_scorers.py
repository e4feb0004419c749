"""Reward model and judge as stages, on a toy set: who teaches them, what they leave, and that a kill changes nothing."""

import json
import statistics
from dataclasses import replace

import pytest
import torch

from tasks.data.encoding import load_tokenizer
from tasks.data.prepare import COMPARISONS
from tasks.data.records import Comparison, read_jsonl
from tasks.errors import PreflineError
from tasks.training import scorers
from tasks.training.ensemble import load_scorer
from tasks.training.models import RewardModel, score_texts
from tasks.training.reward_model import at_most, group_scores, pair_scores, reward_groups
from tasks.training.sft import sft_rows


class Seen(BaseException):
    pass


def weights(result):
    return (result.path / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["reward_model", "judge"])
def test_scorers_learn_what_people_prefer(line, name):
    metrics = line[name].metrics
    assert metrics["comparisons"] == (15 if name == "reward_model" else 12)
    assert metrics["held_out_comparisons"] == 9
    assert metrics["accuracy"] > 0.7
    assert metrics["margin"] > 0


def test_each_scorer_is_taught_by_its_own_split_and_by_no_other(line, make_line, tmp_path):
    turned = {split: make_line(tmp_path / split, {split}) for split in ("train", "judge", "validation", "test")}
    changed = {
        name: {split for split, other in turned.items() if weights(other[name]) != weights(line[name])}
        for name in ("reward_model", "judge")
    }
    assert changed == {"reward_model": {"train"}, "judge": {"judge"}}


def test_judge_and_reward_model_differ_in_their_head_and_their_order_of_data(line, monkeypatch, tmp_path):
    seen = []

    def spy(model, rows, loss, config, seed, **rest):
        seen.append((model.body.score.weight.detach().clone(), seed))
        raise Seen

    monkeypatch.setattr(scorers, "fit", spy)
    for name in ("reward_model", "judge"):
        with pytest.raises(Seen):
            line.run(name, runs=tmp_path)
    (head, seed), (other_head, other_seed) = seen
    assert not torch.equal(head, other_head)
    assert seed != other_seed


@pytest.mark.parametrize("name", ["reward_model", "judge"])
def test_demonstrations_have_mean_reward_0(line, toy, name):
    model, tokenizer = RewardModel.load(line[name].path / "model"), load_tokenizer(line[name].path / "model")
    rows, _ = sft_rows(line.data.demonstrations("validation"), tokenizer, toy().max_tokens)
    scores = score_texts(model, [row.tokens for row in rows])
    assert len(scores) == 3
    assert statistics.fmean(scores) == pytest.approx(0, abs=1e-5)
    assert model.bias != 0


def test_a_limit_on_the_comparisons_keeps_whole_rankings_of_three(line, toy):
    assert line.run("reward_model", toy(reward_model={"max_comparisons": 7})).metrics["comparisons"] == 6


def test_accuracy_is_told_beside_its_floors_and_the_temperature_is_kept_but_not_used(line):
    made = line["reward_model"]
    body = json.loads((made.path / "scores.json").read_text())
    rows = [json.loads(row) for row in (made.path / "scores.jsonl").read_text().splitlines()]
    assert (made.path / "calibration.png").stat().st_size > 1000
    assert [made.metrics[name] for name in ("accuracy", "accuracy_low")] == body["accuracy"][:2]
    assert made.metrics["accuracy"] == statistics.fmean(row["chosen"] > row["rejected"] for row in rows)
    assert made.metrics["margin"] == pytest.approx(statistics.fmean(row["chosen"] - row["rejected"] for row in rows))
    assert made.metrics["longer"] + made.metrics["shorter"] == 1
    assert made.metrics["longer"] == statistics.fmean(row["chosen_length"] > row["rejected_length"] for row in rows)
    model, tokenizer = RewardModel.load(made.path / "model"), load_tokenizer(made.path / "model")
    assert model.temperature == made.metrics["temperature"] == body["temperature"] != 1
    groups, _ = reward_groups(line.data.comparisons("validation"), tokenizer, 60)
    assert group_scores(model, groups[:1]) == pytest.approx([rows[0]["chosen"], rows[0]["rejected"], rows[1]["rejected"]], abs=1e-5)


def test_a_reward_model_that_is_not_surely_above_chance_is_refused_and_kept_for_a_look(line, toy, tmp_path):
    with pytest.raises(PreflineError, match=r"judge at chance: accuracy .* on 9 held-out comparisons of 3 prompts") as caught:
        line.run("judge", toy(judge={"min_accuracy": 0.5}), runs=tmp_path)
    (failed,) = (tmp_path / "stages" / "judge").glob("*.failed")
    assert str(failed) in caught.value.advice
    assert "judge.min_accuracy=0" in caught.value.advice
    assert RewardModel.load(failed / "model").bias != 0
    assert (failed / "scores.json").exists()


def test_scores_that_are_no_numbers_are_named(line, monkeypatch, tmp_path):
    def spoil(model, *rest, **more):
        with torch.no_grad():
            model.body.score.weight.fill_(torch.nan)

    monkeypatch.setattr(scorers, "fit", spoil)
    with pytest.raises(PreflineError, match=r"reward_model: the score of an answer is nan \(toy.jsonl, line 0\)"):
        line.run("reward_model", runs=tmp_path)


@pytest.mark.parametrize(("choose", "better"), [("accuracy", max), ("loss", min)])
def test_the_weights_of_the_best_look_are_kept(line, toy, tmp_path, choose, better):
    config = toy(reward_model={"choose": choose, "looks": 5, "learning_rate": 0.3})
    made, seen = line.reported("reward_model", tmp_path, config)
    name = {"accuracy": "accuracy", "loss": "validation_loss"}[choose]
    looks = [figures[name] for _, figures in seen if name in figures]
    found = json.loads((made.path / "scores.json").read_text())
    assert len(looks) == 5
    assert len(set(looks)) > 1
    assert (found["accuracy"][0] if choose == "accuracy" else found["loss"]) == pytest.approx(better(looks), abs=1e-5)


def test_training_ends_when_patience_does(line, toy, tmp_path):
    config = toy(reward_model={"choose": "loss", "looks": 15, "patience": 2, "learning_rate": 0.3})
    _, seen = line.reported("reward_model", tmp_path, config)
    looks = [figures["validation_loss"] for _, figures in seen if "validation_loss" in figures]
    assert len(looks) == looks.index(min(looks)) + 3 < 15


@pytest.mark.parametrize("change", [{"margin": 1.0}, {"label_smoothing": 0.2}, {"centring": 0.1}, {"ties": "rao_kupper"}])
def test_each_key_of_the_loss_reaches_it(line, toy, change, monkeypatch):
    seen = []

    def spy(model, rows, loss, config, **rest):
        seen.append(loss(model, rows[:2]).item())
        raise Seen

    monkeypatch.setattr(scorers, "fit", spy)
    monkeypatch.setattr(scorers, "reward_groups", with_strengths)
    for config in (toy(), toy(reward_model=change)):
        with pytest.raises(Seen):
            line.run("reward_model", config, runs=line.context.root / f"keys-{len(seen)}-{next(iter(change))}")
    assert seen[0] != seen[1]


def with_strengths(comparisons, *rest, **more):
    return reward_groups([replace(one, strength=2.0) for one in comparisons], *rest, **more)


def test_adapters_end_in_a_plain_model_whose_head_was_trained(line, toy, tmp_path):
    config = toy(adapter={"rank": 2}, reward_model={"ties": "rao_kupper"})
    made = line.run("reward_model", config)
    model, tokenizer = RewardModel.load(made.path / "model"), load_tokenizer(made.path / "model")
    start = RewardModel.from_policy(line["sft"].path / "model", seed=0)
    assert model.state_dict().keys() == start.state_dict().keys() | {"raw_eta"}
    assert not torch.equal(model.body.score.weight, start.body.score.weight)
    rows = [json.loads(row) for row in (made.path / "scores.jsonl").read_text().splitlines()]
    groups, _ = reward_groups(line.data.comparisons("validation"), tokenizer, 60)
    chosen, rejected = pair_scores(group_scores(model, groups), groups)
    assert chosen.tolist() == pytest.approx([row["chosen"] for row in rows], abs=1e-4)
    assert rejected.tolist() == pytest.approx([row["rejected"] for row in rows], abs=1e-4)
    assert made.metrics["eta"] < 0.0019  # it began at 2 artanh 0.001, and nothing is tied here: trained, though the body is frozen
    line.kill("reward_model", 8, tmp_path, config)
    assert line.run("reward_model", config, runs=tmp_path).digest == made.digest


ENSEMBLE = {"members": 3, "combine": "min", "ties": "rao_kupper"}


def test_an_ensemble_of_three_differs_in_its_members_and_scores_by_the_least(line, toy):
    made = line.run("reward_model", toy(reward_model=ENSEMBLE))
    model = load_scorer(made.path / "model")
    heads = [member.body.score.weight for member in model.members]
    assert not any(torch.equal(a, b) for a, b in zip(heads, heads[1:] + heads[:1], strict=True))
    rows = [json.loads(row) for row in (made.path / "scores.jsonl").read_text().splitlines()]
    groups, _ = reward_groups(line.data.comparisons("validation"), load_tokenizer(made.path / "model"), 60)
    by_member = torch.tensor([group_scores(member, groups[:1]) for member in model.members])
    assert rows[0]["chosen"] == pytest.approx(by_member[:, 0].min().item(), abs=1e-5)
    assert rows[0]["chosen_deviation"] == pytest.approx(by_member[:, 0].std(correction=0).item(), abs=1e-5)
    assert made.metrics["uncertainty"] == pytest.approx(
        statistics.fmean(r[k] for r in rows for k in ("chosen_deviation", "rejected_deviation"))
    )
    assert len(json.loads((made.path / "scores.json").read_text())["members"]) == 3
    assert model.members[0].temperature == made.metrics["temperature"]
    assert model.members[0].eta.item() == pytest.approx(made.metrics["eta"], rel=1e-5)
    demonstrations = line.data.demonstrations("validation")
    rows, _ = sft_rows(demonstrations, load_tokenizer(made.path / "model"), 60)
    assert statistics.fmean(score_texts(model, [row.tokens for row in rows])) == pytest.approx(0, abs=1e-5)


def test_the_first_member_is_the_model_that_is_trained_alone(line, toy):
    made = line.run("reward_model", toy(reward_model={"members": 2}))
    assert weights(made) == weights(line["reward_model"])


@pytest.mark.parametrize("step", [4, 16, 23, 45])
def test_an_ensemble_that_was_killed_keeps_what_it_had_and_ends_as_unbroken(line, toy, tmp_path, step):
    """Each of three members takes 15 steps, and has a checkpoint of all but the one at which it was killed."""
    config = toy(reward_model=ENSEMBLE)
    unbroken, seen = line.reported("reward_model", tmp_path / "whole", config)
    line.kill("reward_model", step, tmp_path / "broken", config)
    resumed, again = line.reported("reward_model", tmp_path / "broken", config)
    assert resumed.digest == unbroken.digest
    assert resumed.metrics == unbroken.metrics
    assert [done for done, _ in seen] == list(range(1, 46))
    assert [done for done, _ in again] == list(range(step, 46))


PEOPLE = {"ann": True, "bob": True, "cem": True, "liar": False}


def test_reliability_weighs_the_comparisons_of_the_model_that_asks_for_it(toy, make_line, tmp_path):
    config = toy(reward_model={"weights": "annotator"})
    line = make_line(tmp_path / "line", people=PEOPLE)
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
    other = make_line(tmp_path / "other", {"judge", "test"}, PEOPLE).run("reward_model", config)
    assert json.loads((other.path / "weights.json").read_text()) == found
    assert weights(other) == weights(weighed)


def test_weights_are_of_the_comparisons_that_are_used(toy, make_line, tmp_path):
    made = make_line(tmp_path / "line", people=PEOPLE).run(
        "reward_model", toy(reward_model={"weights": "annotator", "max_comparisons": 24})
    )
    found = json.loads((made.path / "weights.json").read_text())
    assert made.metrics["comparisons"] == 24
    groups, _ = reward_groups(made_data(tmp_path), load_tokenizer(made.path / "model"), 60)
    used = [said.annotator for group in at_most(groups, 24, 0) for said in group.said]
    assert set(found) == set(used)
    assert statistics.fmean(found[name] for name in used) == pytest.approx(1)  # so that a step is a step


def made_data(root):
    rows = read_jsonl(root / "line" / "data" / COMPARISONS, Comparison)
    return [row for row in rows if row.split == "train"]


@pytest.mark.parametrize(("name", "step"), [("reward_model", 2), ("judge", 1)])
def test_a_scorer_that_was_killed_ends_in_the_very_files_of_an_unbroken_run(line, tmp_path, name, step):
    line.kill(name, step, tmp_path)
    resumed = line.run(name, runs=tmp_path)
    assert resumed.digest == line[name].digest
    assert resumed.metrics == line[name].metrics


def test_another_seed_gives_another_reward_model(line, toy):
    assert weights(line.run("reward_model", toy(seed=1))) != weights(line["reward_model"])


def test_scorers_without_usable_comparisons_are_refused(line, toy):
    with pytest.raises(PreflineError, match="0 groups of comparisons"):
        line.run("reward_model", toy(max_tokens=10))
