"""The policy stage on a toy set: what it starts from, what it leaves, and that a kill changes nothing."""

import json

import pytest
import torch

from tasks.errors import PreflineError
from tasks.training.models import load_policy


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_ppo_writes_its_rounds_its_history_and_a_policy(line):
    made = line["policy"]
    rounds = json.loads((made.path / "rounds.json").read_text())
    assert (rounds["chosen_round"], rounds["validation_prompts"], rounds["ended"]) == (3, 3, "")
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


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_policy_stage_that_was_killed_ends_in_the_very_files_of_an_unbroken_run(line, tmp_path, step):
    line.kill("policy", step, tmp_path)
    resumed = line.run("policy", runs=tmp_path)
    assert resumed.digest == line["policy"].digest
    assert resumed.metrics == line["policy"].metrics


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": {"method": "rloo", "rounds": 1}},
        {"policy": {"method": "grpo", "rounds": 1, "pretraining_weight": 0.1, "top_p": 0.9}},
        {"policy": {"rounds": 1, "ppo": {"critic": "shared"}, "frozen_layers": 1}},
        {"policy": {"rounds": 1}, "adapter": {"rank": 2}},
        {"policy": {"rounds": 1}, "compute": {"precision": "bf16", "gradient_checkpointing": True}},
    ],
    ids=["RLOO", "GRPO with demonstrations", "shared critic and frozen layers", "adapters", "bf16"],
)
def test_every_way_ends_in_a_plain_whole_model(line, toy, tmp_path, changes):
    made = line.run("policy", toy(**changes), runs=tmp_path)
    policy, sft = load_policy(made.path / "model"), load_policy(line["sft"].path / "model")
    assert {name: value.shape for name, value in policy.state_dict().items()} == {n: v.shape for n, v in sft.state_dict().items()}
    assert not same(policy, sft)


def test_it_says_why_it_ended_early(line, toy, tmp_path):
    made = line.run("policy", toy(policy={"stop_kl": 1e-9, "learning_rate": 1e-2}), runs=tmp_path)
    rounds = json.loads((made.path / "rounds.json").read_text())
    assert rounds["ended"].startswith(f"Round {rounds['chosen_round']}: KL")
    assert rounds["chosen_round"] < 3


def test_prompts_that_leave_no_room_for_an_answer_are_refused(line, toy):
    with pytest.raises(PreflineError, match=r"None of 9 prompts fits in 5 tokens"):
        line.run("policy", toy(max_new_tokens=55))
