"""Judges in the stage: who decides, what is registered of a judge that fails, and labels that come back."""

import json
import sqlite3

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tasks.config import BudgetConfig, EvaluationConfig, LanguageModelConfig, PipelineConfig
from tasks.data.export import export_questions
from tasks.errors import ConfigError, PreflineError
from tasks.evaluation.answers import read_answers
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.judges.blind import questions
from tasks.evaluation.judges.replies import FILE
from tasks.evaluation.result import Evaluation
from tasks.registry.gates import Facts, PromotionPolicy, check_gates
from tasks.stage import Context
from tasks.training.base import train_tokenizer


@pytest.fixture
def config(tmp_path, chat_server):
    """config(judge=..., ...) -> with a language model that is asked."""
    (tmp_path / "judge.txt").write_text("{prompt}|{first}|{second}")

    def make(judge="language_model", people=(), prompts=6, **model):
        asked = {"url": chat_server.url, "model": "wise", "template": "judge.txt", "requests_a_minute": 1e6} | model
        evaluation = EvaluationConfig(
            prompts=prompts, resamples=50, probes=[], judge=judge, people=list(people), language_model=LanguageModelConfig(**asked)
        )
        return PipelineConfig(max_tokens=100, max_new_tokens=8, evaluation=evaluation)

    return make


@pytest.fixture
def run(tmp_path):
    def call(line, config, force=False, observers=()):
        forced = frozenset({"evaluate"}) if force else frozenset()
        return evaluate.run(config, line, Context(root=tmp_path, runs=tmp_path / "runs", observers=observers, force=forced))

    return call


def by_name(result):
    found = Evaluation.load(result.path)
    return found, {report.judge: report for report in found.judges}


def refused(found, judge):
    return {gate.name for gate in check_gates(found, PromotionPolicy(judge=judge), Facts()) if not gate.passed}


def test_a_language_model_decides_and_a_second_run_asks_nothing(line, config, run, chat_server, make_llama, watcher):
    other = train_tokenizer(["A wholly other text about kettles and lamps."] * 5, 290)
    inputs = line(champion=(make_llama(len(other), 7), other))
    result = run(inputs, config(), observers=[watcher])
    found, judges = by_name(result)
    rows = read_answers(result.path)
    assert found.decided_by == "language_model"
    assert list(judges) == ["reward_model", "language_model"]
    for row in rows:
        for verdict, other in ((row.judge, row.rival), (row.judge_over_sft, row.sft)):
            ours, theirs = len(row.policy.text), len(other.text)
            assert verdict == ("win" if ours > theirs else "loss" if ours < theirs else "tie")
        assert [one.judge for one in row.verdicts] == ["reward_model", "language_model"]
    assert found.win_rate == judges["language_model"].win_rate
    assert found.win_rate_over_sft == judges["language_model"].win_rate_over_sft
    longest = judges["language_model"]
    assert (longest.pairs, longest.accuracy[0]) == (20, 0.5)  # people chose "It is warm." over a shorter and a longer answer
    assert (longest.prefers_longer, longest.people_prefer_longer, longest.prefers_first) == (1.0, 0.5, 0.5)
    assert (longest.orders_disagree, longest.unparsable) == (0.0, 0)
    assert judges["reward_model"].accuracy == found.judge_accuracy
    assert judges["reward_model"].pairs == found.judge_pairs
    assert watcher.progress[-1][0] == watcher.progress[-1][1] > longest.spent.calls
    assert len(chat_server.seen) == longest.spent.calls
    assert refused(found, "language_model") >= {"judge agrees with people"}
    assert "judge" not in refused(found, "language_model")
    assert "judge" in refused(found, "reward_model")

    again = by_name(run(inputs, config(), force=True))[1]["language_model"]
    assert (again.spent.calls, again.spent.cached) == (0, longest.spent.calls)
    assert again.win_rate == longest.win_rate


def test_the_reward_model_decides_and_the_language_model_is_shown_beside(line, config, run):
    found, judges = by_name(run(line(), config("reward_model", human_pairs=3)))
    assert found.win_rate == judges["reward_model"].win_rate
    assert judges["language_model"].pairs == 3
    assert judges["language_model"].win_rate.wins + judges["language_model"].win_rate.losses > 0


@pytest.mark.parametrize("says", ["Verdict: A", "I like both!"], ids=["always A", "rubbish"])
def test_who_can_not_judge_is_found_out_and_promotes_nobody(line, config, run, chat_server, says):
    chat_server.judge = lambda first, second: says
    found, judges = by_name(run(line(), config()))
    judge = judges["language_model"]
    assert judge.accuracy == (0.5, 0.5, 0.5)
    assert (judge.prefers_first, judge.orders_disagree, judge.unparsable) == (
        (1.0, 1.0, 0) if says == "Verdict: A" else (None, None, judge.orders)
    )
    assert found.win_rate.ties == found.prompts
    assert refused(found, "language_model") >= {"judge agrees with people", "win rate over SFT model"}


@pytest.mark.parametrize(
    ("trouble", "says"),
    [({"delay": 0.5}, "timed out"), ({"says": [(500, "down", {})] * 400}, "status 500"), ({"budget": 30}, "budget.tokens")],
    ids=["silent", "down", "over budget"],
)
def test_a_judge_that_fails_ends_the_run_and_the_next_one_goes_on(line, config, run, chat_server, tmp_path, trouble, says):
    inputs = line()
    if "budget" in trouble:
        broken = config(budget=BudgetConfig(tokens=trouble["budget"]), at_once=1)
    else:
        for name, value in trouble.items():
            setattr(chat_server, name, value)
        broken = config(timeout_seconds=0.1)
    with pytest.raises(PreflineError, match=says) as error:
        run(inputs, broken)
    assert "evaluation.language_model" in str(error.value)
    assert not list((tmp_path / "runs" / "stages" / "evaluate").glob("*/manifest.json"))
    with sqlite3.connect(tmp_path / FILE) as database:
        (kept,) = database.execute("SELECT count(*) FROM replies").fetchone()
    assert kept == (3 if "budget" in trouble else 0)
    chat_server.delay, chat_server.says = 0.0, []
    spent = by_name(run(inputs, config()))[1]["language_model"].spent
    assert spent.cached == kept


def test_a_template_that_can_not_be_read_is_named(line, config, run, tmp_path):
    (tmp_path / "judge.txt").write_text("{prompt}\n{firts}{second}")
    with pytest.raises(ConfigError, match=r"judge\.txt, line 2: there is no field \{firts\}"):
        run(line(), config())


def test_a_changed_template_is_another_key(line, config, tmp_path):
    inputs, context_free = line(), config()
    before = evaluate.key(context_free, inputs, tmp_path)
    (tmp_path / "judge.txt").write_text("So: {prompt}|{first}|{second}")
    assert evaluate.key(context_free, inputs, tmp_path) != before
    off = config("reward_model", model=None, url=None)
    before = evaluate.key(off, inputs, tmp_path)
    (tmp_path / "judge.txt").write_text("Now: {prompt}|{first}|{second}")
    assert evaluate.key(off, inputs, tmp_path) == before


# A model that is read here -----------------------------------------------------------------------------------------------


def test_a_local_model_judges_and_other_weights_are_another_judge(line, config, run, tmp_path, policy_folder):
    """It has learnt nothing, so that its word can't be read."""
    inputs = line()
    local = config("reward_model", prompts=3, url=None, model="policy", reply_tokens=4, human_pairs=2)
    judge = by_name(run(inputs, local))[1]["language_model"]
    assert (judge.about, judge.unparsable, judge.orders) == ("policy", judge.orders, judge.spent.calls)
    assert judge.spent.tokens > judge.spent.calls
    assert by_name(run(inputs, local, force=True))[1]["language_model"].spent.calls == 0

    weights = load_file(policy_folder / "model.safetensors")
    save_file({name: weight + 0.1 * torch.ones_like(weight) for name, weight in weights.items()}, policy_folder / "model.safetensors")
    assert by_name(run(inputs, local))[1]["language_model"].spent.calls == judge.spent.calls

    with pytest.raises(PreflineError, match="reads 128 tokens; a question with its reply takes"):
        run(inputs, config("reward_model", url=None, model="policy", reply_tokens=128))
    with pytest.raises(ConfigError, match=r"evaluation\.language_model\.model: .*nowhere"):
        run(inputs, config("reward_model", url=None, model="./nowhere"))


# People ------------------------------------------------------------------------------------------------------------------


def label(path, better):
    """Who annotates sees two texts, and says left, right, or nothing for a tie."""
    tasks = json.loads(path.read_text())
    for task in tasks:
        said = better(task["data"]["answer1"], task["data"]["answer2"])
        value = [{"type": "pairwise", "from_name": "pref", "to_name": "pref", "value": {"selected": said}}] if said else []
        task["annotations"] = [{"completed_by": 1, "result": value}]
    path.write_text(json.dumps(tasks))


def shorter(first, second):
    return "left" if len(first) < len(second) else "right" if len(first) > len(second) else None


def test_people_decide_what_they_labelled(line, config, run, tmp_path):
    inputs = line()
    rows = read_answers(run(inputs, config("reward_model", url=None, model=None)).path)
    asked = questions(rows, 0)
    export_questions(asked[1:], "label-studio", tmp_path / "labels.json")
    label(tmp_path / "labels.json", shorter)

    result = run(inputs, config("people", ["labels.json"], url=None, model=None))
    found, judges = by_name(result)
    assert [row.policy.text for row in read_answers(result.path)] == [row.policy.text for row in rows]  # the same answers, sampled anew
    assert (found.decided_by, found.unjudged, found.prompts) == ("people", 1, len(rows) - 1)
    for row in read_answers(result.path):
        ours, theirs = len(row.policy.text), len(row.sft.text)
        assert row.judge in (None, "win" if ours < theirs else "loss" if ours > theirs else "tie")
    assert found.win_rate == judges["people"].win_rate
    assert refused(found, "people") >= {"held-out prompts"}
    assert not refused(found, "people") & {"judge", "judge agrees with people"}

    text = (tmp_path / "labels.json").read_text()
    (tmp_path / "labels.json").write_text(text.replace('"left"', '"right"'))  # more labels, or others: another key
    assert not run(inputs, config("people", ["labels.json"], url=None, model=None)).skipped


def test_labels_of_other_answers_decide_nothing_but_may_stand_beside(line, config, run, tmp_path):
    inputs = line()
    task = {"data": {"prompt": "How warm?", "answer1": "Very.", "answer2": "No."}, "annotations": [], "predictions": []}
    (tmp_path / "labels.json").write_text(json.dumps([task]))
    label(tmp_path / "labels.json", shorter)
    with pytest.raises(PreflineError, match=r"evaluation\.people: of 1 comparisons none is of this policy's answers") as error:
        run(inputs, config("people", ["labels.json"]))
    assert "--answers RUN" in error.value.advice
    _, judges = by_name(run(inputs, config("reward_model", ["labels.json"], url=None, model=None)))
    assert (judges["people"].prompts, judges["people"].win_rate) == (0, None)


# Configuration -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"judge": "language_model"}, "needs language_model.model"),
        ({"judge": "people"}, "needs files"),
        ({"judge": "gold"}, "reward_model"),
        ({"language_model": {"url": "http://localhost:1"}}, "which of its models"),
        ({"language_model": {"url": "ftp://x", "model": "m"}}, "pattern"),
        ({"language_model": {"url": "http://user:secret@x/v1", "model": "m"}}, "pattern"),
        ({"language_model": {"requests_a_minute": 0}}, "greater than 0"),
        ({"language_model": {"budget": {"calls": 0}}}, "greater than"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_runs(body, says):
    with pytest.raises(ValidationError, match=says):
        EvaluationConfig(**body)
