"""Rounds of PPO, RLOO and GRPO: the round that is kept, stops, and resuming bit for bit."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tasks.data.prepare import DEMONSTRATIONS as DEMONSTRATIONS_FILE
from tasks.errors import ConfigError, PreflineError
from tasks.training.models import RewardModel, load_policy
from tasks.training.online import models_of, optimise, prompts_of_round, run_rounds
from tasks.training.onlooker import Look
from tasks.training.processes import Processes
from tasks.training.rollouts import Models, ValueHead
from tasks.training.sampling import Sampling
from tasks.training.sft import SFTRow
from tasks.training.updates import Learner
from tasks.training_config import ComputeConfig, KLConfig, PolicyConfig, PPOConfig

ALONE = Processes(ComputeConfig(device="cpu"))
EOS = 1
PROMPTS = [[3, 4, 5, 6, 7], [8], [3, 2, 4], [9, 8, 7, 6], [2, 2], [5], [6, 7], [10, 11, 3]]
DEMONSTRATIONS = [SFTRow([3, 4], [5, 6, 1]), SFTRow([8], [9, 1]), SFTRow([2, 2, 2], [7, 7, 7, 7, 1])]


def settings(**changes):
    return PolicyConfig(
        **({"rounds": 4, "answers": 8, "minibatch": 4, "epochs": 2, "judge_every": 2, "kl": KLConfig(weight=0.1)} | changes)
    )


def states(*modules):
    return [copy.deepcopy(module.state_dict()) for module in modules]


def all_states(models):
    with models.reference() as reference:
        return states(*models.trained.values(), reference, models.reward_model)


def same(first, second):
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


def judge_by(scores):
    """An onlooker that gives each round the score listed for it, and notes the policy that it saw."""
    seen = {}

    def look(number, policy):
        seen[number] = states(policy)
        return Look(number, kl=0.0, length=1.0, stopped=1.0, own=[0.0], judge=[scores.get(number, 0.0)], gold=None)

    return look, seen


def silent(*_, **__):
    pass


def train(models, folder, config, scores=None, report=silent, demonstrations=(), prompts=PROMPTS):
    look, seen = judge_by(scores or {})
    learner = Learner(models, config, ALONE, list(demonstrations))
    sampling = Sampling(6, config.temperature)
    progress = run_rounds(learner, prompts, look, sampling=sampling, eos=EOS, seed=3, checkpoints=folder, report=report)
    return progress, seen


def test_the_round_that_the_judge_likes_best_is_kept(models, tmp_path):
    progress, seen = train(models, tmp_path, settings(rounds=6), {0: 9.0, 2: 1.0, 4: 3.0, 6: 2.0})
    assert [look.round for look in progress.looks] == [0, 2, 4, 6]
    assert progress.best_round == 4  # round 0 is the SFT model and no candidate
    assert same(states(models.policy), seen[4])
    assert not same(seen[4], seen[6])


def test_the_last_round_is_kept_where_the_configuration_says_so(models, tmp_path):
    progress, seen = train(models, tmp_path, settings(rounds=6, choose="last"), {2: 1.0, 4: 3.0, 6: 2.0})
    assert progress.best_round == 6
    assert same(states(models.policy), seen[6])


def test_reference_and_reward_model_stay_as_they_are(models, tmp_path):
    before = all_states(models)
    train(models, tmp_path, settings())
    after = all_states(models)
    assert [same([a], [b]) for a, b in zip(before, after, strict=True)] == [False, False, True, True]


def test_every_prompt_is_asked_once_before_any_is_asked_again():
    config = settings()
    asked = [place for number in range(5) for place in prompts_of_round(10, config, number, seed=3)]  # 10 prompts, 8 a round
    passes = [asked[first : first + 10] for first in range(0, 40, 10)]
    assert [sorted(one) for one in passes] == [list(range(10))] * 4
    assert passes[0] != passes[1]


def test_every_round_has_random_numbers_of_its_own(models, tmp_path):
    """A policy that hardly moves, asked one and the same prompt: without that it would say the same again."""
    progress, _ = train(models, tmp_path, settings(rounds=6, learning_rate=1e-12), prompts=PROMPTS[:1])
    assert len({stats["own_reward"] for stats in progress.history}) == 6


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_a_prompt_that_is_asked_several_times_has_its_answers_side_by_side(method):
    config = settings(method=method, group=4)
    asked = [prompts_of_round(10, config, number, seed=3) for number in range(5)]
    assert all(row == [row[0]] * 4 + [row[4]] * 4 for row in asked)
    assert sorted(place for row in asked for place in row[::4]) == list(range(10))


def test_what_a_round_reports_is_in_the_history(models, tmp_path):
    told = []
    progress, _ = train(models, tmp_path, settings(), report=lambda done, total, **metrics: told.append((done, total, metrics)))
    assert [(done, total) for done, total, _ in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    required = {
        "approx_kl",
        "clip_fraction",
        "kl",
        "entropy",
        "value_loss",
        "explained_variance",
        "length",
        "no_stop",
        "own_reward",
        "beta",
    }
    for stats, (*_, metrics) in zip(progress.history, told, strict=True):
        assert required <= set(stats)
        assert stats.items() <= metrics.items()


def test_the_kl_weight_is_steered_by_nats_a_sequence_and_counts_answers(models, tmp_path):
    kl = KLConfig(weight=0.1, target=2.0, horizon=100)
    progress, _ = train(models, tmp_path, settings(kl=kl))
    beta = 0.1
    for stats in progress.history:
        assert stats["beta"] == pytest.approx(beta, rel=1e-6)
        beta *= 1 + max(-0.2, min(0.2, stats["kl"] / 2.0 - 1)) * 8 / 100
    assert len({stats["beta"] for stats in progress.history}) == 4


@pytest.mark.parametrize("stop_kl", [1e-3, None])
def test_training_stops_where_the_kl_passes_its_bound(models, tmp_path, stop_kl):
    progress, seen = train(models, tmp_path, settings(stop_kl=stop_kl))
    assert progress.done == (1 if stop_kl else 4)
    assert progress.looks[-1].round == (1 if stop_kl else 4)
    assert same(states(models.policy), seen[progress.best_round])


class Killed(BaseException):
    pass


def kill_after(number):
    def report(done, total, **_):
        if done == number:
            raise Killed

    return report


SOME = {"rounds": 5, "epochs": 1}
RESUMED = {
    "adaptive KL": (settings(**SOME, kl=KLConfig(weight=0.1, target=2.0, horizon=100)), {2: 1.0, 4: 0.5, 5: 0.2}),
    "the best round is behind": (settings(**SOME, judge_every=1), {1: 3.0, 2: 1.0}),
    "the last round": (settings(**SOME, choose="last"), {}),
    "a checkpoint every round": (settings(**SOME, checkpoint_seconds=0), {2: 3.0}),
    "a shared critic": (settings(**SOME, checkpoint_seconds=0, ppo=PPOConfig(critic="shared")), {}),
    "demonstrations": (settings(**SOME, checkpoint_seconds=0, pretraining_weight=0.3), {}),
    "RLOO": (settings(**SOME, method="rloo", kl=KLConfig(place="loss", estimator="k2", target=2.0, horizon=100)), {}),
    "GRPO": (settings(**SOME, method="grpo", checkpoint_seconds=0), {}),
}


def fitted(models, config):
    """The same models with the critic that the configuration asks for."""
    if config.method != "ppo":
        models.critic = None
    elif config.ppo.critic == "shared":
        models.critic = ValueHead(16)
    return models


KILLS = [("adaptive KL", [1]), ("adaptive KL", [5]), *((name, [2, 4]) for name in RESUMED)]


@pytest.mark.parametrize(("name", "kills"), KILLS, ids=str)
def test_a_run_killed_after_some_rounds_and_resumed_is_the_unbroken_run_bit_for_bit(models, tmp_path, name, kills):
    config, scores = RESUMED[name]
    taught = DEMONSTRATIONS if config.pretraining_weight else []
    models = fitted(models, config)
    start = copy.deepcopy(models)
    expected, _ = train(models, tmp_path / "unbroken", config, scores, demonstrations=taught)
    for kill in kills:
        with pytest.raises(Killed):
            train(copy.deepcopy(start), tmp_path / "broken", config, scores, kill_after(kill), taught)
    resumed = copy.deepcopy(start)
    found, _ = train(resumed, tmp_path / "broken", config, scores, demonstrations=taught)
    assert same(all_states(resumed), all_states(models))
    assert vars(found) | {"best": None} == vars(expected) | {"best": None}
    assert same([found.best], [expected.best])


def test_the_clock_decides_how_much_a_kill_costs_and_looks_are_always_kept(models, tmp_path):
    """Killed after round 3, with a look in round 2: rounds 3 to 5 are made again, or 4 and 5 only."""

    def made_again(checkpoint_seconds):
        told = []
        config = settings(**SOME, checkpoint_seconds=checkpoint_seconds)
        folder = tmp_path / str(checkpoint_seconds)
        with pytest.raises(Killed):
            train(copy.deepcopy(models), folder, config, report=kill_after(3))
        train(copy.deepcopy(models), folder, config, report=lambda done, *_, **__: told.append(done))
        return told

    assert made_again(0) == [4, 5]
    assert made_again(3600) == [3, 4, 5]


def test_a_run_that_had_stopped_at_its_kl_bound_does_not_go_on_after_a_kill(models, tmp_path):
    config = settings(stop_kl=1e-3)
    start = copy.deepcopy(models)
    expected, _ = train(models, tmp_path / "unbroken", config)
    with pytest.raises(Killed):
        train(copy.deepcopy(start), tmp_path / "broken", config, report=kill_after(1))
    resumed = copy.deepcopy(start)
    found, _ = train(resumed, tmp_path / "broken", config)
    assert found.done == expected.done == 1
    assert same(states(resumed.policy), states(models.policy))


def test_it_ends_early_when_the_judge_sees_nothing_better(models, tmp_path):
    config = settings(rounds=9, judge_every=1, stop_judge=2)
    progress, seen = train(models, tmp_path, config, {1: 1.0, 2: 3.0, 3: 2.0, 4: 3.0, 5: 9.0})
    assert (progress.done, progress.best_round) == (4, 4)  # of two equal looks the later one
    assert "nothing better for 2 looks" in progress.why_ended(config)
    assert same(states(models.policy), seen[4])


def test_a_reward_that_is_not_finite_ends_it_with_the_last_good_checkpoint_kept(models, tmp_path):
    class Breaks:
        """A reward model that is well for four rounds."""

        calls = 0

        def __call__(self, trees):
            self.calls += 1
            return torch.full((len(trees),), 1.0 if self.calls <= 4 else float("nan"))

    models.reward_model = Breaks()
    with pytest.raises(PreflineError, match=r"Round 5: the reward model's score is nan for 8 of 8 answers"):
        train(models, tmp_path, settings(rounds=9))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["done"] == 4


class LikesSevens(torch.nn.Module):
    """A reward that is easy to learn: the share of sevens in an answer."""

    def forward(self, trees):
        return torch.tensor([tree.answers[0].count(7) / len(tree.answers[0]) for tree in trees])


METHODS = {
    "PPO": {"ppo": PPOConfig(critic_learning_rate=1e-2)},
    "PPO, shared critic": {"ppo": PPOConfig(critic="shared", critic_learning_rate=1e-2)},
    "RLOO": {"method": "rloo"},
    "GRPO": {"method": "grpo"},
}


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_each_method_raises_its_reward_and_a_larger_kl_weight_holds_it_back(models, make_llama, tmp_path, changes):
    def learn(beta):
        start = make_llama(12, seed=2, spread=0.1)
        config = settings(
            **changes,
            rounds=8,
            answers=64,
            minibatch=32,
            learning_rate=3e-2,
            no_stop_penalty=0.0,
            kl=KLConfig(weight=beta),
            judge_every=8,
        )
        reference = partial(nullcontext, copy.deepcopy(start))
        ours = fitted(Models(start, reference, LikesSevens(), copy.deepcopy(models.critic)), config)
        return train(ours, tmp_path / str(beta), config)[0].history

    free, held = learn(0.0), learn(1.0)
    assert free[0]["kl"] == pytest.approx(0, abs=1e-4)  # the policy begins as its reference
    assert free[-1]["own_reward"] > free[0]["own_reward"] + 0.2
    assert free[-1]["kl"] > 5 * abs(held[-1]["kl"])


# What it begins with -----------------------------------------------------------------------------------------------------


def test_the_critic_starts_as_the_reward_model_and_the_reference_as_the_sft_model(make_shop):
    shop = make_shop()
    models = models_of(shop)
    assert same(states(models.critic), states(RewardModel.load(shop.reward_model)))
    assert models.critic is not models.reward_model is shop.onlooker.reward_model
    sft = states(load_policy(shop.sft))
    with models.reference() as reference, shop.onlooker.reference() as looked_at:
        assert reference is looked_at is not models.policy
        assert same(states(reference), sft)
    assert same(states(models.policy), sft)


def test_the_reference_stays_the_sft_model_after_a_resume(make_shop):
    first, again = (make_shop(method="ppo", rounds=rounds, answers=8, minibatch=8, judge_every=1) for rounds in (1, 2))
    optimise(first)
    found = optimise(again)
    assert found.rounds == 2
    with again.onlooker.reference() as reference:
        assert same(states(reference), states(load_policy(first.sft)))
    assert not same(states(found.policy), states(load_policy(first.sft)))


@pytest.mark.parametrize("changes", [{"method": "rloo"}, {"method": "grpo"}, {"ppo": {"critic": "shared"}}], ids=str)
def test_no_critic_is_loaded_where_none_is_trained(make_shop, changes):
    shop = replace(make_shop(**changes), reward_model=Path("nowhere"))
    critic = models_of(shop).critic
    assert critic is None if "method" in changes else isinstance(critic, ValueHead)


def test_adapters_are_switched_off_for_the_reference_and_frozen_layers_are_shared(make_shop):
    with_adapters = models_of(make_shop(adapter={"rank": 2}, ppo={"critic": "shared"}))
    with with_adapters.reference() as reference:
        assert reference is with_adapters.policy
    frozen = models_of(make_shop(frozen_layers=1))
    with frozen.reference() as reference:
        ours, theirs = dict(frozen.policy.named_parameters()), dict(reference.named_parameters())
    shared = [name for name in ours if ours[name].data_ptr() == theirs[name].data_ptr()]
    assert shared == [name for name, value in ours.items() if not value.requires_grad] != []


def test_what_can_not_be_done_is_refused_before_anything_is_sampled(make_shop):
    shop = make_shop(pretraining_weight=0.1)
    (shop.held.folder / DEMONSTRATIONS_FILE).touch()
    with pytest.raises(PreflineError, match=r"pretraining_weight mixes in demonstrations, and there are none"):
        optimise(shop)
    shop.here.sharded = True
    with pytest.raises(ConfigError, match=r"compute.sharding: fsdp, but policy.method: ppo samples"):
        models_of(shop)
