"""The model card of a registered policy: what it is, what it rests on, what it fails at, and what became of it.

It lies beside the model (card.md), with what it is made from: card.json, evaluation.json and gates.json. So whoever
changes what became of a version has the card made anew from there, and twice is as once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from pydantic import BaseModel, ValidationError

from tasks.data.texts import markdown_text
from tasks.evaluation.result import EVALUATION, Evaluation, Slice, WinRate, schema
from tasks.registry.beside import CARD, read_beside, write_beside
from tasks.registry.champion import by_version
from tasks.registry.decision import DECISION, REASONS
from tasks.registry.facts import Document, Facts
from tasks.registry.gates import Gate
from tasks.registry.ledger import LedgerLine, read_ledger
from tasks.registry.software import BILL
from tasks.registry.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

FACTS, GATES, SCHEMA = "card.json", "gates.json", "evaluation.schema.json"

Found = TypeVar("Found", bound=BaseModel)

WORST = 3
"""Slices that are named where none is lost for sure."""
LONGEST = 2000
"""Characters of a name or a reason."""


class Gates(Document):
    """gates.json: what was required for promotion and what was found. evidence: digest of the evaluation that they are about."""

    evidence: str
    gates: list[Gate]


@dataclass(frozen=True)
class Fate:
    """What became of a version. decision, reasons: "" while no run has come to one. gates: none before that.

    lines: of the ledger, about this version or about the one that took over from it.
    """

    decision: str = ""
    reasons: str = ""
    gates: Sequence[Gate] = ()
    lines: Sequence[LedgerLine] = ()


# Keeping it up to date ----------------------------------------------------------------------------------------------


def files_beside(facts: Facts, evaluation: Evaluation) -> dict[str, str]:
    """What a version is registered with, by file name: all that its card will be made from."""
    return {
        FACTS: facts.model_dump_json(indent=1) + "\n",
        EVALUATION: evaluation.model_dump_json(indent=1) + "\n",
        SCHEMA: schema(),
    }


def keep_gates(store: Store, name: str, version: str, gates: Sequence[Gate], evidence: str) -> None:
    """Leave the gates beside a version, for its card; the caller then has it updated. evidence: as Gates has it."""
    found = by_version(store, name, version)
    if found:
        _write(store, found, {GATES: Gates(evidence=evidence, gates=[*gates]).model_dump_json(indent=1) + "\n"})


def update(store: Store, name: str, version: str) -> None:
    """Make a version's card anew from what lies beside it, its tags and the ledger. The caller holds the registry's lock.

    A version without card.json (registered by hand, or its files out of reach) is left as it is: a card holds up no promotion.
    """
    found = by_version(store, name, version)
    if not found:
        return
    facts = _read(store, found, FACTS, Facts)
    evaluation = _read(store, found, EVALUATION, Evaluation)
    if not facts or not evaluation:
        return
    gates = _read(store, found, GATES, Gates)
    fate = Fate(
        decision=found.tags.get(DECISION, ""),
        reasons=found.tags.get(REASONS, ""),
        gates=gates.gates if gates and gates.evidence == facts.evidence else (),
        lines=[line for line in read_ledger(store, name) if version in (line.version, line.previous)],
    )
    card = render(name, version, facts, evaluation, fate)
    if read_beside(store, found, CARD) != card:
        _write(store, found, {CARD: card})


def _read(store: Store, version: ModelVersion, file: str, kind: type[Found]) -> Found | None:
    text = read_beside(store, version, file)
    try:
        return kind.model_validate_json(text) if text else None
    except ValidationError:  # cut short by a kill: registering again mends it
        return None


def _write(store: Store, version: ModelVersion, files: dict[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        write_beside(store, version, files)
    except (MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"prefline: the card of {version.name} version {version.version} could not be written ({reason}).", flush=True)


# Writing it ---------------------------------------------------------------------------------------------------------


def render(name: str, version: str, facts: Facts, evaluation: Evaluation, fate: Fate) -> str:
    """The card, in GitHub's Markdown. Every name and text that is somebody else's is escaped."""
    lost, worst = failures(evaluation)
    return _template().render(
        name=name,
        version=version,
        facts=facts,
        found=evaluation,
        fate=fate,
        forced=[line for line in fate.lines if line.version == version and line.action == "forced"],
        lost=lost,
        worst=worst,
        files={"evaluation": EVALUATION, "schema": SCHEMA, "facts": FACTS, "gates": GATES, "bill": BILL},
    )


def failures(evaluation: Evaluation) -> tuple[list[Slice], list[Slice]]:
    """Slices on which the policy surely loses (their whole interval below one half), and the WORST ones where there is none."""
    ordered = sorted(evaluation.slices, key=lambda one: one.win_rate.rate)
    lost = [one for one in ordered if one.win_rate.high < 0.5]
    return lost, [] if lost else ordered[:WORST]


def _between(found: WinRate | tuple[float, float, float]) -> str:
    """0.75 (0.70 to 0.80)."""
    value, low, high = (found.rate, found.low, found.high) if isinstance(found, WinRate) else found
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _listed(counts: dict[str, int]) -> str:
    """train 1,200, test 300; what there is none of is left out."""
    return ", ".join(f"{markdown_text(name)} {count:,}" for name, count in counts.items() if count)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(md=lambda text: markdown_text(text, LONGEST), between=_between, listed=_listed)
    return environment.get_template("card.md.j2")
