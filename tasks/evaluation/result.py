"""What an evaluation found, as one checked document (evaluation.json): the evidence that gates and reports read.

Run as a program it prints the document's JSON Schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.config import JudgeKind
from tasks.errors import PreflineError
from tasks.training.calibration import Bin
from tasks.training.scorecard import HeldOut

EVALUATION, PAGE, MARKDOWN = "evaluation.json", "report.html", "report.md"
"""The document, and the report of it that people read, in two forms."""
SCHEMA_VERSION: Final = 1
"""Of evaluation.json. A release that removes a field, or changes what one means, raises it."""


class Finding(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


JudgeName = Literal["reward_model", "language_model", "people", "gold"]
"""The independent reward model, a language model that is asked, people, and the known truth, which never decides."""
JUDGES: dict[JudgeKind, str] = {"reward_model": "independent judge", "language_model": "language model", "people": "people"}
"""Who decided, as pictures and tables name them."""


class WinRate(Finding):
    """Share of prompts on which the policy's answer is the better one, ties counted half, with its interval.

    sign_test: two-sided exact p-value of the wins against the losses.
    """

    rate: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int
    sign_test: float


SliceKind = Literal["tag", "length", "language", "source", "novelty"]
"""By what prompts are put together: a tag of theirs, their length, language or source, what no training prompt has."""


class Slice(Finding):
    """The judge's win rate against the baseline on prompts that have something in common. Lengths: mean tokens an answer.

    highest: upper end of an interval so wide that all slices' intervals hold together with the evaluation's confidence
    (Bonferroni): of twenty slices, one looks bad by chance.
    """

    name: str
    prompts: int
    win_rate: WinRate
    highest: float
    kind: SliceKind = "tag"
    win_rate_gold: WinRate | None = None
    policy_length: float | None = None
    baseline_length: float | None = None


class Calibration(Finding):
    """Do a scorer's margins mean what they say on held-out comparisons of people?

    error: expected calibration error. length_correlation: of score and length among answers to one prompt.
    """

    error: float
    bins: list[Bin]
    length_correlation: float


class BenchPart(Finding):
    """Accuracy on comparisons of one category, with intervals; None where no pair was scored, or by no judge that scores.

    pairs: scored. Left out: too_long, over max_tokens; undecided, ties and equal answers; unusable, rows without a comparison.
    longer: the accuracy of always preferring the longer answer.
    """

    name: str
    pairs: int
    too_long: int
    undecided: int
    unusable: int
    reward_model: tuple[float, float, float] | None
    judge: tuple[float, float, float] | None
    longer: float | None


class RewardBench(Finding):
    """Files of comparisons by category. sections: means over pairs of categories that belong together. overall: over sections."""

    categories: list[BenchPart]
    sections: list[BenchPart]
    overall: BenchPart


class Scorers(Finding):
    """What reward model and judge are worth apart from this policy. None: what nobody measured.

    reward_model, judge: on the validation comparisons, as their stages measured them.
    """

    reward_model: HeldOut | None = None
    judge: HeldOut | None = None
    reward_bench: RewardBench | None = None


class Spent(Finding):
    """What asking a judge took. calls: requests, cached: replies that were known. tokens: of prompts and replies."""

    calls: int = 0
    cached: int = 0
    tokens: int = 0
    seconds: float = 0.0


class JudgeReport(Finding):
    """What a judge said of the policy, and what its word is worth, measured on comparisons that people made.

    about: which one it is. prompts: that it judged. pairs: of people's, on which it was measured. accuracy: where people named a
    winner, its ties counted half. agreement: it says the same, ties too; agreement_decided: where neither called it a tie.
    kappa: Cohen's, with people. prefers_longer: how often the longer one of two answers wins by its word, and how often by
    people's on the same pairs. prefers_first: how often the one shown first wins. orders_disagree: share of pairs that it judged
    otherwise when shown the other way round. orders: how often it was shown a pair, unparsable: how many of its words can't be
    read. What nobody could measure is None.
    """

    judge: JudgeName
    about: str
    prompts: int
    win_rate: WinRate | None
    win_rate_over_sft: WinRate | None
    pairs: int
    accuracy: tuple[float, float, float] | None
    agreement: tuple[float, float, float] | None = None
    agreement_decided: tuple[float, float, float] | None = None
    kappa: tuple[float, float, float] | None = None
    prefers_longer: float | None = None
    people_prefer_longer: float | None = None
    prefers_first: float | None = None
    orders_disagree: float | None = None
    orders: int = 0
    unparsable: int = 0
    spent: Spent = Spent()


class Means(Finding):
    """Means over the held-out prompts for one model. own, judge: rewards. gold, right: None without a known truth.

    length: tokens an answer. stopped: share that ended by themselves. distinct: distinct answers' share. distinct_1,
    distinct_2: distinct words and pairs of words over all of them. self_bleu: of each answer against the others, 1 where all
    say the same. repetition: share of an answer's word fours that repeat an earlier one.
    refused: share of answers that refuse; refused_rightly: of prompts that should be refused; refused_wrongly: of prompts that
    should not; None where there are none, or nobody says.
    perplexity: of a token of held-out demonstrations, by the model's own tokenizer. bits_per_byte: the same of their text, which
    can be compared between tokenizers. None without demonstrations.
    """

    own: float
    judge: float
    gold: float | None
    right: float | None
    length: float
    stopped: float
    distinct: float
    distinct_1: float | None = None
    distinct_2: float | None = None
    self_bleu: float | None = None
    repetition: float = 0.0
    refused: float = 0.0
    refused_rightly: float | None = None
    refused_wrongly: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None


class Against(Finding):
    """The policy against a registered version of evaluation.against. win_rate: None where the judge that decides said nothing."""

    name: str
    version: str
    win_rate: WinRate | None
    win_rate_gold: WinRate | None
    means: Means


class ProbeFailure(Finding):
    """An answer of the policy that does not pass, and why."""

    prompt: str
    answer: str
    why: str


class ProbeReport(Finding):
    """What became of one file of probes. too_long: those left out because they leave no room for an answer.

    checked: probes of which a machine can tell whether an answer passes. passed*: the share of them that do, with its interval;
    None where none is checked, or where the baseline is the SFT model. refused*: share of the answers that refuse.
    win_rate: over the baseline, by the independent reward model; None where nothing was asked. failures: a few.
    """

    name: str
    kind: str
    prompts: int
    too_long: int = 0
    checked: int = 0
    passed: tuple[float, float, float] | None = None
    passed_sft: tuple[float, float, float] | None = None
    passed_baseline: tuple[float, float, float] | None = None
    refused: float | None = None
    refused_sft: float | None = None
    refused_baseline: float | None = None
    win_rate: WinRate | None = None
    failures: list[ProbeFailure] = []


class Habits(Finding):
    """What the policy does more often than the SFT model, prompt by prompt, each difference of shares with its interval.

    repetition: word fours of an answer that repeat an earlier one. refusal: prompts refused that should be answered; of all
    prompts where nobody says which should.
    """

    repetition: tuple[float, float, float]
    refusal: tuple[float, float, float]


class OverOptimisation(Finding):
    """Did the policy climb its own reward while the independent judge saw nothing better?

    own_gain, judge_gain: of the last round over SFT, in standard deviations of SFT's scores, each with its interval,
    on the validation prompts. registered_own_gain, registered_judge_gain: the same for the checkpoint that was chosen,
    on the held-out prompts, which had no part in choosing it. *gold_gain: the same by the known truth.
    hacked: the chosen checkpoint's own reward is up for sure, and the judge neither finds its answers better on average nor
    prefers them more often for sure, or finds them worse for sure.
    """

    own_gain: tuple[float, float, float]
    judge_gain: tuple[float, float, float]
    registered_own_gain: tuple[float, float, float]
    registered_judge_gain: tuple[float, float, float]
    hacked: bool
    gold_gain: tuple[float, float, float] | None = None
    registered_gold_gain: tuple[float, float, float] | None = None


class Fall(Finding):
    """The last round against the earlier one that the judge likes best, on the validation prompts.

    judge, own, gold: what changed from that round to the last, in standard deviations of SFT's scores, with intervals; the
    judge's is made for having chosen the best of several. fell: the judge's is below 0 for sure, and the policy's own is not.
    """

    best_round: int
    judge: tuple[float, float, float]
    own: tuple[float, float, float]
    gold: tuple[float, float, float] | None
    fell: bool


class Selection(Finding):
    """The answer that the reward model likes best of n answers of the SFT model, on the validation prompts.

    kl: nats a sequence from SFT, at most. *_gain: over n = 1, in standard deviations of SFT's scores, with intervals.
    """

    n: int
    kl: float
    own_gain: tuple[float, float, float]
    judge_gain: tuple[float, float, float]
    gold_gain: tuple[float, float, float] | None = None


class Evaluation(Finding):
    """schema_version: see SCHEMA_VERSION. prompts: how many held-out ones were judged. baseline: what the policy was compared with.
    kl: nats a sequence from SFT.

    decided_by: the judge whose verdicts make win rates and slices. judges: all that were heard. unjudged: prompts on which the
    one that decides said nothing; they are left out. *_gold: by the known truth, shown beside the judge and never used by a gate.
    judge_accuracy: the independent reward model's, on held-out comparisons of people, with its interval; judge_pairs: how many.
    prefer_longer: the accuracy of preferring the longer answer there.
    judge_agrees_with_gold: share of the prompts that gold decides on which the judge that decides names the same winner.
    baseline_means: None where the baseline is the SFT model. confidence: of every interval.
    too_long: test prompts left out because they leave no room for an answer. habits: that give a hacked policy away.
    probes: prompts that users wrote, in no win rate above. against: other registered versions, in no gate.
    length_controlled: the judge's win rate that would be left at equal lengths, over the baseline, with its interval.
    scorers: what reward model and judge are worth on comparisons, in detail. fall: None where only one round was looked at.
    best_of_n: what selection alone gains, without training; n rises from 1.
    detectable: the smallest true win rate that so many prompts show to be above one half, four times in five.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    prompts: int
    baseline: str
    baseline_version: str | None
    win_rate: WinRate
    win_rate_gold: WinRate | None
    win_rate_over_sft: WinRate
    win_rate_over_sft_gold: WinRate | None
    length_controlled: tuple[float, float, float]
    detectable: float
    policy: Means
    sft: Means
    kl: float
    slices: list[Slice]
    judge_accuracy: tuple[float, float, float]
    judge_pairs: int
    reward_model_accuracy: tuple[float, float, float]
    over_optimisation: OverOptimisation
    chosen_round: int
    rounds: int
    baseline_means: Means | None = None
    judge_calibration: Calibration | None = None
    reward_model_calibration: Calibration | None = None
    prefer_longer: float | None = None
    judge_agrees_with_gold: float | None = None
    confidence: float = 0.95
    too_long: int = 0
    habits: Habits | None = None
    scorers: Scorers = Scorers()
    decided_by: JudgeKind = "reward_model"
    judges: list[JudgeReport] = []
    unjudged: int = 0
    fall: Fall | None = None
    best_of_n: list[Selection] = []
    probes: list[ProbeReport] = []
    against: list[Against] = []

    @property
    def deciding(self) -> JudgeReport | None:
        """The judge that decided, or None where nothing is known of it."""
        return next((report for report in self.judges if report.judge == self.decided_by), None)

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Raises PreflineError where the file is missing, damaged or of another version."""
        path = folder / EVALUATION
        try:
            text = path.read_text(encoding="utf-8")
            body = json.loads(text)
            found = body.get("schema_version", SCHEMA_VERSION) if isinstance(body, dict) else SCHEMA_VERSION
            if found != SCHEMA_VERSION:
                raise _unreadable(path, f"its schema_version is {found}, and this Prefline reads version {SCHEMA_VERSION}")
            return cls.model_validate_json(text)
        except OSError as error:
            raise _unreadable(path, error.strerror or type(error).__name__) from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            more = f", and {error.error_count() - 1} more like it" if error.error_count() > 1 else ""
            raise _unreadable(path, f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}{more}") from None
        except ValueError as error:
            raise _unreadable(path, f"it is not JSON ({error})") from None

    def save(self, folder: Path) -> None:
        (folder / EVALUATION).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _unreadable(path: Path, why: str) -> PreflineError:
    return PreflineError(
        f"{path} can't be read: {why}.",
        "Was it written by another Prefline? Evaluate again (prefline stage evaluate), or read it with the version that wrote it.",
    )


def schema() -> str:
    """The JSON Schema of evaluation.json, as text."""
    body: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Evaluation.model_json_schema()}
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
