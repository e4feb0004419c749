"""Answers with all that is known of them, a row a prompt, before anybody judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.data.shop import Shop
from tasks.data.snapshot import Dataset, Prompt
from tasks.evaluation.answers import Judged, Other, Outcome, Reply
from tasks.evaluation.exam import Said
from tasks.evaluation.judges.judge import verdict
from tasks.evaluation.overoptimisation import Scores
from tasks.evaluation.refusals import Refusals, should_refuse


def truth_of(held: Dataset, prompts: list[Prompt]) -> Shop | None:
    """The known truth, where it knows every one of the prompts."""
    shop = held.shop()
    return shop if shop and all(prompt.messages[-1]["content"] in shop.by_text for prompt in prompts) else None


@dataclass(frozen=True)
class Known:
    """What can be said of an answer. scores: of all texts. truth: None where it is not known."""

    scores: Scores
    truth: Shop | None
    refusals: Refusals

    def reply(self, said: Said, prompt: Prompt) -> Reply:
        known = self.truth.gold(prompt.messages[-1]["content"], said.text) if self.truth else None
        return Reply(
            text=said.text,
            length=len(said.tokens),
            stopped=said.stopped,
            own=float(self.scores.own[said.score]),
            judge=float(self.scores.judge[said.score]),
            gold=known.utility if known else None,
            right=known.right if known else None,
            refused=self.refusals.refuses(said.text),
        )


def answered(
    prompts: Sequence[Prompt],
    known: Known,
    by_policy: Sequence[Said],
    by_sft: Sequence[Said],
    by_baseline: Sequence[Said] | None,
    by_others: Mapping[str, Sequence[Said]] | None = None,
) -> list[Judged]:
    """Everybody's answers. by_baseline: None where that is the SFT model. by_others: of evaluation.against, by name."""
    rows = []
    for place, (prompt, refuse) in enumerate(zip(prompts, should_refuse(prompts, known.truth), strict=True)):
        policy, sft = (known.reply(said[place], prompt) for said in (by_policy, by_sft))
        baseline = known.reply(by_baseline[place], prompt) if by_baseline else None
        others = {name: known.reply(said[place], prompt) for name, said in (by_others or {}).items()}
        rows.append(
            Judged(
                prompt=prompt.messages,
                group_id=prompt.group_id,
                tags=list(prompt.tags),
                policy=policy,
                sft=sft,
                baseline=baseline,
                judge=None,
                judge_over_sft=None,
                gold=verdict_of_gold(policy, baseline or sft),
                gold_over_sft=verdict_of_gold(policy, sft),
                refuse=refuse,
                others=[Other(name, reply, gold=verdict_of_gold(policy, reply)) for name, reply in others.items()],
            )
        )
    return rows


def verdict_of_gold(policy: Reply, other: Reply) -> Outcome | None:
    return None if policy.gold is None or other.gold is None else verdict(policy, other, policy.gold, other.gold)
