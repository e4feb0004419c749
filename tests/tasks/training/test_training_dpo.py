"""DPO against sums by hand, against its optimum on a table of answers, and against itself after a kill."""

import dataclasses
import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from tasks.data.formats.transcripts import by_words
from tasks.data.records import Comparison, assistant, user
from tasks.errors import PreflineError
from tasks.training.checkpoint import read_checkpoint, write_checkpoint
from tasks.training.dpo import Row, held_out_figures, optimise, pair_losses, pairs_of, preference_loss, set_reference
from tasks.training.logprobs import given_logprobs
from tasks.training.loop import fit
from tasks.training.losses import dpo_loss
from tasks.training.models import load_policy
from tasks.training.processes import Processes
from tasks.training.reward_model import Group
from tasks.training.trees import reads_trees
from tasks.training_config import ComputeConfig, DPOConfig, PolicyConfig

EOS = 1
HERE = Processes(ComputeConfig())
GROUPS = [
    Group([3, 40, 4], [[60, EOS], [71, 72, 73, EOS]], [(1, 0)]),
    Group([3, 41, 42, 4], [[60, 61, EOS], [70, EOS], [99, 98, 97, EOS]], [(0, 1), (0, 2), (1, 2)]),
    Group([5], [[80, EOS], [81, EOS]], [(0, 1)]),
]


class Killed(BaseException):
    pass


def rows_of(model, tmp_path, groups=GROUPS, config=None, together=True):
    rows = [Row(dataclasses.replace(group, together=together)) for group in groups]
    set_reference(model, rows, config or DPOConfig(), HERE, tmp_path)
    return rows


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# The loss --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_the_papers_of_log_probabilities_from_plain_passes(llama, make_llama, tokenizer, tmp_path, together, normalised):
    assert reads_trees(llama.base_model, 64)
    config = DPOConfig(beta=0.3, length_normalised=normalised)
    rows = rows_of(llama, tmp_path, config=config, together=together)
    moved = make_llama(len(tokenizer), seed=1)
    expected = 0.0
    for group in GROUPS:
        sums = []
        for model in (moved, llama):
            given = given_logprobs(model, [group.prompt] * len(group.answers), group.answers, 1.0)
            sums.append([sum(row) / (len(row) if normalised else 1) for row in given])
        reward = [0.3 * (policy - reference) for policy, reference in zip(*sums, strict=True)]
        losses = [math.log1p(math.exp(reward[worse] - reward[better])) for better, worse in group.pairs]
        expected += sum(losses) / len(losses)
    assert preference_loss(moved, rows, config).item() == pytest.approx(expected, rel=1e-4)
    assert abs(expected - 3 * math.log(2)) > 0.04


def test_config_names_the_loss(llama, make_llama, tokenizer, tmp_path):
    pairs = pairs_of(make_llama(len(tokenizer), seed=1), rows_of(llama, tmp_path), DPOConfig())
    apart = (pairs.policy_chosen - pairs.reference_chosen) - (pairs.policy_rejected - pairs.reference_rejected)
    torch.testing.assert_close(pair_losses(pairs, DPOConfig(loss="ipo", beta=0.2)), (apart - 2.5) ** 2)
    smooth = -0.9 * (0.2 * apart).sigmoid().log() - 0.1 * (-0.2 * apart).sigmoid().log()
    torch.testing.assert_close(pair_losses(pairs, DPOConfig(label_smoothing=0.1, beta=0.2)), smooth)


def test_each_ranking_weighs_1_however_many_answers_it_has(llama, make_llama, tokenizer, tmp_path):
    rows = rows_of(llama, tmp_path)
    moved = make_llama(len(tokenizer), seed=1)
    with torch.no_grad():
        pairs = pairs_of(moved, rows, DPOConfig())
    assert pairs.weight.tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 1])
    losses = pair_losses(pairs, DPOConfig())
    assert preference_loss(moved, rows, DPOConfig()).item() == pytest.approx(float(losses[0] + losses[1:4].mean() + losses[4]), rel=1e-5)
    assert sum(row.weight for row in rows) == 3


def test_figures_of_held_out_pairs_by_hand(llama, make_llama, tokenizer, tmp_path):
    rows, moved, config = rows_of(llama, tmp_path), make_llama(len(tokenizer), seed=1), DPOConfig(beta=0.5)
    found = held_out_figures(moved, rows, config)
    pairs = pairs_of(moved, rows, config)
    chosen, rejected = 0.5 * (pairs.policy_chosen - pairs.reference_chosen), 0.5 * (pairs.policy_rejected - pairs.reference_rejected)
    assert found["reward_chosen"] == pytest.approx(chosen.mean().item(), abs=1e-4)
    assert found["reward_rejected"] == pytest.approx(rejected.mean().item(), abs=1e-4)
    assert found["margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-4)
    assert found["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    assert found["held_out_loss"] == pytest.approx(-(chosen - rejected).sigmoid().log().mean().item(), abs=1e-4)
    assert held_out_figures(moved, [], config) == {}


# The beginning and the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"label_smoothing": 0.2}, {"length_normalised": True}, {"beta": 5.0}])
def test_before_the_first_step_the_loss_is_ln_2_and_implicit_rewards_are_0(make_shop, changes):
    told, shop = [], make_shop(dpo={"batch": 3, "looks": 1} | changes, report=lambda done, total, **metrics: told.append(metrics))
    config = shop.config.dpo
    optimise(shop)
    assert told[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    policy = load_policy(shop.sft)
    rows = rows_of(policy, shop.checkpoints / "other", config=config)
    found = held_out_figures(policy, rows, config)
    assert found["held_out_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert [found[name] for name in ("reward_chosen", "reward_rejected", "margin")] == pytest.approx([0, 0, 0], abs=1e-4)


def test_training_reaches_the_reference_tilted_by_the_reward(make_llama, tmp_path):
    # Answers are the three tokens of the vocabulary, worth ln 1, ln 2 and ln 3. Of 60 comparisons of two of them Bradley
    # and Terry have a wins of 60 a / (a + b) by one worth ln a: the loss of endless data, and a model that is a table
    wins = {(a, b): 60 * (a + 1) // (a + b + 2) for a, b in itertools.permutations(range(3), 2)}
    assert wins == {(0, 1): 20, (1, 0): 40, (0, 2): 15, (2, 0): 45, (1, 2): 24, (2, 1): 36}
    group = Group([2], [[0], [1], [2]], [pair for pair, count in wins.items() for _ in range(count)])
    model, beta = make_llama(3), 0.5
    rows = rows_of(model, tmp_path, [group], DPOConfig(beta=beta), together=False)
    reference = torch.tensor(rows[0].reference, dtype=torch.float64)
    optimum = (reference + torch.tensor([1.0, 2.0, 3.0]).log() / beta).log_softmax(0)
    config = DPOConfig(beta=beta, epochs=150, batch=1, learning_rate=3e-2, checkpoint_seconds=1e9)
    fit(model, rows, lambda policy, part: preference_loss(policy, part, config), config, seed=0, checkpoints=tmp_path / "c", report=silent)
    learnt = torch.tensor([row[0] for row in given_logprobs(model, [[2]] * 3, group.answers, 1.0)], dtype=torch.float64)
    assert (learnt - reference).abs().max() > 0.3
    torch.testing.assert_close(learnt.exp(), optimum.exp(), atol=2e-3, rtol=0)


def silent(*_, **__):
    pass


# The method ------------------------------------------------------------------------------------------------------------


LEARNS = {"epochs": 8.0, "batch": 2, "learning_rate": 1e-2, "looks": 4, "checkpoint_seconds": 0.0, "beta": 0.3}


def test_it_learns_what_is_preferred_and_shows_it_at_every_look(make_shop):
    told, shop = [], make_shop(dpo=LEARNS, report=lambda done, total, **metrics: told.append((done, total, metrics)))
    found = optimise(shop)
    assert [look.round for look in found.looks] == [0, 1, 2, 3, 4]
    assert (found.rounds, len(found.history), found.ended) == (4, 4, "")
    assert [row["share"] for row in found.history] == [0.25, 0.5, 0.75, 1.0]
    first, last = found.history[0], found.history[-1]
    assert last["accuracy"] > 0.8
    assert last["margin"] > first["margin"] > 0
    assert last["held_out_loss"] < math.log(2)
    assert found.looks[0].kl == pytest.approx(0, abs=1e-4)
    assert found.looks[-1].kl > 0.1
    assert told[-1][2]["loss"] < 0.3
    assert told[3][2]["judge"] == first["judge"]
    assert found.figures == {"comparisons": 15, "left_out": 0}


def test_the_look_that_the_judge_likes_best_is_kept_or_the_last(make_shop):
    last = optimise(make_shop("last", dpo=LEARNS, choose="last"))
    best = optimise(make_shop("best", dpo=LEARNS, choose="judge"))
    judged = [sum(look.judge) for look in last.looks[1:]]
    assert [sum(look.judge) for look in best.looks[1:]] == judged
    assert last.best_round == 4
    assert best.best_round == 1 + max(range(4), key=lambda i: (judged[i], i))
    assert best.best_round < 4
    assert not same(states(best.policy), states(last.policy))
    shop = make_shop("again", dpo=LEARNS)
    assert shop.onlooker.look(best.best_round, best.policy) == best.looks[best.best_round]


@pytest.mark.parametrize("changes", [{"stop_kl": 1e-3}, {"stop_judge": 1}, {"dpo": LEARNS | {"patience": 1}}])
def test_it_ends_early_where_it_is_told_to(make_shop, changes):
    found = optimise(make_shop(**({"dpo": LEARNS} | changes)))
    whole = optimise(make_shop("whole", dpo=LEARNS))
    assert 0 < found.rounds < 4
    assert found.ended.startswith(f"Round {found.rounds}: ")
    assert found.looks == whole.looks[: found.rounds + 1]


@pytest.mark.parametrize("step", [1, 4, 13])
def test_a_run_that_was_killed_ends_in_the_weights_of_an_unbroken_one(make_shop, step):
    def kill(done, total, **metrics):
        if done == step:
            raise Killed

    unbroken = optimise(make_shop("unbroken", dpo=LEARNS))
    for _ in range(2):  # the second time it dies a step after it went on
        with pytest.raises(Killed):
            optimise(make_shop("killed", dpo=LEARNS, report=kill))
        step += 1
    resumed = optimise(make_shop("killed", dpo=LEARNS))
    assert same(states(resumed.policy), states(unbroken.policy))
    assert (resumed.looks, resumed.history, resumed.best_round) == (unbroken.looks, unbroken.history, unbroken.best_round)


def test_a_resumed_run_reads_its_reference_and_its_first_look_and_makes_neither_again(make_shop):
    def kill(done, total, **metrics):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        optimise(make_shop(dpo=LEARNS, report=kill))
    told = []
    shop = make_shop(dpo=LEARNS | {"looks": 1}, report=lambda done, total, **metrics: told.append(metrics["loss"]))
    reference, look = read_checkpoint(shop.checkpoints / "reference"), read_checkpoint(shop.checkpoints / "round-0")
    assert reference["logprobs"].shape == (3 * (5 + 3),)  # three answers to each prompt of train and validation, best first
    reference["logprobs"] -= 1000 * torch.arange(24)
    write_checkpoint(shop.checkpoints / "reference", reference)
    write_checkpoint(shop.checkpoints / "round-0", look | {"length": -1.0})
    assert optimise(shop).looks[0].length == -1
    assert told[0] > 100  # whose own reference would have it at ln 2 or below


def test_adapters_learn_and_end_in_a_plain_model(make_shop):
    found = optimise(make_shop(dpo=LEARNS, adapter={"rank": 4}))
    assert found.history[-1]["accuracy"] > 0.8
    plain = load_policy(make_shop("again").sft)
    assert found.policy.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(found.policy.get_input_embeddings().weight, plain.get_input_embeddings().weight)


# The comparisons -------------------------------------------------------------------------------------------------------


def comparison(number, chosen, rejected, split="train", **changes):
    return Comparison(
        id=str(number),
        prompt=[user("Sky?")],
        chosen=[assistant(chosen)],
        rejected=[assistant(rejected)],
        source="s",
        source_id=str(number),
        group_id="g",
        split=split,
        **changes,
    )


USABLE = [comparison(0, "It is blue.", "Dunno."), comparison(1, "It is blue.", "Blue!"), comparison(9, "Blue.", "Red.", "validation")]


def test_what_cant_be_learnt_from_is_left_out_and_counted(make_shop):
    unusable = [
        comparison(2, "It is blue.", "Dunno.", tie=True),
        comparison(3, "It is blue.", "It is blue."),
        comparison(4, "It is blue." * 30, "Dunno."),
        comparison(5, "It is blue.", "Dunno." * 30),
    ]
    small = {"epochs": 1.0, "batch": 2, "looks": 1}
    found = optimise(make_shop("some", rows=[*USABLE, *unusable], dpo=small))
    assert found.figures == {"comparisons": 2, "left_out": 4}
    alone = optimise(make_shop("alone", rows=USABLE, dpo=small))
    assert same(states(found.policy), states(alone.policy))
    with pytest.raises(PreflineError, match="4 were left out"):
        optimise(make_shop("none", rows=[*unusable, USABLE[-1]], dpo=small))


def test_no_more_comparisons_than_were_asked_for(make_shop):
    assert optimise(make_shop(dpo=LEARNS | {"max_comparisons": 7})).figures["comparisons"] == 6  # two rankings of three


def test_a_pair_of_which_one_begins_like_the_other_is_cut_at_a_word(make_shop):
    found = by_words("The sky", "The sky is blue")
    assert (found.prompt, found.chosen, found.rejected) == ([user("The")], [assistant("sky")], [assistant("sky is blue")])


# The reference ---------------------------------------------------------------------------------------------------------


def test_the_reference_is_what_the_policy_said_before_it_learnt(llama, tmp_path):
    rows = rows_of(llama, tmp_path)
    found = [value for row in rows for value in row.reference]
    prompts = [group.prompt for group in GROUPS for _ in group.answers]
    answers = [answer for group in GROUPS for answer in group.answers]
    assert found == pytest.approx([sum(row) for row in given_logprobs(llama, prompts, answers, 1.0)], abs=1e-4)


def test_the_gradient_is_that_of_the_loss_alone_and_the_reference_has_none(llama, tmp_path):
    rows = rows_of(llama, tmp_path)
    loss = preference_loss(llama, rows, DPOConfig(beta=0.4))
    loss.backward()
    weight = llama.lm_head.weight
    analytic = weight.grad[60, 3].item()
    with torch.no_grad():
        ends = []
        for shift in (5e-3, -1e-2):
            weight[60, 3] += shift
            pairs = pairs_of(llama.double(), rows, DPOConfig())
            ends.append((dpo_loss(*(getattr(pairs, f.name) for f in dataclasses.fields(pairs)[:4]), 0.4) * pairs.weight).sum().item())
    assert analytic == pytest.approx((ends[0] - ends[1]) / 1e-2, rel=1e-2, abs=1e-6)
    assert abs(analytic) > 1e-4


# Settings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dpo": {"loss": "ipo", "label_smoothing": 0.1}}, "label_smoothing is of the sigmoid loss"),
        ({"choose": "last", "dpo": {"patience": 2}}, "dpo.patience waits for a better look"),
        ({"choose": "last", "rejection": {"patience": 2}}, "rejection.patience waits for a better look"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        PolicyConfig(**changes)
