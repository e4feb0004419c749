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
CONTRADICTIONS = 0.05
"""Share of comparisons from which on one annotator's contradictions are worth a warning."""

IN_SET, BETWEEN, UNIQUE = "ExpectColumnValuesToBeInSet", "ExpectColumnValuesToBeBetween", "ExpectColumnValuesToBeUnique"
MEAN, MAXIMUM = "ExpectColumnMeanToBeBetween", "ExpectColumnMaxToBeBetween"
TRUE = {"value_set": [True]}


@dataclass(frozen=True)
class Rule:
    """One promise about the data.

    expectation: a class of Great Expectations, over a column of a table. row: what is wrong with a row that is to blame,
    "" where it is not for single rows. says: what is wrong with the data as a whole, where that is not the same; {found}
    and {allowed} are filled in. advice: what to do. fixed: the expectation's settings. thresholds: those settings that come
    from the configuration, by key; "mostly" stands for a number of rows that may break the rule. unit: of what is found.
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
    unit: Literal["rows", "share"] = "rows"

    @property
    def key(self) -> str:
        return f"{self.table}.{self.name}"

    def settings(self, config: PipelineConfig, rows: int) -> dict[str, Any]:
        """What the expectation is built with. rows: in the table, to turn a number of rows into a share."""
        values = {name: value_of(config, key) for name, key in self.thresholds.items()}
        if "mostly" in values:
            values["mostly"] = max(0, rows - values["mostly"]) / rows if rows else 1.0
        return {"column": self.column, **self.fixed, **values}

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
            case "ExpectColumnValuesToBeInSet":
                return ~column
            case "ExpectColumnValuesToBeUnique":
                return column.duplicated(keep=False)
            case "ExpectColumnMeanToBeBetween":
                return column.astype(bool)
            case _:
                return column > settings["max_value"]


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
    return [*enough, *rejected, *some]


def _record_rules(table: Table) -> list[Rule]:
    """What a record must keep, whichever kind it is."""
    return [
        Rule("text", table, IN_SET, "filled", "Remove such rows.", "a message is empty", fixed=TRUE),
        Rule("roles", table, IN_SET, "roles_ok", "Rename the roles in the source.", f"a role is none of {', '.join(ROLES)}", fixed=TRUE),
        Rule(
            name="assistant_answers",
            table=table,
            expectation=IN_SET,
            column="answers_by_assistant",
            row="an answer is not the assistant's",
            advice="Fix or remove such rows: an answer is what the assistant says, and the prompt all that comes before.",
            fixed=TRUE,
        ),
        Rule(
            name="template",
            table=table,
            expectation=IN_SET,
            column="template_ok",
            row="the model's chat template refuses the conversation",
            advice="Fix or remove such rows (some templates want user and assistant to take turns), or choose another model.",
            fixed=TRUE,
        ),
        Rule(
            name="over_length",
            table=table,
            expectation=BETWEEN,
            column="tokens",
            row="prompt and answer have more than {max_value} tokens",
            advice="Training leaves such rows out. Raise max_tokens, remove them, or allow up to N of them with contract.over_length.max.",
            thresholds={"max_value": "max_tokens", "mostly": "contract.over_length.max"},
        ),
        Rule(
            name="split",
            table=table,
            expectation=IN_SET,
            column="split_ok",
            row="other rows of its group or prompt are in another split",
            advice="Nothing may be tested on what it was taught. Give all rows of a prompt one split, or none to have them divided.",
            fixed=TRUE,
        ),
        Rule("id", table, UNIQUE, "id", "Have the data made again: prefline stage snapshot.", "another row has the same id"),
    ]


def _comparison_rules() -> list[Rule]:
    return [
        Rule(
            name="identical_pairs",
            table="comparisons",
            expectation=IN_SET,
            column="differs",
            row='"chosen" and "rejected" are the same text',
            advice="Such rows teach nothing. Fix or remove them, or allow up to N of them with contract.identical_pairs.max.",
            fixed=TRUE,
            thresholds={"mostly": "contract.identical_pairs.max"},
        ),
        *_record_rules("comparisons"),
        Rule(
            name="longer_chosen",
            table="comparisons",
            expectation=MEAN,
            column="longer_chosen",
            says="the longer answer was chosen in {found} of comparisons, where {allowed} are allowed",
            advice="A reward model would learn length and little else. Are sides mixed up? Balance them, or widen contract.longer_chosen.",
            thresholds={"min_value": "contract.longer_chosen.0", "max_value": "contract.longer_chosen.1"},
            unit="share",
        ),
        Rule(
            name="duplicates",
            table="comparisons",
            expectation=MEAN,
            column="duplicate",
            row="it repeats an earlier comparison",
            says="{found} of comparisons repeat an earlier one, where {allowed} are allowed",
            advice="Was something exported twice? Remove the copies, or raise contract.duplicates.",
            thresholds={"max_value": "contract.duplicates"},
            unit="share",
        ),
        Rule(
            name="ties",
            table="comparisons",
            expectation=MEAN,
            column="tie",
            row="it is a tie",
            says="{found} of comparisons are ties, where {allowed} are allowed",
            advice="There is little to learn from them. Have answers compared that differ more, or raise contract.ties.",
            thresholds={"max_value": "contract.ties"},
            unit="share",
        ),
        Rule(
            name="annotator_share",
            table="comparisons",
            expectation=MAXIMUM,
            column="annotator_share",
            row="its annotator made more than the allowed share",
            says="one annotator made {found} of comparisons, where {allowed} are allowed",
            advice="The model would learn one person's taste. Ask more people, or raise contract.annotator_share.",
            thresholds={"max_value": "contract.annotator_share"},
            unit="share",
        ),
        Rule(
            name="contradictions",
            table="comparisons",
            expectation=MEAN,
            column="contradicts",
            row="its annotator also judged the other way round",
            says="in {found} of comparisons the annotator also judged the other way round, where {allowed} are usual",
            advice="Somebody guesses, or the question is unclear: look at the rows.",
            fixed={"max_value": CONTRADICTIONS},
            severity="warn",
            unit="share",
        ),
    ]


RULES: tuple[Rule, ...] = (*_count_rules(), *_comparison_rules(), *_record_rules("demonstrations"))


def contract_json() -> str:
    """The contract in writing, as data/contract.json holds it."""
    written = {table: [rule.written() for rule in RULES if rule.table == table] for table in TABLES}
    return json.dumps(written, indent=1, ensure_ascii=False) + "\n"
