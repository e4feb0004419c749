"""Rejection sampling against every answer written out, and against itself after a kill."""

import pytest
import torch

from tasks.training.best_of_n import answer_all, batches_of_answers
from tasks.training.models import load_policy, score_texts
from tasks.training.rejection import best_answers, optimise

LEARNS = {"answers": 5, "epochs": 6.0, "batch": 3, "learning_rate": 1e-2, "looks": 3, "checkpoint_seconds": 0.0, "tokens_at_once": 120}


class Killed(BaseException):
    pass


def kill_after(calls):
    """A report that ends the run when it is called for the n-th time."""
    left = iter(range(calls - 1))

    def report(done, total, **metrics):
        if next(left, None) is None:
            raise Killed

    return report


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def all_answers(shop):
    """Of every prompt, what was said in order: (score with the penalty, tokens, stopped)."""
    (batch,) = batches_of_answers(shop.prompts, shop.config.rejection.answers, shop.sampling, 10**6)
    with shop.onlooker.reference() as reference:
        answers = answer_all(reference, batch, shop.sampling, shop.eos, shop.seed)
    scores = score_texts(shop.onlooker.reward_model, [wanted.prompt + answer.tokens for wanted, answer in zip(batch, answers, strict=True)])
    found = [[] for _ in shop.prompts]
    for wanted, answer, score in zip(batch, answers, scores, strict=True):
        assert wanted.number == len(found[wanted.place])
        found[wanted.place].append((score - shop.config.no_stop_penalty * (not answer.stopped), answer.tokens, answer.stopped))
    return found


# The best of n ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_at_once", [1, 150, 10**6])
def test_the_best_answer_to_each_prompt_is_learnt_however_they_are_batched(make_shop, tokens_at_once):
    shop = make_shop(rejection=LEARNS | {"tokens_at_once": tokens_at_once})
    found, every = best_answers(shop), all_answers(shop)
    assert len(found) == len(shop.prompts) == 9
    for best, answers in zip(found, every, strict=True):
        score, tokens, stopped = max(answers, key=lambda answer: answer[0])
        assert (best.tokens, best.stopped) == (tokens, stopped)
        assert best.score == pytest.approx(score, abs=1e-4)
    assert sum(best.tokens != answers[0][1] for best, answers in zip(found, every, strict=True)) >= 4


def test_an_answer_that_did_not_stop_pays_for_it(make_shop):
    # With 300 tokens to draw from hardly any of 9 x 60 answers ends within 6: those that do are learnt at any price
    dear, free = (
        make_shop(name, no_stop_penalty=penalty, rejection=LEARNS | {"answers": 60}) for name, penalty in (("a", 1e3), ("b", 0.0))
    )
    stopping = [any(stopped for *_, stopped in answers) for answers in all_answers(dear)]
    assert 0 < sum(stopping) < 9
    assert [best.stopped for best in best_answers(dear)] == stopping
    assert sum(best.stopped for best in best_answers(free)) < sum(stopping)


def test_of_equals_the_first_is_learnt(make_shop):
    shop = make_shop(rejection=LEARNS | {"tokens_at_once": 10**6})
    head = shop.onlooker.reward_model.body.score
    with torch.no_grad():
        head.weight.zero_()
    answers = all_answers(shop)
    stopped_first = [next((tokens for _, tokens, stopped in said if stopped), said[0][1]) for said in answers]
    assert [best.tokens for best in best_answers(shop)] == stopped_first


# The method ------------------------------------------------------------------------------------------------------------


def test_the_policy_comes_to_say_what_the_reward_model_liked(make_shop):
    told = []
    shop = make_shop(rejection=LEARNS, choose="last", report=lambda done, total, **metrics: told.append((done, total, metrics)))
    found = optimise(shop)
    sampled, steps = [row for row in told if not row[2]], [row for row in told if row[2]]
    assert sampled[-1][:2] == (45, 45)
    assert [done for done, *_ in steps] == list(range(1, 19))
    assert steps[-1][2]["loss"] < steps[0][2]["loss"] - 1
    assert [look.round for look in found.looks] == [0, 1, 2, 3]
    assert (found.rounds, found.best_round, found.ended) == (3, 3, "")
    assert [row["share"] for row in found.history] == pytest.approx([1 / 3, 2 / 3, 1])
    best = best_answers(shop)
    assert found.figures["prompts"] == 9
    assert found.figures["learnt_score"] == pytest.approx(sum(answer.score for answer in best) / 9)
    assert found.figures["learnt_no_stop"] == pytest.approx(1 - sum(answer.stopped for answer in best) / 9)
    assert steps[0][2]["loss"] == pytest.approx(loss_of_the_first_step(shop, best), rel=1e-4)


def loss_of_the_first_step(shop, best):
    """-log p of a token of the SFT model's own answers, by plain passes: a mean over the tokens of the first batch."""
    from tasks.training.loop import order_of_epoch

    model, lost, tokens = load_policy(shop.sft), 0.0, 0
    for place in order_of_epoch(9, shop.seed, 0)[:3]:
        prompt, answer = shop.prompts[place], best[place].tokens
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        lost -= sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
        tokens += len(answer)
    return lost / tokens


@pytest.mark.parametrize("kills", [(1, 1), (3, 4), (9, 12), (20, 5)])  # reports until it dies, and until it dies again
def test_a_run_that_was_killed_ends_in_the_weights_of_an_unbroken_one(make_shop, kills):
    told = []
    unbroken = optimise(make_shop("unbroken", rejection=LEARNS, report=lambda *done, **_: told.append(done)))
    assert [total for _, total in told] == [45] * 9 + [18] * 18  # batches of sampling, then steps
    for calls in kills:
        with pytest.raises(Killed):
            optimise(make_shop("killed", rejection=LEARNS, report=kill_after(calls)))
    again = []
    resumed = optimise(make_shop("killed", rejection=LEARNS, report=lambda *done, **_: again.append(done)))
    assert same(resumed.policy, unbroken.policy)
    assert (resumed.looks, resumed.history, resumed.best_round) == (unbroken.looks, unbroken.history, unbroken.best_round)
    assert resumed.figures == unbroken.figures
    assert again == told[-len(again) :]
    assert len(again) < len(told)
