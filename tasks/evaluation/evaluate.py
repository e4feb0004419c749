"""Stage evaluate: is the policy better than what it would replace, by whose word, and at what price?

Answers of policy, SFT model and champion to held-out prompts, scored by the policy's own reward model, by the
independent judge and, where the truth is known, by gold; with the scorers' own agreement with people beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.data.records import Comparison, Demonstration, Message
from tasks.data.shop import Shop
from tasks.data.snapshot import Dataset, Prompt, dataset
from tasks.errors import PreflineError
from tasks.evaluation.agreement import HumanPairs, agreement, enough_of, human_pairs
from tasks.evaluation.answers import Judged, Outcome, Reply, Texts, Vocabulary, write_answers
from tasks.evaluation.exam import Exam, Said
from tasks.evaluation.findings import Evidence, findings
from tasks.evaluation.forgetting import to_recite
from tasks.evaluation.judges.judge import verdict
from tasks.evaluation.judges.pairs import held_out_by_people
from tasks.evaluation.judges.panel import convene, hear
from tasks.evaluation.overoptimisation import Rounds, Scores
from tasks.evaluation.plots import draw
from tasks.evaluation.probe_reports import probe_reports, write_probes
from tasks.evaluation.probes import prompts_of, read_probes, to_ask
from tasks.evaluation.refusals import Refusals, should_refuse
from tasks.evaluation.report import write_report
from tasks.evaluation.result import Evaluation, Scorers
from tasks.evaluation.reward_bench import read_categories, weighed
from tasks.evaluation.selection import best_of_n, selections
from tasks.evaluation.slices import describe
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.intervals import Bootstrap
from tasks.training.sampling import Sampling
from tasks.training.scorecard import HeldOut
from tasks.training.stages import LEARNT


@dataclass(frozen=True)
class Opponent:
    """What the policy would replace. folder: its model, or None where that is the run's own SFT model."""

    name: str
    version: str | None
    folder: Path | None

    @classmethod
    def read(cls, folder: Path) -> Opponent:
        body = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
        return cls(body["name"], body["version"], folder / "model" if (folder / "model").is_dir() else None)


@stage("evaluate", reads=("seed", "max_tokens", "max_new_tokens", "evaluation"), package="evaluation", files=("evaluation.files",))
def evaluate(
    config: Settings,
    *,
    data: StageResult,
    sft: StageResult,
    reward_model: StageResult,
    judge: StageResult,
    policy: StageResult,
    baseline: StageResult,
    run: StageRun,
) -> Metrics:
    """Writes evaluation.json, answers.jsonl, probes.jsonl, the plots, report.html and report.md to run.out."""
    held = dataset(data, run.root)
    opponent = Opponent.read(baseline.path)
    vocabulary = Vocabulary.load(policy.path / "model")
    prompts, too_long = held_out(held.prompts("test"), vocabulary, config)
    sampling = Sampling(config.max_new_tokens, config.evaluation.temperature)
    probes = to_ask(read_probes(run.root, config.evaluation.probes), vocabulary, config.max_tokens - config.max_new_tokens)
    exam = Exam(
        prompts,
        prompts_of(probes),
        recitation(held, vocabulary, opponent, config),
        vocabulary,
        sampling,
        config.seed,
        run,
        models=3 if opponent.folder else 2,
    )

    by_policy = exam.taken_by(policy.path / "model")
    by_sft = exam.taken_by(sft.path / "model")
    by_opponent = exam.taken_by(opponent.folder) if opponent.folder else None
    kl = exam.kl_from(sft.path / "model", by_policy.answers)
    by_hand = enough_of(held.comparisons("validation", "test"), config.seed)
    pairs = comparable_pairs(by_hand, vocabulary, config.max_tokens, exam.texts)
    bench = read_categories(config.evaluation.reward_bench, run.root, vocabulary, config.max_tokens, exam.texts)
    by_people = held_out_by_people(by_hand, vocabulary.tokenizer, config.max_tokens, exam.texts)
    scores = Scores(exam.scores_by(reward_model.path / "model"), exam.scores_by(judge.path / "model"), None)

    bootstrap = Bootstrap(config.evaluation.resamples, config.evaluation.confidence, config.seed)
    refusals = Refusals(config.evaluation.refusals)
    truth = truth_of(held, prompts)
    panel = convene(
        config.evaluation,
        run.root,
        by_people.scored(scores.judge, held.shop()),
        truth is not None,
        config.seed,
        lambda done, asked: run.report(exam.done + done, exam.total + asked),
    )
    rows = answered(
        prompts,
        by_policy.answers,
        by_sft.answers,
        by_opponent.answers if by_opponent else None,
        scores,
        truth,
        refusals,
    )
    probed = answered(exam.probes, by_policy.probes, by_sft.probes, by_opponent.probes if by_opponent else None, scores, None, refusals)
    lengths = [len(vocabulary.encode(prompt.messages)) for prompt in prompts]
    describe(rows, prompts, lengths, learnt_prompts(held))
    rows, judges = hear(panel, rows, bootstrap)
    rounds = Rounds.load(policy.path)
    selected = best_of_n(
        config, held, vocabulary, sft=sft.path / "model", reward_model=reward_model.path / "model", judge=judge.path / "model"
    )
    evidence = Evidence(
        rows=rows,
        too_long=too_long,
        rounds=rounds,
        kl=kl,
        judge=agreement(scores.judge, pairs, bootstrap),
        reward_model=agreement(scores.own, pairs, bootstrap),
        prefer_longer=pairs.prefer_longer,
        pairs=len(pairs),
        baseline=opponent.name,
        baseline_version=opponent.version,
        policy_recital=by_policy.recital,
        sft_recital=by_sft.recital,
        baseline_recital=by_opponent.recital if by_opponent else None,
        scorers=Scorers(
            reward_model=HeldOut.load(reward_model.path),
            judge=HeldOut.load(judge.path),
            reward_bench=weighed(bench, scores.own, scores.judge, bootstrap),
        ),
        judges=judges,
        decided_by=panel.decides,
        best_of_n=selections(selected, rounds.sft.scores, bootstrap),
        probes=probe_reports(probes, probed, bootstrap),
    )
    found = findings(evidence, bootstrap)
    found.save(run.out)
    write_answers(run.out, rows)
    write_probes(run.out, probes, probed)
    draw(found, evidence.rounds, bootstrap, run.out)
    write_report(found, rows, run.out, run.out)
    return metrics_of(found)


def held_out(prompts: list[Prompt], vocabulary: Vocabulary, config: Settings) -> tuple[list[Prompt], int]:
    """At most evaluation.prompts of the test prompts, drawn by the seed, in their order; and how many were too long to answer.

    Raises PreflineError where none is left.
    """
    if not prompts:
        raise PreflineError(
            "There is no test prompt: the policy can't be evaluated.",
            "Give data.split.test a larger share, or add comparisons: a split is made of whole prompts.",
        )
    room = config.max_tokens - config.max_new_tokens
    fitting = [prompt for prompt in prompts if len(vocabulary.encode(prompt.messages)) <= room]
    if not fitting:
        raise PreflineError(
            f"None of the {len(prompts)} test prompts leaves room for an answer: all are longer than {room} tokens "
            f"(max_tokens {config.max_tokens} - max_new_tokens {config.max_new_tokens}).",
            "Raise max_tokens or lower max_new_tokens.",
        )
    count = min(config.evaluation.prompts, len(fitting))
    drawn = np.random.default_rng(config.seed).choice(len(fitting), count, replace=False)
    return [fitting[place] for place in sorted(drawn)], len(prompts) - len(fitting)


def comparable_pairs(comparisons: list[Comparison], vocabulary: Vocabulary, max_tokens: int, texts: Texts) -> HumanPairs:
    """Human comparisons that no scorer was trained on. Raises PreflineError where there is none to measure a judge by."""
    pairs = human_pairs(comparisons, vocabulary.tokenizer, max_tokens, texts)
    if not len(pairs):
        raise PreflineError(
            "No held-out comparison can be used: all are ties, identical answers or longer than max_tokens.",
            "Without one nobody knows how far the judge can be trusted. Add comparisons, or raise max_tokens.",
        )
    return pairs


def recitation(held: Dataset, vocabulary: Vocabulary, opponent: Opponent, config: Settings) -> list[Demonstration]:
    """Held-out demonstrations, as many as prompts at most, that every model can read whole."""
    tokenizers = [vocabulary.tokenizer, *([Vocabulary.load(opponent.folder).tokenizer] if opponent.folder else [])]
    return to_recite(held.demonstrations("test"), tokenizers, config.max_tokens, config.evaluation.prompts, config.seed)


def learnt_prompts(held: Dataset) -> Iterator[list[Message]]:
    """The prompts that the policy or a scorer of it was trained on."""
    yield from (prompt.messages for prompt in held.prompts(*LEARNT))
    yield from (demonstration.prompt for demonstration in held.stream(Demonstration, *LEARNT))


def truth_of(held: Dataset, prompts: list[Prompt]) -> Shop | None:
    """The known truth, where it knows every one of the prompts."""
    shop = held.shop()
    return shop if shop and all(prompt.messages[-1]["content"] in shop.by_text for prompt in prompts) else None


def answered(
    prompts: list[Prompt],
    by_policy: list[Said],
    by_sft: list[Said],
    by_opponent: list[Said] | None,
    scores: Scores,
    truth: Shop | None,
    refusals: Refusals,
) -> list[Judged]:
    """A row a prompt, before it is judged: everybody's answer with its scores. scores: of all texts."""
    rows = []
    for place, (prompt, refuse) in enumerate(zip(prompts, should_refuse(prompts, truth), strict=True)):
        policy, sft = (reply(said[place], prompt, scores, truth, refusals) for said in (by_policy, by_sft))
        opponent = reply(by_opponent[place], prompt, scores, truth, refusals) if by_opponent else None
        rival = opponent or sft
        rows.append(
            Judged(
                prompt=prompt.messages,
                group_id=prompt.group_id,
                tags=list(prompt.tags),
                policy=policy,
                sft=sft,
                baseline=opponent,
                judge=None,
                judge_over_sft=None,
                gold=verdict_of_gold(policy, rival),
                gold_over_sft=verdict_of_gold(policy, sft),
                refuse=refuse,
            )
        )
    return rows


def reply(said: Said, prompt: Prompt, scores: Scores, truth: Shop | None, refusals: Refusals) -> Reply:
    known = truth.gold(prompt.messages[-1]["content"], said.text) if truth else None
    return Reply(
        text=said.text,
        length=len(said.tokens),
        stopped=said.stopped,
        own=float(scores.own[said.score]),
        judge=float(scores.judge[said.score]),
        gold=known.utility if known else None,
        right=known.right if known else None,
        refused=refusals.refuses(said.text),
    )


def verdict_of_gold(policy: Reply, other: Reply) -> Outcome | None:
    return None if policy.gold is None or other.gold is None else verdict(policy, other, policy.gold, other.gold)


def metrics_of(found: Evaluation) -> Metrics:
    """The main figures, for the table and for curves over runs."""
    metrics = {
        "prompts": found.prompts,
        "win_rate": found.win_rate.rate,
        "win_rate_low": found.win_rate.low,
        "win_rate_high": found.win_rate.high,
        "win_rate_over_sft": found.win_rate_over_sft.rate,
        "kl": found.kl,
        "own_policy": found.policy.own,
        "own_sft": found.sft.own,
        "judge_policy": found.policy.judge,
        "judge_sft": found.sft.judge,
        "length_policy": found.policy.length,
        "length_sft": found.sft.length,
        "stopped_policy": found.policy.stopped,
        "distinct_policy": found.policy.distinct,
        "repetition_policy": found.policy.repetition,
        "refused_policy": found.policy.refused,
        "judge_accuracy": found.judge_accuracy[0],
        "reward_model_accuracy": found.reward_model_accuracy[0],
        "own_gain": found.over_optimisation.registered_own_gain[0],
        "judge_gain": found.over_optimisation.registered_judge_gain[0],
        "hacked": found.over_optimisation.hacked,
    }
    gold, gold_over_sft = found.win_rate_gold, found.win_rate_over_sft_gold
    where_known = {
        "distinct_2_policy": found.policy.distinct_2,
        "self_bleu_policy": found.policy.self_bleu,
        "refused_rightly_policy": found.policy.refused_rightly,
        "refused_wrongly_policy": found.policy.refused_wrongly,
        "perplexity_policy": found.policy.perplexity,
        "perplexity_sft": found.sft.perplexity,
        "win_rate_gold": gold.rate if gold else None,
        "win_rate_gold_low": gold.low if gold else None,
        "win_rate_over_sft_gold": gold_over_sft.rate if gold_over_sft else None,
        "gold_policy": found.policy.gold,
        "gold_sft": found.sft.gold,
        "right_policy": found.policy.right,
        "right_sft": found.sft.right,
        "judge_agrees_with_gold": found.judge_agrees_with_gold,
    }
    return {name: float(value) for name, value in (metrics | where_known).items() if value is not None}
