"""The data contract: what must hold before anything is trained, as Great Expectations over flat tables.

A rule says what it promises, about which column (tables.py makes them), and what to do when it is broken; its
expectation is built from it and from the thresholds in params.yaml. data/contract.json is the same in writing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from tasks.config import PipelineConfig
from tasks.data.records import SPLITS
from tasks.data.tables import ROLES, TABLES, Table

Severity = Literal["stop", "warn"]
Unit = Literal["rows", "share", "score"]

AT_MOST, UNIQUE = "ExpectMarkedRowsToBeAtMost", "ExpectColumnValuesToBeUnique"
MEAN, MAXIMUM = "ExpectColumnMeanToBeBetween", "ExpectColumnMaxToBeBetween"
PLAUSIBLY = "ExpectShareToBePlausiblyBetween"


@dataclass(frozen=True)
class Rule:
    """One promise about the data.

    expectation: a class of Great Expectations or of expectations.py, over a column of a table. row: what is wrong with a row
    that is to blame, "" where it is not for single rows. says: what is wrong with the data as a whole, where that is not the
    same; {found} and {allowed} are filled in. advice: what to do. fixed: the expectation's settings. thresholds: those settings
    that come from the configuration, by key. unit: of what is found; a score is between -1 and 1.
    """

    name: str
    table: Table
    expectation: str
    column: str
    advice: str
    row: str = ""
    says: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, str] = field(default_factory=dict)
    severity: Severity = "stop"
    unit: Unit = "rows"

    @property
    def key(self) -> str:
        return f"{self.table}.{self.name}"

    def settings(self, config: PipelineConfig) -> dict[str, Any]:
        """What the expectation is built with."""
        return {"column": self.column, **self.fixed, **{name: value_of(config, key) for name, key in self.thresholds.items()}}

    def written(self) -> dict[str, Any]:
        """The rule as it stands in data/contract.json: thresholds by their keys, nothing that differs from run to run."""
        settings = {"column": self.column, **self.fixed, **{name: f"${{{key}}}" for name, key in self.thresholds.items()}}
        return {
            "rule": self.name,
            "expectation": self.expectation,
            "settings": dict(sorted(settings.items())),
            "severity": self.severity,
            "says": self.says or self.row,
            "advice": self.advice,
        }

    def offending(self, table: pd.DataFrame, settings: dict[str, Any]) -> pd.Series:
        """Marks the rows that are to blame, (rows,) of true and false."""
        column = table[self.column]
        match self.expectation:
            case "ExpectColumnValuesToBeUnique":
                return column.duplicated(keep=False)
            case "ExpectColumnMaxToBeBetween":
                return column > settings["max_value"]
            case _:
                return column.fillna(0).astype(bool)


def value_of(config: PipelineConfig, key: str) -> Any:
    """The value of a dotted key; a number picks from a pair."""
    value: Any = config
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return value


def _count_rules() -> list[Rule]:
    """Of a table of one row, so that the largest value is the value."""
    enough = [
        Rule(
            name=f"enough_{kind}",
            table="counts",
            expectation=MAXIMUM,
            column=kind,
            says=f"{{found}} {kind}, where {{allowed}} are needed",
            advice=f"Add some to data.{kind}, or lower contract.min_{kind}.",
            thresholds={"min_value": f"contract.min_{kind}"},
        )
        for kind in ("comparisons", "demonstrations")
    ]
    rejected = [
        Rule(
            name=f"rejected_{kind}",
            table="counts",
            expectation=MAXIMUM,
            column=f"rejected_{kind}",
            says=f"{{found}} of the rows in data.{kind} could not be used, where {{allowed}} are allowed",
            advice="Fix or remove them, or raise contract.rejected_share.",
            thresholds={"max_value": "contract.rejected_share"},
            unit="share",
        )
        for kind in ("comparisons", "demonstrations")
    ]
    some = [
        Rule(
            name=f"some_{kind}_{split}",
            table="counts",
            expectation=MAXIMUM,
            column=f"{kind}_{split}",
            says=f'no {kind} in split "{split}"',
            advice=f"Add data about other prompts, or change data.split{'' if split == 'train' else '.' + split}.",
            fixed={"min_value": 1},
        )
        for kind, split in (*(("comparisons", split) for split in SPLITS), ("demonstrations", "train"))
    ]
    agreement = Rule(
        name="agreement",
        table="counts",
        expectation=MAXIMUM,
        column="agreement",
        says="annotators who judged the same pair agree by {found} (Krippendorff's alpha: 1 is always, 0 by chance), {allowed} is needed",
        advice="Is the question clear to them? The annotators' table shows who differs. Else lower contract.min_agreement.",
        thresholds={"min_value": "contract.min_agreement"},
        unit="score",
    )
    return [*enough, *rejected, *some, agreement]


def _at_most(table: Table, name: str, column: str, row: str, advice: str, limit: str = "", severity: Severity = "stop") -> Rule:
    """No row may be marked in a column, or so many as the key limit says."""
    fixed, thresholds = ({}, {"max_value": limit}) if limit else ({"max_value": 0}, {})
    return Rule(name, table, AT_MOST, column, advice, row, fixed=fixed, thresholds=thresholds, severity=severity)


def _share(table: Table, name: str, column: str, row: str, says: str, advice: str, severity: Severity = "stop") -> Rule:
    """No more than a share of the rows may be marked in a column: contract.NAME. says: after "{found} of the rows"."""
    says = f"{{found}} of {table} {says}, where {{allowed}} are allowed"
    thresholds = {"max_value": f"contract.{name}"}
    return Rule(name, table, MEAN, column, advice, row, says, thresholds=thresholds, severity=severity, unit="share")


PERSONAL = {
    "email": "a mail address",
    "phone": "what looks like a telephone number",
    "card": "what looks like a payment card's number",
    "secret": "what looks like a key or a token to some service",
}
"""Kinds of personal data, by column."""


def _record_rules(table: Table) -> list[Rule]:
    """What a record must keep, whichever kind it is."""
    rules = [
        _at_most(table, "text", "empty", "a message is empty", "Remove such rows."),
        _at_most(table, "roles", "unknown_role", f"a role is none of {', '.join(ROLES)}", "Rename the roles in the source."),
        _at_most(
            table,
            "assistant_answers",
            "not_by_assistant",
            "an answer is not the assistant's",
            "Fix or remove such rows: an answer is what the assistant says, and the prompt all that comes before.",
        ),
        _share(
            table,
            "turns",
            "turns",
            "user and assistant do not take turns up to one answer",
            "do not take turns up to one answer",
            "Was a conversation cut at the wrong place? Join or remove such turns, or raise contract.turns.",
        ),
        _at_most(
            table,
            "template",
            "template_refuses",
            "the model's chat template refuses the conversation",
            "Fix or remove such rows (some templates want user and assistant to take turns), or choose another model.",
        ),
        _at_most(
            table,
            "over_length",
            "too_long",
            "prompt and answer are longer than max_tokens",
            "Training leaves such rows out. Raise max_tokens, remove them, or allow up to N of them with contract.over_length.max.",
            "contract.over_length.max",
        ),
        _at_most(
            table,
            "control_characters",
            "control_characters",
            "it holds control characters",
            "Something went wrong when it was exported. Remove them, or allow up to N such rows with contract.control_characters.max.",
            "contract.control_characters.max",
        ),
        _share(
            table,
            "garbled",
            "garbled",
            "its characters were decoded wrongly",
            "have characters that were decoded wrongly",
            "Read the source as UTF-8 and export it again, or raise contract.garbled.",
        ),
        _at_most(
            table,
            "special_tokens",
            "special_tokens",
            "it spells out a special token of the model",
            "In a prompt the model reads it as the token. Remove it, or allow up to N such rows with contract.special_tokens.max.",
            "contract.special_tokens.max",
            "warn",
        ),
        _at_most(
            table,
            "split",
            "parted",
            "other rows of its group or prompt are in another split",
            "Nothing may be tested on what it was taught. Give all rows of a prompt one split, or none to have them divided.",
        ),
        _at_most(
            table,
            "contaminated",
            "contaminated",
            "its prompt is in an evaluation set",
            "What is tested must not be taught. Remove such rows, or allow up to N of them with contract.contaminated.max.",
            "contract.contaminated.max",
        ),
        Rule("id", table, UNIQUE, "id", "Have the data made again: prefline stage snapshot.", "another row has the same id"),
    ]
    personal = [
        _at_most(
            table,
            column,
            column,
            f"it holds {kind}",
            "The model may learn and repeat it. Remove or replace it, or allow up to N such rows with contract.personal_data.max.",
            "contract.personal_data.max",
            "warn",
        )
        for column, kind in PERSONAL.items()
    ]
    return [*rules, *personal]


def _comparison_rules() -> list[Rule]:
    table: Table = "comparisons"
    return [
        _at_most(
            table,
            "identical_pairs",
            "identical",
            '"chosen" and "rejected" are the same text',
            "Such rows teach nothing. Fix or remove them, or allow up to N of them with contract.identical_pairs.max.",
            "contract.identical_pairs.max",
        ),
        *_record_rules(table),
        _at_most(
            table,
            "ranking",
            "mixed_ranking",
            "other comparisons of its ranking have another prompt",
            "A ranking orders the answers to one prompt: give the rows of each prompt a ranking of their own, or none.",
        ),
        Rule(
            name="longer_chosen",
            table=table,
            expectation=MEAN,
            column="longer_chosen",
            says="the longer answer was chosen in {found} of comparisons, where {allowed} are allowed",
            advice="A reward model would learn length and little else. Are sides mixed up? Balance them, or widen contract.longer_chosen.",
            thresholds={"min_value": "contract.longer_chosen.0", "max_value": "contract.longer_chosen.1"},
            unit="share",
        ),
        Rule(
            name="position",
            table=table,
            expectation=PLAUSIBLY,
            column="chosen_first",
            says="the answer shown first was chosen in {found} of comparisons, where {allowed} are usual",
            advice="Is the order drawn by chance? Then people choose by place: see the annotators' table. Else widen contract.position.",
            thresholds={"min_value": "contract.position.0", "max_value": "contract.position.1"},
            severity="warn",
            unit="share",
        ),
        _share(
            table,
            "duplicates",
            "duplicate",
            "it repeats an earlier comparison",
            "repeat an earlier one",
            "Was something exported twice? Remove the copies, or raise contract.duplicates.",
        ),
        _share(
            table,
            "near_duplicates",
            "near_duplicate",
            "it nearly repeats an earlier comparison",
            "nearly repeat an earlier one",
            "They teach little that is new. Ask about other things, or raise contract.near_duplicates.",
            "warn",
        ),
        _share(
            table,
            "near_other_group",
            "near_other_group",
            "its prompt is nearly that of another group",
            "have a prompt that is nearly that of another group, perhaps in another split",
            "Tests may then flatter. Lower data.near_duplicates so that they come together, or raise contract.near_other_group.",
            "warn",
        ),
        _share(
            table,
            "ties",
            "tie",
            "it is a tie",
            "are ties",
            "There is little to learn from them. Have answers compared that differ more, or raise contract.ties.",
        ),
        Rule(
            name="annotator_share",
            table=table,
            expectation=MAXIMUM,
            column="annotator_share",
            row="its annotator made more than the allowed share",
            says="one annotator made {found} of comparisons, where {allowed} are allowed",
            advice="The model would learn one person's taste. Ask more people, or raise contract.annotator_share.",
            thresholds={"max_value": "contract.annotator_share"},
            unit="share",
        ),
        _share(
            table,
            "contradictions",
            "contradicts",
            "its annotator also judged the other way round",
            "were also judged the other way round by their annotator",
            "Somebody guesses, or the question is unclear: look at the rows. Or raise contract.contradictions.",
            "warn",
        ),
        _share(
            table,
            "at_chance",
            "at_chance",
            "its annotator is no better than drawn lots",
            "are by annotators who are no better than drawn lots",
            "See the annotators' table. Leave their labels out, weight them (reward_model.weights), or raise contract.at_chance.",
        ),
        _share(
            table,
            "ai_labels",
            "by_ai",
            "a model labelled it",
            "were labelled by a model",
            "They are no word of people. Keep them apart if that matters, or raise contract.ai_labels.",
            "warn",
        ),
    ]


RULES: tuple[Rule, ...] = (*_count_rules(), *_comparison_rules(), *_record_rules("demonstrations"))


def contract_json() -> str:
    """The contract in writing, as data/contract.json holds it."""
    written = {table: [rule.written() for rule in RULES if rule.table == table] for table in TABLES}
    return json.dumps(written, indent=1, ensure_ascii=False) + "\n"
