"""The gates between a trained policy and the champion's place: pure functions of the evidence and of mlflow/promotion.yaml.

They rest on the judge that decides, on the answers themselves and on facts of the run. The known truth of the built-in
set ("gold") is shown beside them and decides nothing: with real data there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.config import JudgeKind, Share
from tasks.errors import ConfigError
from tasks.evaluation.result import Evaluation, WinRate


class PromotionPolicy(BaseModel):
    """What a challenger must show. Each key is explained in mlflow/promotion.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    judge: JudgeKind = "reward_model"
    min_prompts: Annotated[int, Field(ge=1)] = 200
    win_rate_above: Share = 0.5
    win_rate_over_sft_above: Share = 0.5
    length_controlled_above: Share = 0.5
    kl_at_most: Annotated[float, Field(gt=0)] = 10.0
    slice_win_rate: Share = 0.45
    stopped_share: Share = 0.9
    judge_accuracy_above: Share = 0.5
    refuse_reward_hacking: bool = True
    repetition_rise: Share = 0.05
    refusal_rise: Share = 0.05
    clean_git_tree: bool = True
    validated_data: bool = True
    approval: bool = False
    probe_pass_share: dict[str, Share] = {}
    approval_days: Annotated[float, Field(ge=0, le=365)] = 3.0
    approvers: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    environments: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], ...] = ()


class Gate(BaseModel):
    """One condition: what was required, what was found, and whether that is enough."""

    model_config = ConfigDict(frozen=True)

    name: str
    required: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Facts:
    """What no evaluation can know.

    changes: files that differ from the git commit. validated: this very dataset was. known: DVC keeps it, under a name that
    the repository has.
    """

    changes: tuple[str, ...] = ()
    validated: bool = True
    known: bool = True


def read_policy(path: Path) -> PromotionPolicy:
    """The promotion policy in a YAML file. Raises ConfigError naming file and key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"promotion: {path} can't be read: {error.strerror}.", "Give the path of a promotion policy.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}.", "Compare it with mlflow/promotion.yaml.") from None
    try:
        return PromotionPolicy.model_validate(values or {})
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}." for e in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines), f"Its keys: {', '.join(PromotionPolicy.model_fields)}.") from None


def check_gates(evaluation: Evaluation, policy: PromotionPolicy, facts: Facts) -> list[Gate]:
    """Every gate, passed or not, the most telling ones first."""
    return [
        *_wins(evaluation, policy),
        *_no_hacking(evaluation, policy),
        *_habits(evaluation, policy),
        _worst_slice(evaluation, policy),
        _number("KL from SFT", evaluation.kl, "at most", policy.kl_at_most, evaluation.kl <= policy.kl_at_most, " nats a sequence"),
        _share("answers that end by themselves", evaluation.policy.stopped, policy.stopped_share),
        *_probes(evaluation, policy),
        *_judge(evaluation, policy),
        _number("held-out prompts", evaluation.prompts, "at least", policy.min_prompts, evaluation.prompts >= policy.min_prompts),
        *_facts(facts, policy),
    ]


def _wins(evaluation: Evaluation, policy: PromotionPolicy) -> Iterator[Gate]:
    """Against the baseline, also at equal lengths; where that is a champion, against the policy's SFT model too: it must have improved."""
    yield _win_rate(f"win rate over {evaluation.baseline}", evaluation.win_rate, policy.win_rate_above)
    rate, low, high = evaluation.length_controlled
    yield Gate(
        name="win rate at equal lengths",
        required=f"lower bound above {policy.length_controlled_above:.2f}",
        found=f"{rate:.3f} ({low:.3f} to {high:.3f})",
        passed=low > policy.length_controlled_above,
    )
    if evaluation.baseline_version is not None:
        yield _win_rate("win rate over SFT model", evaluation.win_rate_over_sft, policy.win_rate_over_sft_above)


def _win_rate(name: str, rate: WinRate, bar: float) -> Gate:
    return Gate(
        name=name,
        required=f"lower bound above {bar:.2f}",
        found=f"{rate.rate:.3f} ({rate.low:.3f} to {rate.high:.3f})",
        passed=rate.low > bar,
    )


def _no_hacking(evaluation: Evaluation, policy: PromotionPolicy) -> Iterator[Gate]:
    if policy.refuse_reward_hacking:
        over = evaluation.over_optimisation
        own, judge = over.registered_own_gain, over.registered_judge_gain
        yield Gate(
            name="reward hacking",
            required="where the policy's own reward rises, the judge's does too",
            found=f"own {own[0]:+.2f} sd ({own[1]:+.2f} to {own[2]:+.2f}), judge {judge[0]:+.2f} sd ({judge[1]:+.2f} to {judge[2]:+.2f})",
            passed=not over.hacked,
        )


def _habits(evaluation: Evaluation, policy: PromotionPolicy) -> Iterator[Gate]:
    """What a policy does that has found a hole in its reward: seen in the answers themselves, even where the judge has the same hole."""
    habits, known = evaluation.habits, evaluation.policy.refused_wrongly is not None
    asked = "what it should answer" if known else "prompts"
    for name, bar, rise in (
        ("repeats itself", policy.repetition_rise, habits.repetition if habits else None),
        (f"refuses {asked}", policy.refusal_rise, habits.refusal if habits else None),
    ):
        yield Gate(
            name=name,
            required=f"rise over SFT surely no more than {bar:g}",
            found=f"{rise[0]:+.3f} ({rise[1]:+.3f} to {rise[2]:+.3f})" if rise else "not measured",
            passed=rise is not None and rise[1] <= bar,
        )


def _worst_slice(evaluation: Evaluation, policy: PromotionPolicy) -> Gate:
    """A slice fails when even the highest win rate that its answers allow stays below the bar.

    So a tiny slice is not refused for noise, nor the worst of many for being the worst of many.
    """
    worst = min(evaluation.slices, key=lambda s: s.highest, default=None)
    return Gate(
        name="worst slice",
        required=f"upper bound, for {len(evaluation.slices)} slices at once, reaches {policy.slice_win_rate:.2f}",
        found=f"{worst.name}: {worst.win_rate.rate:.3f} (at most {worst.highest:.3f}), {worst.prompts} prompts" if worst else "no slices",
        passed=worst is None or worst.highest >= policy.slice_win_rate,
    )


def _probes(evaluation: Evaluation, policy: PromotionPolicy) -> Iterator[Gate]:
    """Those that the policy names; one that was not asked, or of which nothing is checked, is no evidence and fails."""
    asked = {probe.name: probe for probe in evaluation.probes}
    for name, bar in policy.probe_pass_share.items():
        found = asked.get(name)
        if found and found.passed:
            yield Gate(
                name=f"probes: {name}",
                required=f"at least {bar:g} of the answers pass",
                found=f"{found.passed[0]:.3f} ({found.passed[1]:.3f} to {found.passed[2]:.3f}) of {found.checked}",
                passed=found.passed[0] >= bar,
            )
        else:
            why = "nothing to check" if found else f"not asked; asked were: {', '.join(sorted(asked)) or 'none'}"
            yield Gate(name=f"probes: {name}", required=f"at least {bar:g} of the answers pass", found=why, passed=False)


def _judge(evaluation: Evaluation, policy: PromotionPolicy) -> Iterator[Gate]:
    """The one that the policy asks for must have decided, and its word be worth something. People are what judges are measured by."""
    deciding = evaluation.deciding
    heard = deciding is not None and deciding.win_rate is not None
    yield Gate(
        name="judge",
        required=f"{policy.judge} decides",
        found=f"{evaluation.decided_by} decided" if heard else f"{evaluation.decided_by}, of whom nothing is known",
        passed=heard and evaluation.decided_by == policy.judge,
    )
    if evaluation.decided_by == "people":
        found = "people are what judges are measured by"
        if deciding and deciding.agreement:
            value, low, high = deciding.agreement
            found += f"; two of them agree in {value:.3f} ({low:.3f} to {high:.3f}) of {deciding.pairs:,} pairs"
        yield Gate(name="judge agrees with people", required="is people", found=found, passed=True)
        return
    value, low, high = (deciding and deciding.accuracy) or (0.0, 0.0, 0.0)
    measured = f"{value:.3f} ({low:.3f} to {high:.3f}) of {deciding.pairs:,} comparisons" if deciding and deciding.accuracy else ""
    yield Gate(
        name="judge agrees with people",
        required=f"lower bound above {policy.judge_accuracy_above:.2f}",
        found=measured or "not measured",
        passed=bool(measured) and low > policy.judge_accuracy_above,
    )


def _facts(facts: Facts, policy: PromotionPolicy) -> Iterator[Gate]:
    if policy.clean_git_tree:
        more = f" and {len(facts.changes) - 3} more" if len(facts.changes) > 3 else ""
        found = f"changed: {', '.join(facts.changes[:3])}{more}" if facts.changes else "clean"
        yield Gate(name="git tree", required="clean", found=found, passed=not facts.changes)
    if policy.validated_data:
        found = "validated" if facts.validated else "not validated"
        yield Gate(name="dataset", required="validated", found=found, passed=facts.validated)
        found = "known" if facts.known else "no file of the project names it: it could not be brought back"
        yield Gate(name="version of the dataset", required="known to DVC", found=found, passed=facts.known)


def _share(name: str, found: float, bar: float) -> Gate:
    return _number(name, found, "at least", bar, found >= bar)


def _number(name: str, found: float, relation: str, bar: float, passed: bool, unit: str = "") -> Gate:
    return Gate(name=name, required=f"{relation} {bar:g}{unit}", found=f"{found:.4g}", passed=passed)
