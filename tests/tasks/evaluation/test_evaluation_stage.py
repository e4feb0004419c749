"""The stage on models of one layer and width 16, from random weights, over results written by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.config import EvaluationConfig, PipelineConfig
from tasks.data.records import user, write_jsonl
from tasks.data.shop import Shop
from tasks.data.snapshot import dataset
from tasks.errors import PreflineError
from tasks.evaluation.answers import Speaker, Texts, Vocabulary, answers_table, read_answers
from tasks.evaluation.best_of_n import ANSWERS, NS, best_of_n, read_curve
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.plan import plan
from tasks.evaluation.planning import detectable_rate, prompts_needed
from tasks.evaluation.result import Evaluation
from tasks.evaluation.selection import best_of_n as select
from tasks.stage import Context
from tasks.training.base import train_tokenizer
from tasks.training.logprobs import tree_logprobs
from tasks.training.models import RewardModel, save
from tasks.training.sampling import Sampling
from tasks.training.trees import Tree, trees_of

SHOP = Path(__file__).parents[3] / "data" / "shop.yaml"
CONFIG = PipelineConfig(max_tokens=100, max_new_tokens=8, evaluation=EvaluationConfig(prompts=12, resamples=200, probes=[]))


def run(line, root, config=CONFIG, *observers):
    return evaluate.run(config, line, Context(root=root, runs=root / "runs", observers=observers))


def test_a_whole_evaluation(line, tmp_path, watcher):
    inputs = line()
    result = run(inputs, tmp_path, CONFIG, watcher)
    written = {path.name for path in result.path.iterdir()}
    assert written >= {"evaluation.json", "answers.jsonl", "report.html", "report.md", "frontier.png", "slices.png", "calibration.png"}
    found, rows = Evaluation.load(result.path), read_answers(result.path)
    assert found.prompts == len(rows) == len({row.prompt[0]["content"] for row in rows}) == 10
    assert found.win_rate.wins == sum(row.policy.judge > row.sft.judge and row.policy.text != row.sft.text for row in rows)
    assert found.policy.own == pytest.approx(np.mean([row.policy.own for row in rows]))
    assert found.kl > 0
    assert found.judge_pairs == 20
    assert [one.name for one in found.slices] == ["warmth"]
    assert found.win_rate_gold is None
    assert result.metrics["win_rate"] == found.win_rate.rate
    assert watcher.progress[-1][0] == watcher.progress[-1][1]
    assert run(inputs, tmp_path).skipped == "unchanged"


def test_a_plan_says_before_training_what_the_prompts_can_show(line, tmp_path):
    inputs = line()
    found = plan.run(CONFIG, {"data": inputs["data"], "base": inputs["sft"]}, Context(root=tmp_path, runs=tmp_path / "runs")).metrics
    assert found["prompts"] == 10  # those that the evaluation asks
    assert found["needed"] == prompts_needed(0.6)
    assert found["detectable"] == pytest.approx(detectable_rate(10))
    evaluation = CONFIG.evaluation.model_copy(update={"effect": 0.9})
    bolder = CONFIG.model_copy(update={"evaluation": evaluation})
    easier = plan.run(bolder, {"data": inputs["data"], "base": inputs["sft"]}, Context(root=tmp_path, runs=tmp_path / "runs")).metrics
    assert easier["needed"] == prompts_needed(0.9) < found["needed"]
    assert easier["detectable"] == found["detectable"]


PROBES = """
name: typos
kind: adversarial
prompts:
  - {prompt: "How wram is the lamp?", contains: ["warm"]}
  - {prompt: "How warm is the lamp? Say it and nothing else, and then say it again.", refuse: false}
"""


def test_probes_have_no_effect_on_the_evaluation(line, tmp_path, watcher):
    (tmp_path / "probes.yaml").write_text(PROBES)
    inputs = line()
    asking = CONFIG.model_copy(update={"evaluation": EvaluationConfig(prompts=12, resamples=200, probes=["probes.yaml"])})
    without, result = run(inputs, tmp_path), run(inputs, tmp_path, asking, watcher)
    assert watcher.progress[-1][0] == watcher.progress[-1][1]
    assert read_answers(result.path) == read_answers(without.path)
    found, plain = Evaluation.load(result.path), Evaluation.load(without.path)
    assert (found.prompts, found.win_rate, found.policy, found.slices) == (plain.prompts, plain.win_rate, plain.policy, plain.slices)
    assert [(one.name, one.prompts, one.checked, one.too_long) for one in found.probes] == [("typos", 2, 2, 0)]
    assert len((result.path / "probes.jsonl").read_text().splitlines()) == 2
    (tmp_path / "probes.yaml").write_text(PROBES.replace("wram", "wamr"))
    assert not run(inputs, tmp_path, asking).skipped  # what a file says is part of the key


def test_same_seed_same_evaluation(line, tmp_path):
    inputs = line()
    first = run(inputs, tmp_path)
    again = evaluate.run(CONFIG, inputs, Context(root=tmp_path, runs=tmp_path / "runs", force=frozenset({"evaluate"})))
    assert again.digest == first.digest
    other = run(inputs, tmp_path, CONFIG.model_copy(update={"seed": 1}))
    assert other.digest != first.digest


def test_equal_models_tie(line, tmp_path):
    result = run(line(policy_seed=0), tmp_path)
    found = Evaluation.load(result.path)
    assert (found.win_rate.wins, found.win_rate.losses, found.win_rate.ties) == (0, 0, 10)
    assert (found.win_rate.low, found.win_rate.rate, found.win_rate.high) == (0.5, 0.5, 0.5)
    assert found.kl == pytest.approx(0, abs=1e-4)
    assert not found.over_optimisation.hacked


def test_fewer_prompts_are_drawn_by_the_seed(line, tmp_path):
    few = CONFIG.model_copy(update={"evaluation": EvaluationConfig(prompts=4, resamples=50, temperature=0, probes=[])})
    inputs = line()
    rows = read_answers(run(inputs, tmp_path, few).path)
    others = read_answers(run(inputs, tmp_path, few.model_copy(update={"seed": 5})).path)
    assert len(rows) == len(others) == 4
    assert {row.group_id for row in rows} != {row.group_id for row in others}


def test_champion_with_another_vocabulary(line, tmp_path, make_llama):
    other = train_tokenizer(["A wholly other text about kettles and lamps."] * 5, 290)
    result = run(line(champion=(make_llama(len(other), 7), other)), tmp_path)
    found, rows = Evaluation.load(result.path), read_answers(result.path)
    assert (found.baseline, found.baseline_version) == ("champion, version 2", "2")
    assert found.baseline_means.length == pytest.approx(np.mean([row.baseline.length for row in rows]))
    assert all(row.rival is row.baseline for row in rows)


def test_other_versions_are_compared_with_besides(line, tmp_path, make_llama, tokenizer, watcher):
    inputs = line()
    folder = inputs["baseline"].path
    besides = {"against": [{"name": "version 7", "version": "7"}]}
    (folder / "baseline.json").write_text(json.dumps({"name": "SFT model", "version": None, "model_digest": None, **besides}))
    save(make_llama(len(tokenizer), 9), tokenizer, folder / "against" / "7")
    result = run(inputs, tmp_path, CONFIG, watcher)
    assert watcher.progress[-1][0] == watcher.progress[-1][1]
    found, rows = Evaluation.load(result.path), read_answers(result.path)
    [other] = found.against
    assert (other.name, other.version, other.win_rate_gold) == ("version 7", "7", None)
    assert {row.others[0].name for row in rows} == {"version 7"}
    assert other.win_rate.wins == sum(row.others[0].judge == "win" for row in rows)
    assert all((row.others[0].judge == "win") == (row.policy.judge > row.others[0].reply.judge) for row in rows)
    assert other.means.length == pytest.approx(np.mean([row.others[0].reply.length for row in rows]))
    assert "<td>version 7</td>" in (result.path / "report.html").read_text()
    assert "judge_over version 7" in answers_table(rows)


def test_no_test_prompt(line, tmp_path):
    with pytest.raises(PreflineError, match="no test prompt") as error:
        run(line(test_prompts=0), tmp_path)
    assert "data.split.test" in error.value.advice
    assert not list((tmp_path / "runs" / "stages" / "evaluate").glob("*/manifest.json"))


def test_prompts_without_room(line, tmp_path):
    with pytest.raises(PreflineError, match="room for an answer"):
        run(line(), tmp_path, CONFIG.model_copy(update={"max_tokens": 10}))


def test_no_comparison_to_measure_the_judge_by(line, tmp_path):
    with pytest.raises(PreflineError, match="No held-out comparison"):
        run(line(ties=True), tmp_path)


def test_best_of_n_stands_beside_the_rounds(line, tmp_path):
    inputs = line(test_prompts=6)  # the other four are of validation, where the rounds were looked at
    config = CONFIG.model_copy(update={"evaluation": CONFIG.evaluation.model_copy(update={"best_of_n": 5})})
    found = Evaluation.load(run(inputs, tmp_path, config).path).best_of_n
    assert [one.n for one in found] == [1, 2, 4, 5]
    assert found[0].own_gain == found[0].judge_gain == (0.0, 0.0, 0.0)
    gains = [one.own_gain[0] for one in found]
    assert gains == sorted(gains)
    assert gains[1] > 0
    assert found[0].gold_gain is None


@pytest.mark.parametrize("changes", [{"best_of_n": 0}, {"temperature": 0}])
def test_no_best_of_n_where_it_says_nothing(line, tmp_path, changes):
    inputs = line(test_prompts=6)
    config = CONFIG.model_copy(update={"evaluation": CONFIG.evaluation.model_copy(update=changes)})
    models = {name: inputs[name].path / "model" for name in ("sft", "reward_model", "judge")}
    assert select(config, dataset(inputs["data"], tmp_path), Vocabulary.load(models["sft"]), **models) == []


def test_benchmark_files_are_scored_and_their_content_is_part_of_the_key(line, tmp_path):
    row = {"prompt": "How warm is the lamp?", "chosen": "It is warm.", "rejected": "Sorry.", "subset": "warmth", "chosen_model": "a"}
    write_jsonl(tmp_path / "bench.jsonl", [row, row | {"prompt": "How warm is the rug?", "rejected": "No."}])
    config = CONFIG.model_copy(update={"evaluation": CONFIG.evaluation.model_copy(update={"reward_bench": ["bench.jsonl"]})})
    inputs = line()
    first = run(inputs, tmp_path, config)
    found = Evaluation.load(first.path).scorers.reward_bench
    assert [(part.name, part.pairs) for part in found.categories] == [("warmth", 2)]
    assert found.overall.judge is not None
    assert "Reward model on benchmark files" in (first.path / "report.md").read_text()
    assert run(inputs, tmp_path, config).skipped == "unchanged"
    write_jsonl(tmp_path / "bench.jsonl", [row])
    assert [part.pairs for part in Evaluation.load(run(inputs, tmp_path, config).path).scorers.reward_bench.categories] == [1]


def test_gold_where_the_truth_is_known(line, tmp_path):
    shop = Shop.from_yaml(SHOP, 0)
    questions = [question.text for question in shop.questions[:: len(shop.questions) // 10]][:10]
    rows = read_answers(run(line(questions=questions, shop=shop), tmp_path).path)
    for row in rows:
        known = shop.gold(row.prompt[0]["content"], row.policy.text)
        assert (row.policy.gold, row.policy.right) == (known.utility, known.right)
        assert row.gold == ("tie" if row.policy.gold == row.sft.gold else "win" if row.policy.gold > row.sft.gold else "loss")


def test_no_gold_where_the_truth_does_not_know_the_prompts(line, tmp_path):
    assert Evaluation.load(run(line(shop=Shop.from_yaml(SHOP, 0)), tmp_path).path).win_rate_gold is None


def best_of(line, root, **options):
    inputs = {name: line[name] for name in ("data", "sft", "reward_model", "judge")}
    return best_of_n.run(CONFIG, inputs, Context(root=root, runs=root / "runs", **options))


def test_best_of_n_on_the_prompts_of_the_evaluation(line, tmp_path):
    inputs = line()
    result = best_of(inputs, tmp_path)
    curve = read_curve(result.path)
    assert [one.n for one in curve] == list(NS)
    assert max(NS) < ANSWERS
    assert {len(scores) for one in curve for scores in (one.own, one.judge)} == {Evaluation.load(run(inputs, tmp_path).path).prompts}
    means = [np.mean(one.own) for one in curve]
    assert means == sorted(means)
    assert means[0] < means[-1]
    assert result.metrics["judge"] == pytest.approx(np.mean(curve[-1].judge))
    assert best_of(inputs, tmp_path, force=frozenset({"best_of_n"})).digest == result.digest


def test_kept_logprobs_are_those_of_a_second_look(policy_folder):
    speaker = Speaker.load(policy_folder)
    prompts = [[user("How warm is the red lamp?")], [user("Sorry")], [user("What does the blue kettle cost?")]]
    answers = speaker.answer(prompts, Sampling(12, 0.7), 3, lambda _: None)
    again = speaker.logprobs(prompts, [answer.tokens for answer in answers], 0.7)
    for answer, logprobs in zip(answers, again, strict=True):
        assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_batches_have_no_effect_on_logprobs(policy_folder, monkeypatch):
    speaker = Speaker.load(policy_folder)
    prompts = [[user(text)] for text in ("How warm is the red lamp?", "Sorry", "What?")]
    tokens = [[5, 6, 7], [8], [9, 10]]
    whole, _ = tree_logprobs(speaker.model, trees_of([speaker.vocabulary.encode(p) for p in prompts], tokens), 1.0)
    monkeypatch.setattr("tasks.evaluation.answers.TOKENS_AT_ONCE", 1)
    assert [len(row) for row in speaker.logprobs(prompts, tokens, 1.0)] == [3, 1, 2]
    for row, expected in zip(speaker.logprobs(prompts, tokens, 1.0), whole.tolist(), strict=True):
        assert row == pytest.approx(expected[: len(row)], abs=1e-5)


def test_equal_texts_have_equal_scores(policy_folder, tokenizer, tmp_path):
    RewardModel.from_policy(policy_folder, 0).save(tokenizer, tmp_path / "model")
    texts = Texts()
    assert [texts.place(tokens) for tokens in ([4, 5], [6], [4, 5])] == [0, 1, 0]
    scores = texts.scores(tmp_path / "model")
    alone = RewardModel.load(tmp_path / "model").eval()([Tree([], [[6]])])
    assert scores.shape == (2,)
    assert scores[1] == pytest.approx(alone.item(), abs=1e-5)


def test_words_of_another_vocabulary(policy_folder, make_llama, tmp_path):
    other = train_tokenizer(["A wholly other text."] * 5, 290)
    save(make_llama(len(other), 7), other, tmp_path / "other")
    speaker, vocabulary = Speaker.load(tmp_path / "other"), Vocabulary.load(policy_folder)
    prompt = [user("Sorry")]
    [answer] = speaker.answer([prompt], Sampling(6), 0, lambda _: None)
    tokens = speaker.in_words_of(vocabulary, prompt, answer)
    assert vocabulary.tokenizer.decode(tokens, skip_special_tokens=True).strip() == speaker.text(answer)
    assert (tokens[-1] == vocabulary.tokenizer.eos_token_id) == answer.stopped
    assert speaker.in_words_of(speaker.vocabulary, prompt, answer) is answer.tokens
