"""The judges of an evaluation: each is heard on every pair and measured on people's, one of them decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.config import EvaluationConfig, JudgeKind
from tasks.evaluation.answers import Judged, Verdict
from tasks.evaluation.judges.judge import ByScore, Judge
from tasks.evaluation.judges.language_model import ByLanguageModel
from tasks.evaluation.judges.pairs import HumanPair, Pair, at_most, of_policy
from tasks.evaluation.judges.people import ByPeople, places_of
from tasks.evaluation.judges.quality import ask_about, outcome_of, report
from tasks.evaluation.judges.replies import FILE, Replies
from tasks.evaluation.judges.speakers import language_model
from tasks.evaluation.judges.template import Template
from tasks.evaluation.result import JudgeReport
from tasks.training.intervals import Bootstrap


@dataclass(frozen=True)
class Panel:
    """reward_model: the independent one, which is always heard; gold, where the truth is known; the others as configured.

    human: comparisons of people to measure judges on, and asked: those of them that a language model is asked about.
    """

    decides: JudgeKind
    reward_model: ByScore
    gold: ByScore | None
    language_model: ByLanguageModel | None
    people: ByPeople | None
    human: list[HumanPair]
    asked: list[HumanPair]

    @property
    def judges(self) -> list[Judge]:
        every: tuple[Judge | None, ...] = (self.reward_model, self.language_model, self.people, self.gold)
        return [judge for judge in every if judge]


def convene(
    config: EvaluationConfig, root: Path, human: list[HumanPair], truth: bool, seed: int, progress: Callable[[int, int], None]
) -> Panel:
    """The judges that are configured. truth: is it known? progress: of a language model's replies. Raises PreflineError."""
    model = None
    if config.language_model.model:
        speaker = language_model(config.language_model, root)
        model = ByLanguageModel(config.language_model, speaker, _template(config, root), Replies(root / FILE), progress)
    return Panel(
        decides=config.judge,
        reward_model=ByScore("reward_model", "trained on comparisons that the policy's reward model never saw"),
        gold=ByScore("gold", "the known truth") if truth else None,
        language_model=model,
        people=ByPeople.read(config.people, root) if config.people else None,
        human=human,
        asked=at_most(human, config.language_model.human_pairs, seed) if model else [],
    )


def check_files(config: EvaluationConfig, root: Path) -> None:
    """Raise ConfigError for files of judges that are not there or can't be used, before anything is trained."""
    if config.language_model.model:
        _template(config, root)
    places_of(config.people, root)


def _template(config: EvaluationConfig, root: Path) -> Template:
    named = config.language_model.template
    return Template.read(root / Path(named).expanduser(), named)


def hear(panel: Panel, rows: Sequence[Judged], bootstrap: Bootstrap) -> tuple[list[Judged], list[JudgeReport]]:
    """The rows with every judge's verdicts and the decision of one of them, and what each judge is worth.

    Raises PreflineError where a judge can't be asked, or the one that decides has nothing to say.
    """
    if panel.language_model:
        rivals = [of_policy(row, other) for row in rows for other in (row.rival, row.sft, *(one.reply for one in row.others))]
        panel.language_model.prepare([*rivals, *(human.pair for human in panel.asked)])
    found = _with_verdicts(panel, rows)
    if panel.people and panel.decides == "people":
        panel.people.must_know(found)
    return found, [_report(panel, judge, found, bootstrap) for judge in panel.judges]


def _report(panel: Panel, judge: Judge, rows: list[Judged], bootstrap: Bootstrap) -> JudgeReport:
    if isinstance(judge, ByPeople):
        return judge.report(rows, bootstrap)
    return report(judge, rows, ask_about(judge, panel.asked if judge is panel.language_model else panel.human), bootstrap)


def _with_verdicts(panel: Panel, rows: Sequence[Judged]) -> list[Judged]:
    over_baseline = _by_prompt(panel.judges, [of_policy(row, row.rival) for row in rows])
    champion = any(row.baseline for row in rows)
    over_sft = _by_prompt(panel.judges, [of_policy(row, row.sft) for row in rows]) if champion else over_baseline
    over_others = iter(_by_prompt(panel.judges, [of_policy(row, other.reply) for row in rows for other in row.others]))
    return [
        replace(
            row,
            judge=outcome_of(panel.decides, said),
            judge_over_sft=outcome_of(panel.decides, of_sft),
            verdicts=said,
            verdicts_over_sft=of_sft,
            others=[replace(other, judge=outcome_of(panel.decides, next(over_others))) for other in row.others],
        )
        for row, said, of_sft in zip(rows, over_baseline, over_sft, strict=True)
    ]


def _by_prompt(judges: Sequence[Judge], pairs: Sequence[Pair]) -> list[list[Verdict]]:
    """Who said what of each pair, of those who said anything."""
    by_judge = [judge.verdicts(pairs) for judge in judges]
    return [[verdict for verdict in said if verdict] for said in zip(*by_judge, strict=True)]
