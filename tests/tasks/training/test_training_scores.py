"""Where a reward model reads a score, and what it does not depend on."""

import math

import pytest
import torch

from tasks.training.models import RewardModel, save, score_texts
from tasks.training.reward_model import Group, group_scores
from tasks.training.trees import Tree

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
LONG = [text for text in TEXTS if len(text) > 1] + [[9, 9]]
"""The same, each long enough to be parted in prompt and answer."""


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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("more", [0, 5])
def test_scores_are_those_of_the_saved_classifier_whatever_its_padding(reward, tokenizer, tmp_path, side, more):
    """Others score with transformers alone: its answer at a text's last token is ours, but for the bias."""
    reward.bias = 0.5
    width = max(map(len, TEXTS)) + more
    for text in TEXTS:
        filler = [0] * (width - len(text))
        row = filler + text if side == "left" else text + filler
        mask = [0] * len(filler) + [1] * len(text) if side == "left" else [1] * len(text) + [0] * len(filler)
        steps = torch.tensor([mask])
        with torch.no_grad():
            hidden = reward.body.model(
                input_ids=torch.tensor([row]), attention_mask=steps, position_ids=(steps.cumsum(-1) - steps).long()
            ).last_hidden_state[0]
            theirs = reward.body.score(hidden)[width - 1 if side == "left" else len(text) - 1].item() + 0.5
        assert score_texts(reward, [text, [5] * width])[0] == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 8])
def test_scores_are_the_same_in_batches_of_1_and_of_8(reward, batch):
    with torch.no_grad():
        parts = [reward([Tree(text[:1], [text[1:]]) for text in LONG[i : i + batch]]) for i in range(0, 8, batch)]
    assert torch.cat(parts).tolist() == pytest.approx([score_by_hand(reward, text) for text in LONG], abs=1e-5)


def test_scores_of_a_tree_are_those_of_its_texts(reward):
    prompt, answers = [3, 50, 60], [[4, EOS], [70, 71, 72, EOS], [9], [70, 71, 72, EOS]]
    with torch.no_grad():
        together = reward([Tree(prompt, answers), Tree([5], [[6, 7]])]).tolist()
    texts = [prompt + answer for answer in answers] + [[5, 6, 7]]
    assert together == pytest.approx([score_by_hand(reward, text) for text in texts], abs=1e-5)


def test_group_scores_are_those_of_the_texts_in_order_together_or_apart(reward):
    groups = [Group([3, 50], [[4, EOS], [70, EOS]], [(0, 1)]), Group([8] * 20, [[9]]), Group([5], [[6, 7], [6], [EOS]], [(2, 0)])]
    expected = [score_by_hand(reward, text) for group in groups for text in group.texts]
    for together in (False, True):
        for group in groups:
            group.together = together
        for tokens_at_once in (1, 10_000):
            assert group_scores(reward, groups, tokens_at_once) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 20, 10_000])
def test_scores_do_not_depend_on_batch_size_or_order(reward, tokens_at_once):
    expected = score_texts(reward, TEXTS)
    assert score_texts(reward, TEXTS, tokens_at_once) == pytest.approx(expected, abs=1e-5)
    assert score_texts(reward, TEXTS[::-1], tokens_at_once) == pytest.approx(expected[::-1], abs=1e-5)


def test_no_texts_have_no_scores(reward):
    assert score_texts(reward, []) == []


def test_values_stand_before_each_token_and_see_only_what_came_before(reward):
    reward.bias = 0.7
    trees = [Tree(text[:1], [text[1:]]) for text in LONG]
    with torch.no_grad():
        values = reward.values(trees)
    for row, text in enumerate(LONG):
        expected = [score_by_hand(reward, text[:end]) for end in range(1, len(text))]
        assert values[row, : len(text) - 1].tolist() == pytest.approx(expected, abs=1e-5)
        assert not values[row, len(text) - 1 :].any()


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
