"""The policy stage on a toy set: what it starts from, what it leaves, and that a kill changes nothing."""

import json

import pytest
import torch

from tasks.errors import PreflineError
from tasks.training import online
from tasks.training.models import RewardModel, load_policy


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_ppo_writes_its_rounds_its_history_and_a_policy(line):
    made = line["policy"]
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
    rounds = json.loads((line["policy"].path / "rounds.json").read_text())["rounds"]
    assert rounds[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rounds[3]["kl"]) > 1e-5


def test_the_critic_starts_as_the_reward_model_and_the_reference_is_sft_even_after_a_resume(line, monkeypatch, tmp_path):
    seen = []
    optimise = online.optimise

    def spy(models, *rest):
        seen.append(models)
        assert same(models.critic, RewardModel.load(line["reward_model"].path / "model"))
        assert models.critic.bias == models.reward_model.bias
        assert models.critic is not models.reward_model
        assert same(models.policy, load_policy(line["sft"].path / "model"))
        return optimise(models, *rest)

    monkeypatch.setattr(online, "optimise", spy)
    line.kill("policy", 2, tmp_path)
    line.run("policy", runs=tmp_path)
    assert len(seen) == 2
    for models in seen:
        assert same(models.reference, load_policy(line["sft"].path / "model"))
        assert same(models.reward_model, RewardModel.load(line["reward_model"].path / "model"))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_policy_stage_that_was_killed_ends_in_the_very_files_of_an_unbroken_run(line, tmp_path, step):
    line.kill("policy", step, tmp_path)
    resumed = line.run("policy", runs=tmp_path)
    assert resumed.digest == line["policy"].digest
    assert resumed.metrics == line["policy"].metrics


def test_prompts_that_leave_no_room_for_an_answer_are_refused(line, toy):
    with pytest.raises(PreflineError, match=r"None of 9 prompts fits in 5 tokens"):
        line.run("policy", toy(max_new_tokens=55))
