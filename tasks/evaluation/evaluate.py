"""Stage evaluate: is the policy better than what it would replace, by whose word, and at what price?

Answers of policy, SFT model and champion to held-out prompts, scored by the policy's own reward model, by the
independent judge and, where the truth is known, by gold; with the scorers' own agreement with people beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tasks.data.records import Comparison, Demonstration, Message
from tasks.data.snapshot import Dataset, Prompt, dataset
from tasks.errors import PreflineError
from tasks.evaluation.agreement import HumanPairs, agreement, enough_of, human_pairs
from tasks.evaluation.answers import Texts, Vocabulary, write_answers
from tasks.evaluation.exam import Exam
from tasks.evaluation.figures import metrics_of
from tasks.evaluation.findings import Besides, Evidence, findings
from tasks.evaluation.forgetting import to_recite
from tasks.evaluation.judges.pairs import held_out_by_people
from tasks.evaluation.judges.panel import convene, hear
from tasks.evaluation.overoptimisation import Rounds, Scores
from tasks.evaluation.plots import draw
from tasks.evaluation.probe_reports import probe_reports, write_probes
from tasks.evaluation.probes import prompts_of, read_probes, to_ask
from tasks.evaluation.refusals import Refusals
from tasks.evaluation.report import write_report
from tasks.evaluation.result import Scorers
from tasks.evaluation.reward_bench import read_categories, weighed
from tasks.evaluation.rows import Known, answered, truth_of
from tasks.evaluation.selection import best_of_n, selections
from tasks.evaluation.slices import describe
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.intervals import Bootstrap
from tasks.training.sampling import Sampling
from tasks.training.scorecard import HeldOut
from tasks.training.stages import LEARNT


@dataclass(frozen=True)
class Opponent:
    """What the policy is compared with. folder: its model, or None where that is the run's own SFT model."""

    name: str
    version: str | None
    folder: Path | None

    @classmethod
    def read(cls, folder: Path) -> Opponent:
        body = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
        return cls(body["name"], body["version"], folder / "model" if (folder / "model").is_dir() else None)

    @classmethod
    def others(cls, folder: Path) -> list[Opponent]:
        """The versions of evaluation.against."""
        body = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
        return [cls(one["name"], one["version"], folder / "against" / one["version"]) for one in body.get("against", ())]


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
    opponent, others = Opponent.read(baseline.path), Opponent.others(baseline.path)
    vocabulary = Vocabulary.load(policy.path / "model")
    prompts, too_long = held_out(held.prompts("test"), vocabulary, config)
    sampling = Sampling(config.max_new_tokens, config.evaluation.temperature)
    probes = to_ask(read_probes(run.root, config.evaluation.probes), vocabulary, config.max_tokens - config.max_new_tokens)
    exam = Exam(
        prompts,
        prompts_of(probes),
        recitation(held, vocabulary, [opponent, *others], config),
        vocabulary,
        sampling,
        config.seed,
        run,
        models=2 + bool(opponent.folder) + len(others),
    )

    by_policy = exam.taken_by(policy.path / "model")
    by_sft = exam.taken_by(sft.path / "model")
    by_opponent = exam.taken_by(opponent.folder) if opponent.folder else None
    by_others = {other.name: exam.taken_by(other.folder) for other in others if other.folder}
    kl = exam.kl_from(sft.path / "model", by_policy.answers)
    by_hand = enough_of(held.comparisons("validation", "test"), config.seed)
    pairs = comparable_pairs(by_hand, vocabulary, config.max_tokens, exam.texts)
    bench = read_categories(config.evaluation.reward_bench, run.root, vocabulary, config.max_tokens, exam.texts)
    by_people = held_out_by_people(by_hand, vocabulary.tokenizer, config.max_tokens, exam.texts)
    scores = Scores(exam.scores_by(reward_model.path / "model"), exam.scores_by(judge.path / "model"), None)

    bootstrap = Bootstrap(config.evaluation.resamples, config.evaluation.confidence, config.seed)
    known = Known(scores, truth_of(held, prompts), Refusals(config.evaluation.refusals))
    panel = convene(
        config.evaluation,
        run.root,
        by_people.scored(scores.judge, held.shop()),
        known.truth is not None,
        config.seed,
        lambda done, asked: run.report(exam.done + done, exam.total + asked),
    )
    rows = answered(
        prompts,
        known,
        by_policy.answers,
        by_sft.answers,
        by_opponent.answers if by_opponent else None,
        {name: paper.answers for name, paper in by_others.items()},
    )
    probed = answered(exam.probes, replace(known, truth=None), by_policy.probes, by_sft.probes, by_opponent.probes if by_opponent else None)
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
        others=[Besides(other.name, other.version or "", by_others[other.name].recital) for other in others],
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


def recitation(held: Dataset, vocabulary: Vocabulary, opponents: list[Opponent], config: Settings) -> list[Demonstration]:
    """Held-out demonstrations, as many as prompts at most, that every model can read whole."""
    tokenizers = [vocabulary.tokenizer, *(Vocabulary.load(one.folder).tokenizer for one in opponents if one.folder)]
    return to_recite(held.demonstrations("test"), tokenizers, config.max_tokens, config.evaluation.prompts, config.seed)


def learnt_prompts(held: Dataset) -> Iterator[list[Message]]:
    """The prompts that the policy or a scorer of it was trained on."""
    yield from (prompt.messages for prompt in held.prompts(*LEARNT))
    yield from (demonstration.prompt for demonstration in held.stream(Demonstration, *LEARNT))
