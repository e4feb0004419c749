"""Reward models: where a score is read, what it does not depend on, and the loss pair by pair."""

import copy
import math

import numpy as np
import pytest
import torch

from tasks.data.records import Comparison, assistant, user
from tasks.training.losses import bradley_terry_loss
from tasks.training.models import RewardModel, pad, save, score_texts
from tasks.training.reward_model import Group, accuracy, group_loss, pair_scores, reward_groups

EOS = 1
TEXTS = [
    [3, 50, 60, 4, 70, EOS],
    [3, 50, 4, EOS],
    [3, 51, 61, 71, 81, 91, 4, 99, EOS],
    [3, 4, 5],
    [9],
    [3, EOS, 4, 80],
    [7] * 12,
    [8, 9, EOS],
]
"""Eight texts of different lengths, two of them with an EOS before their end."""


@pytest.fixture
def reward(policy_folder):
    return RewardModel.from_policy(policy_folder, seed=0)


# The head ------------------------------------------------------------------------------------------------------------


def test_the_head_starts_with_standard_deviation_1_over_root_of_width_plus_1(make_llama, tokenizer, tmp_path):
    save(make_llama(12, width=1024), tokenizer, tmp_path)
    reward = RewardModel.from_policy(tmp_path, seed=0)
    weight = reward.body.score.weight
    assert weight.shape == (1, 1024)
    # 1,024 draws give the standard deviation to 2.2 %, the mean to 1 / 32 of it
    assert weight.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.07)
    assert abs(weight.mean().item()) < 0.1 / math.sqrt(1025)
    assert reward.bias == 0
    assert reward.body.score.bias is None


def test_the_head_depends_on_the_seed_and_the_body_is_the_policys(policy_folder, llama):
    first, again, other = (RewardModel.from_policy(policy_folder, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(first["body.score.weight"], again["body.score.weight"])
    assert not torch.equal(first["body.score.weight"], other["body.score.weight"])
    for name, weight in llama.model.state_dict().items():
        assert torch.equal(first[f"body.model.{name}"], weight)


# Where a score is read -----------------------------------------------------------------------------------------------


@torch.no_grad()
def score_by_hand(reward, text):
    """The body's last hidden state of the text alone, times the head."""
    hidden = reward.body.model(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0, -1]
    return (hidden @ reward.body.score.weight[0]).item() + reward.bias


def test_a_text_is_scored_at_its_own_last_token_even_when_eos_occurs_before_it(reward):
    scores = score_texts(reward, TEXTS)
    assert scores == pytest.approx([score_by_hand(reward, text) for text in TEXTS], abs=1e-5)
    assert max(scores) - min(scores) > 0.1


@pytest.mark.parametrize("pad_id", [0, EOS, 77], ids=["pad", "eos", "a word"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("more", [0, 5])
def test_scores_do_not_depend_on_padding(reward, pad_id, side, more):
    tokens, mask = pad([*TEXTS, [9] * (12 + more)], pad_id, side)
    with torch.no_grad():
        found = reward(tokens, mask)[: len(TEXTS)].tolist()
    assert found == pytest.approx([score_by_hand(reward, text) for text in TEXTS], abs=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 20, 10_000])
def test_scores_do_not_depend_on_batch_size_or_order(reward, tokens_at_once):
    expected = score_texts(reward, TEXTS)
    assert score_texts(reward, TEXTS, tokens_at_once) == pytest.approx(expected, abs=1e-5)
    assert score_texts(reward, TEXTS[::-1], tokens_at_once) == pytest.approx(expected[::-1], abs=1e-5)


def test_no_texts_have_no_scores(reward):
    assert score_texts(reward, []) == []


def test_values_end_in_the_score_and_see_only_what_came_before(reward):
    reward.bias = 0.7
    tokens, mask = pad(TEXTS, 0)
    with torch.no_grad():
        values = reward.values(tokens, mask)
    for row, text in enumerate(TEXTS):
        expected = [score_by_hand(reward, text[: end + 1]) for end in range(len(text))]
        assert values[row, : len(text)].tolist() == pytest.approx(expected, abs=1e-5)


def test_prompt_and_answer_are_both_read(reward):
    score = score_by_hand(reward, [3, 50, 4, 70, EOS])
    assert abs(score_by_hand(reward, [3, 51, 4, 70, EOS]) - score) > 1e-3
    assert abs(score_by_hand(reward, [3, 50, 4, 71, EOS]) - score) > 1e-3


def test_save_and_load_give_equal_scores_bias_and_all(reward, tokenizer, tmp_path):
    reward.bias = -1.25
    expected = score_texts(reward, TEXTS)
    reward.save(tokenizer, tmp_path / "reward")
    loaded = RewardModel.load(tmp_path / "reward")
    assert loaded.bias == -1.25
    assert score_texts(loaded, TEXTS) == expected
    loaded.save(tokenizer, tmp_path / "again")
    assert score_texts(RewardModel.load(tmp_path / "again"), TEXTS) == expected


def test_a_bias_shifts_every_score_alike(reward):
    before = score_texts(reward, TEXTS)
    reward.bias = 2.0
    assert score_texts(reward, TEXTS) == pytest.approx([score + 2 for score in before], abs=1e-5)


# The loss ------------------------------------------------------------------------------------------------------------

RANKING = Group(TEXTS[:4], [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
PAIR = Group(TEXTS[5:7], [(1, 0)])


class Fixed(torch.nn.Module):
    """A reward model whose scores are given: those of the texts in order."""

    def __init__(self, *scores):
        super().__init__()
        self.scores, self.rows = torch.nn.Parameter(torch.tensor(scores)), 0

    def forward(self, tokens, mask):
        self.rows += len(tokens)
        return self.scores


def test_group_loss_of_one_pair_by_hand():
    # -log sigmoid(1 - 3) = 2.126928
    assert group_loss(Fixed(3.0, 1.0), [PAIR]).item() == pytest.approx(2.126928, abs=1e-6)


def test_centring_by_hand():
    # 0.1 * (1 + 3)^2 on top
    assert group_loss(Fixed(3.0, 1.0), [PAIR], centring=0.1).item() == pytest.approx(2.126928 + 1.6, abs=1e-6)


def test_a_ranking_of_four_is_encoded_once_and_its_six_pairs_weigh_one_sixth_each():
    model = Fixed(3.0, 1.0, 0.5, -1.0)
    # differences 2, 2.5, 4, 0.5, 2, 1.5: -log sigmoid 0.126928, 0.078889, 0.018150, 0.474077, 0.126928, 0.201413
    assert group_loss(model, [RANKING]).item() == pytest.approx(1.026385 / 6, abs=1e-6)
    assert model.rows == 4


def test_a_batch_of_groups_is_the_sum_of_means_computed_pair_by_pair(reward):
    def one(text):
        return reward(*pad([text], 0))

    def by_pairs(group):
        losses = [bradley_terry_loss(one(group.texts[i]), one(group.texts[j])) for i, j in group.pairs]
        centring = [0.05 * (one(group.texts[i]) + one(group.texts[j])) ** 2 for i, j in group.pairs]
        return torch.stack([a + b for a, b in zip(losses, centring, strict=True)]).mean()

    def gradients(loss):
        reward.zero_grad()
        loss.backward()
        return [copy.deepcopy(parameter.grad) for parameter in reward.parameters()]

    expected = by_pairs(RANKING) + by_pairs(PAIR)
    found = group_loss(reward, [RANKING, PAIR], centring=0.05)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_trust_by_hand():
    # -log sigmoid(2) = 0.126928 counts 1.5, -log sigmoid(-1) = 1.313262 half
    group = Group(TEXTS[:3], [(0, 1), (1, 2)], [1.5, 0.5])
    assert group_loss(Fixed(3.0, 1.0, 2.0), [group]).item() == pytest.approx((1.5 * 0.126928 + 0.5 * 1.313262) / 2, abs=1e-6)


def test_trust_of_1_is_no_trust_at_all_and_of_0_teaches_nothing():
    scores = (3.0, 1.0, 0.5, -1.0)
    trusted = Group(RANKING.texts, RANKING.pairs, [1.0] * 6)
    assert group_loss(Fixed(*scores), [trusted], 0.1).item() == group_loss(Fixed(*scores), [RANKING], 0.1).item()
    model = Fixed(*scores, 2.0, 1.0)
    group_loss(model, [Group(RANKING.texts, RANKING.pairs, [0.0] * 6), PAIR], 0.1).backward()
    assert model.scores.grad[:4].tolist() == [0, 0, 0, 0]
    assert model.scores.grad[4:].abs().min() > 0


def test_a_group_has_its_full_place_in_a_step_however_little_it_is_trusted():
    assert Group(TEXTS[:2], [(0, 1)], [0.1]).weight == 1.0


# Comparisons as groups -----------------------------------------------------------------------------------------------


def comparison(number, chosen, rejected, ranking=None, tie=False, prompt="How warm is the lamp?", annotator=None):
    return Comparison(
        id=f"c{number}",
        prompt=[user(prompt)],
        chosen=[assistant(chosen)],
        rejected=[assistant(rejected)],
        source="march.jsonl",
        source_id=str(number),
        group_id=prompt,
        ranking=ranking,
        annotator=annotator,
        tie=tie,
    )


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
    assert group.tokens == 4 * max(len(text) for text in group.texts)


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
    groups, _ = reward_groups(rows, tokenizer, 100, {"ann": 1.5, "bob": 0.0})
    assert [group.trust for group in groups] == [[1.5, 0.0, 1.0], [1.0]]
    assert [group.trust for group in reward_groups(rows, tokenizer, 100)[0]] == [[], []]


def test_pair_scores_follow_the_groups():
    chosen, rejected = pair_scores([4.0, 3.0, 2.0, 1.0, 10.0, 20.0], [RANKING, PAIR])
    assert chosen.tolist() == [4, 4, 4, 3, 3, 2, 20]
    assert rejected.tolist() == [3, 2, 1, 2, 1, 1, 10]


def test_accuracy_counts_a_draw_as_half():
    assert accuracy(np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 2.0, 4.0, -1.0])) == pytest.approx(2.5 / 4)
