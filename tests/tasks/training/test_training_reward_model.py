"""Rankings as groups of answers, and their loss pair by pair."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.records import Comparison, assistant, user
from tasks.training.loop import fit
from tasks.training.losses import bradley_terry_loss
from tasks.training.models import RewardModel
from tasks.training.reward_model import (
    Group,
    accuracy,
    at_most,
    group_loss,
    pair_scores,
    reward_groups,
    trust_annotators,
)
from tasks.training.trees import Tree
from tasks.training_config import FitConfig

EOS = 1


# The loss ------------------------------------------------------------------------------------------------------------

RANKED = [[50, 60, 4, 70, EOS], [50, 4, EOS], [51, 61, 71, 81, 91, 4, 99, EOS], [4, 5]]
"""Answers of different lengths, one with nothing that ends it."""
RANKING = Group([3], RANKED, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
PAIR = Group([3], [[EOS, 4, 80], [7] * 11], [(1, 0)])


def comparison(number, chosen="Warm.", rejected="Cold.", ranking=None, prompt="How warm is the lamp?", **details):
    return Comparison(
        id=f"c{number}",
        prompt=[user(prompt)],
        chosen=[assistant(chosen)],
        rejected=[assistant(rejected)],
        source="march.jsonl",
        source_id=str(number),
        group_id=prompt,
        ranking=ranking,
        **details,
    )


class Fixed(torch.nn.Module):
    """A reward model whose scores are given: those of the texts in order."""

    def __init__(self, *scores, eta=None):
        super().__init__()
        self.scores, self.rows = torch.nn.Parameter(torch.tensor(scores)), 0
        self.eta = None if eta is None else torch.tensor([eta], requires_grad=True)

    def forward(self, trees):
        self.rows += sum(len(tree.answers) for tree in trees)
        return self.scores


def test_group_loss_of_one_pair_by_hand():
    # -log sigmoid(1 - 3) = 2.126928
    assert group_loss(Fixed(3.0, 1.0), [PAIR]).item() == pytest.approx(2.126928, abs=1e-6)


def test_centring_by_hand():
    # 0.1 * (1 + 3)^2 on top
    assert group_loss(Fixed(3.0, 1.0), [PAIR], centring=0.1).item() == pytest.approx(2.126928 + 1.6, abs=1e-6)


def test_label_smoothing_by_hand():
    # 0.9 * 2.126928 + 0.1 * -log sigmoid(2) = 0.9 * 2.126928 + 0.1 * 0.126928
    assert group_loss(Fixed(3.0, 1.0), [PAIR], label_smoothing=0.1).item() == pytest.approx(1.926928, abs=1e-6)


def test_a_ranking_of_four_is_encoded_once_and_its_six_pairs_weigh_one_sixth_each():
    model = Fixed(3.0, 1.0, 0.5, -1.0)
    # differences 2, 2.5, 4, 0.5, 2, 1.5: -log sigmoid 0.126928, 0.078889, 0.018150, 0.474077, 0.126928, 0.201413
    assert group_loss(model, [RANKING]).item() == pytest.approx(1.026385 / 6, abs=1e-6)
    assert model.rows == 4


@pytest.mark.parametrize("together", [False, True])
def test_a_batch_of_groups_is_the_sum_of_means_computed_pair_by_pair(reward, together):
    groups = [replace(RANKING, together=together), replace(PAIR, together=together)]

    def one(text):
        return reward([Tree([], [text])])[0]

    def by_pairs(group):
        losses = [bradley_terry_loss(one(group.texts[i]), one(group.texts[j])) for i, j in group.pairs]
        centring = [0.05 * (one(group.texts[i]) + one(group.texts[j])) ** 2 for i, j in group.pairs]
        return torch.stack([a + b for a, b in zip(losses, centring, strict=True)]).mean()

    def gradients(loss):
        reward.zero_grad()
        loss.backward()
        return [copy.deepcopy(parameter.grad) for parameter in reward.parameters()]

    expected = by_pairs(RANKING) + by_pairs(PAIR)
    found = group_loss(reward, groups, centring=0.05)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_trust_by_hand():
    # -log sigmoid(2) = 0.126928 counts 1.5, -log sigmoid(-1) = 1.313262 half
    group = Group([3], RANKING.answers[:3], [(0, 1), (1, 2)], [1.5, 0.5])
    assert group_loss(Fixed(3.0, 1.0, 2.0), [group]).item() == pytest.approx((1.5 * 0.126928 + 0.5 * 1.313262) / 2, abs=1e-6)


def test_trust_of_1_is_no_trust_at_all_and_of_0_teaches_nothing():
    scores = (3.0, 1.0, 0.5, -1.0)
    trusted = replace(RANKING, trust=[1.0] * 6)
    assert group_loss(Fixed(*scores), [trusted], 0.1).item() == group_loss(Fixed(*scores), [RANKING], 0.1).item()
    model = Fixed(*scores, 2.0, 1.0)
    group_loss(model, [replace(RANKING, trust=[0.0] * 6), PAIR], 0.1).backward()
    assert model.scores.grad[:4].tolist() == [0, 0, 0, 0]
    assert model.scores.grad[4:].abs().min() > 0


def test_a_group_has_its_full_place_in_a_step_however_little_it_is_trusted():
    assert Group([3], RANKING.answers[:2], [(0, 1)], [0.1]).weight == 1.0


def test_the_margin_is_so_much_reward_for_each_unit_of_strength_and_none_where_it_was_not_asked():
    # differences 2, 1, 3; margins 0.5 * 3, 0.5 * 0 (not asked), 0.5 * 1:
    # -log sigmoid(0.5) = 0.474077, of 1 = 0.313262, of 2.5 = 0.078889
    said = [comparison(1, strength=3.0), comparison(2), comparison(3, strength=1.0)]
    group = Group([3], RANKING.answers[:3], [(0, 1), (1, 2), (0, 2)], said=said)
    assert group_loss(Fixed(3.0, 1.0, 0.0), [group], margin=0.5).item() == pytest.approx(0.866228 / 3, abs=1e-6)
    plain = replace(group, said=[])
    assert group_loss(Fixed(3.0, 1.0, 0.0), [group]).item() == group_loss(Fixed(3.0, 1.0, 0.0), [plain], margin=0.5).item()


def test_ties_have_their_own_likelihood_where_the_model_has_an_eta():
    # rewards 1 and 0, theta = exp(0.5): p = e and 1; P(win) = e / (e + theta) = 0.622459
    # P(tie) = (theta^2 - 1) e / ((e + theta) (theta e + 1)) = 1.718282 * 0.622459 * 0.182426 = 0.195115
    said = [comparison(1), comparison(2, tie=True, strength=2.0)]  # a tie has no margin, whatever its row says
    group = Group([3], RANKING.answers[:2], [(0, 1), (0, 1)], said=said)
    model = Fixed(1.0, 0.0, eta=0.5)
    found = group_loss(model, [group], margin=0.0)
    assert found.item() == pytest.approx((-math.log(0.622459) - math.log(0.195115)) / 2, abs=1e-5)
    assert group_loss(model, [replace(group, pairs=[(0, 1)], said=said[1:])], margin=9.0).item() == pytest.approx(
        -math.log(0.195115), abs=1e-5
    )
    found.backward()
    assert model.eta.grad.item() != 0


def test_eta_is_trained_and_saved_and_comes_back(reward, tokenizer, tmp_path):
    assert reward.eta is None
    reward.learn_ties(0.3)
    assert reward.eta.item() == pytest.approx(0.3, abs=1e-6)
    assert "raw_eta" in dict(reward.named_parameters())
    tie, win = comparison(1, tie=True), comparison(2)
    before = reward.eta.item()
    for said, direction in ((tie, 1), (win, -1)):
        reward.zero_grad()
        group_loss(reward, [Group([3], [[4], [4]], [(0, 1)], said=[said])]).backward()  # equal answers: only eta can tell
        assert -direction * reward.raw_eta.grad.item() > 0  # a tie widens it, a victory narrows it
    reward.save(tokenizer, tmp_path)
    assert RewardModel.load(tmp_path).eta.item() == pytest.approx(before, abs=1e-6)


def test_eta_learns_the_share_of_ties(reward, tmp_path):
    # Between equal answers P(tie) = tanh(eta / 2): 3 of 5 are tied, so eta = 2 artanh 0.6 = ln 4
    reward.learn_ties(0.1)
    said = [comparison(number, tie=number < 3) for number in range(5)]
    groups = [Group([3], [[4], [4]], [(0, 1)], said=[one]) for one in said]
    config = FitConfig(epochs=120, batch=5, learning_rate=0.2, checkpoint_seconds=1e9)
    fit(reward, groups, group_loss, config, seed=0, checkpoints=tmp_path, report=lambda *_, **__: None)
    assert reward.eta.item() == pytest.approx(math.log(4), abs=1e-2)


# Comparisons as groups -----------------------------------------------------------------------------------------------


def test_ties_identical_answers_and_long_texts_are_left_out_and_counted(tokenizer):
    rows = [
        comparison(1, "Warm.", "Cold."),
        comparison(2, "Warm.", "Hot.", tie=True),
        comparison(3, "Warm.", "Warm."),
        comparison(4, "Warm. " * 40, "Cold."),
        comparison(5, "Warm.", "Cold. " * 40),
        comparison(6, "Hot.", "Cold."),
    ]
    groups, left_out = reward_groups(rows, tokenizer, max_tokens=60)
    assert left_out == 4
    assert [said.id for group in groups for said in group.said] == ["c1", "c6"]
    assert [tokenizer.decode(group.texts[0]).split("<|assistant|>")[1] for group in groups] == ["Warm.<|end|>", "Hot.<|end|>"]
    assert [group.pairs for group in groups] == [[(0, 1)], [(0, 1)]]


def test_a_text_of_exactly_max_tokens_is_kept(tokenizer):
    rows = [comparison(1, "Warm.", "Very cold.")]
    (group,), _ = reward_groups(rows, tokenizer, max_tokens=1000)
    longest = max(len(text) for text in group.texts)
    assert reward_groups(rows, tokenizer, longest)[1] == 0
    assert reward_groups(rows, tokenizer, longest - 1) == ([], 1)


def test_a_ranking_of_four_becomes_one_group_of_four_texts_and_six_pairs(tokenizer):
    best_first = ["Warm.", "Quite warm.", "Dunno.", "Cold."]
    rows = [comparison(9, a, b, "r1") for i, a in enumerate(best_first) for b in best_first[i + 1 :]]
    (group, other), left_out = reward_groups([*rows, comparison(10, "Hot.", "Warm.")], tokenizer, max_tokens=100)
    assert left_out == 0
    assert len(group.texts) == 4
    assert sorted(group.pairs) == sorted(RANKING.pairs)
    assert group.weight == other.weight == 1.0
    assert group.width == 4 * max(map(len, group.texts))
    group.together = True
    assert group.width == sum(map(len, group.texts)) - 3 * len(group.prompt)


def test_a_groups_texts_begin_with_the_prompt(tokenizer):
    (group,), _ = reward_groups([comparison(1, "Warm.", "Cold.")], tokenizer, max_tokens=100)
    assert [tokenizer.decode(text) for text in group.texts] == [
        "<|user|>How warm is the lamp?<|assistant|>Warm.<|end|>",
        "<|user|>How warm is the lamp?<|assistant|>Cold.<|end|>",
    ]


def test_pairs_are_trusted_as_their_annotators_are_and_unknown_ones_count_1(tokenizer):
    rows = [
        comparison(1, "Warm.", "Cold.", "r1", annotator="ann"),
        comparison(2, "Warm.", "Hot.", "r1", annotator="bob"),
        comparison(3, "Warm.", "Dunno.", "r1"),
        comparison(4, "Warm.", "Cold.", annotator="new"),
    ]
    groups, _ = reward_groups(rows, tokenizer, 100)
    assert [group.trust for group in groups] == [[], []]
    trust_annotators(groups, {"ann": 1.5, "bob": 0.0})
    assert [group.trust for group in groups] == [[1.5, 0.0, 1.0], [1.0]]


def test_ties_are_kept_where_they_are_wanted(tokenizer):
    rows = [comparison(1), comparison(2, "Warm.", "Hot.", tie=True), comparison(3, "Warm.", "Warm.", tie=True)]
    groups, left_out = reward_groups(rows, tokenizer, 100, ties=True)
    assert left_out == 1  # a tie of a text with itself says nothing
    assert [[said.tie for said in group.said] for group in groups] == [[False], [True]]


@given(sizes=st.lists(st.integers(1, 6), max_size=20), most=st.integers(1, 60), seed=st.integers(0, 5))
def test_at_most_keeps_whole_groups_up_to_a_limit(sizes, most, seed):
    groups = [Group([place], [[1], [2]], [(0, 1)] * size) for place, size in enumerate(sizes)]
    kept = at_most(groups, most, seed)
    count = sum(len(group.pairs) for group in kept)
    assert count <= most
    assert all(count + len(group.pairs) > most for group in groups if group not in kept)
    assert at_most(groups, most, seed) == kept
    assert at_most(groups, None, seed) is groups


def test_pair_scores_follow_the_groups():
    chosen, rejected = pair_scores([4.0, 3.0, 2.0, 1.0, 10.0, 20.0], [RANKING, PAIR])
    assert chosen.tolist() == [4, 4, 4, 3, 3, 2, 20]
    assert rejected.tolist() == [3, 2, 1, 2, 1, 1, 10]


def test_accuracy_counts_a_draw_as_half():
    assert accuracy(np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 2.0, 4.0, -1.0])) == pytest.approx(2.5 / 4)
