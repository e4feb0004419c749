"""Ensembles: how members are combined, and what is on disk."""

import pytest
import torch

from tasks.errors import PreflineError
from tasks.training.ensemble import Ensemble, combined, ensemble_tag, load_scorer
from tasks.training.models import RewardModel, score_texts
from tasks.training.scorers import centre
from tasks.training.trees import Tree

EOS = 1
TREES = [Tree([3, 50], [[4, EOS], [70, 71, EOS]]), Tree([5], [[6, 7]])]
TEXTS = [[3, 50, 4, EOS], [3, 50, 70, 71, EOS], [5, 6, 7]]


@pytest.fixture
def members(policy_folder):
    found = [RewardModel.from_policy(policy_folder, seed) for seed in range(3)]
    for number, member in enumerate(found):
        member.bias = 0.5 * number
    return found


def test_members_are_combined_by_hand():
    # Answers with scores (1, 3) and (0, 0) and (-2, 4): variances 1, 0, 9
    scores = torch.tensor([[1.0, 0.0, -2.0], [3.0, 0.0, 4.0]])
    assert combined(scores, "mean").tolist() == [2, 0, 1]
    assert combined(scores, "min").tolist() == [1, 0, -2]
    assert combined(scores, "mean_minus_variance", 0.5).tolist() == [1.5, 0, -3.5]
    assert combined(scores, "mean_minus_variance", 0.0).tolist() == [2, 0, 1]


@pytest.mark.parametrize("how", ["mean", "min", "mean_minus_variance"])
def test_an_ensemble_is_called_like_a_reward_model(members, how):
    ensemble = Ensemble(members, how, 0.5).eval()
    with torch.no_grad():
        apart = torch.stack([member(TREES) for member in members])
        assert ensemble(TREES).tolist() == combined(apart, how, 0.5).tolist()
    assert score_texts(ensemble, TEXTS) == pytest.approx(combined(apart, how, 0.5).tolist(), abs=1e-5)
    assert ensemble.device == members[0].device
    assert apart.std(0).min() > 0.01


def test_save_and_load_give_equal_scores_and_the_first_member_alone_is_a_reward_model(members, tokenizer, tmp_path):
    ensemble = Ensemble(members, "mean_minus_variance", 0.7)
    ensemble.save(tokenizer, tmp_path)
    loaded = load_scorer(tmp_path)
    assert isinstance(loaded, Ensemble)
    assert (loaded.how, loaded.variance_weight) == ("mean_minus_variance", 0.7)
    assert score_texts(loaded, TEXTS) == pytest.approx(score_texts(ensemble, TEXTS), abs=1e-6)
    assert score_texts(RewardModel.load(tmp_path), TEXTS) == pytest.approx(score_texts(members[0], TEXTS), abs=1e-6)
    assert ensemble_tag(tmp_path) == {"prefline.ensemble": "member 1 of 3; policies were trained on their mean_minus_variance"}


def test_a_folder_of_one_model_is_that_model(members, tokenizer, tmp_path):
    members[1].save(tokenizer, tmp_path)
    loaded = load_scorer(tmp_path)
    assert isinstance(loaded, RewardModel)
    assert score_texts(loaded, TEXTS) == pytest.approx(score_texts(members[1], TEXTS), abs=1e-6)
    assert ensemble_tag(tmp_path) == {}


def test_a_missing_member_is_named(members, tokenizer, tmp_path):
    Ensemble(members, "mean", 1.0).save(tokenizer, tmp_path)
    (tmp_path / "members" / "2").rename(tmp_path / "members" / "second")
    with pytest.raises(PreflineError, match=r"3 members, but there is no .*/members/2"):
        load_scorer(tmp_path)


@pytest.mark.parametrize("how", ["mean", "min", "mean_minus_variance"])
def test_texts_have_mean_reward_0_by_the_ensemble_and_members_differ_by_no_offset(members, how):
    before = [score_texts(member, TEXTS) for member in members]
    ensemble = Ensemble(members, how, 0.5)
    shifts = centre(ensemble, members, TEXTS)
    assert sum(score_texts(ensemble, TEXTS)) == pytest.approx(0, abs=1e-5)
    means = [sum(score_texts(member, TEXTS)) / 3 for member in members]
    assert means == pytest.approx([means[0]] * 3, abs=1e-5)
    for member, was, shift in zip(members, before, shifts, strict=True):
        assert score_texts(member, TEXTS) == pytest.approx([score + shift for score in was], abs=1e-5)
