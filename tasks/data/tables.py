"""Records as flat tables of hashes, lengths and labels: what the contract is checked on. No text of anybody's is in them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tasks.data.encoding import encode_answer, encode_prompt
from tasks.data.records import SPLITS, Comparison, Demonstration, Message, digest
from tasks.data.statistics import longer_chosen, words
from tasks.errors import PreflineError

Table = Literal["counts", "comparisons", "demonstrations"]
TABLES: tuple[Table, ...] = ("counts", "comparisons", "demonstrations")
"""In the order in which they are checked: an empty table passes every expectation, so the counts come first."""
ROLES = ("system", "user", "assistant")


class Tokens:
    """Lengths in the model's tokens; every distinct prompt and answer is encoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._prompts: dict[str, int] = {}
        self._answers: dict[str, int] = {}

    def count(self, prompt: list[Message], answer: list[Message]) -> int | None:
        """Of prompt and answer together; None where the model's chat template refuses them."""
        key = digest(prompt)
        answer_key = digest(answer) if len(answer) == 1 else digest(prompt, answer)
        try:
            if key not in self._prompts:
                self._prompts[key] = len(encode_prompt(self._tokenizer, prompt))
            if answer_key not in self._answers:
                self._answers[answer_key] = len(encode_answer(self._tokenizer, prompt, answer))
        except (TemplateError, PreflineError):
            return None
        return self._prompts[key] + self._answers[answer_key]


def counts_table(comparisons: Sequence[Comparison], demonstrations: Sequence[Demonstration], rejects: Mapping[str, int]) -> pd.DataFrame:
    """One row: how many of each kind, in all and by split, and the share of its sources' rows that could not be used.

    rejects: by kind.
    """
    found: dict[str, float] = {}
    for kind, records in (("comparisons", comparisons), ("demonstrations", demonstrations)):
        rows = len(records) + rejects.get(kind, 0)
        splits = Counter(record.split for record in records)
        found |= {kind: len(records), f"rejected_{kind}": rejects.get(kind, 0) / rows if rows else 0.0}
        found |= {f"{kind}_{split}": splits[split] for split in SPLITS}
    return pd.DataFrame([found])


def comparison_table(comparisons: Iterable[Comparison], tokens: Tokens, parted: set[str]) -> pd.DataFrame:
    """A row a comparison. parted: groups and prompts that are in several splits, from `parted_by_splits`.

    tokens: of the longer of the two texts. longer_chosen: missing where the longer one can't be told.
    """
    table = pd.DataFrame(
        [
            _common(r, [r.chosen, r.rejected], tokens, parted)
            | {
                "chosen_hash": digest(r.chosen),
                "rejected_hash": digest(r.rejected),
                "chosen_words": words(r.chosen),
                "rejected_words": words(r.rejected),
                "longer_chosen": longer_chosen(r),
                "tie": r.tie,
                "annotator": None if r.annotator is None else digest(r.annotator),
            }
            for r in comparisons
        ]
    )
    if table.empty:
        return table
    table["longer_chosen"] = table["longer_chosen"].astype(float)
    table["differs"] = table["chosen_hash"] != table["rejected_hash"]
    table["duplicate"] = table.duplicated(["prompt_hash", "chosen_hash", "rejected_hash", "annotator"])
    table["contradicts"] = _contradicts(table)
    shares = table["annotator"].value_counts() / len(table)
    table["annotator_share"] = table["annotator"].map(shares).fillna(0.0)
    return table


def demonstration_table(demonstrations: Iterable[Demonstration], tokens: Tokens, parted: set[str]) -> pd.DataFrame:
    """A row a demonstration; columns as in `comparison_table`."""
    return pd.DataFrame(
        [
            _common(r, [r.answer], tokens, parted) | {"answer_hash": digest(r.answer), "answer_words": words(r.answer)}
            for r in demonstrations
        ]
    )


def parted_by_splits(records: Iterable[Comparison | Demonstration]) -> set[str]:
    """Groups (by id) and prompts (by hash) whose records are in more than one split."""
    splits: dict[str, set[str | None]] = defaultdict(set)
    for record in records:
        splits[record.group_id].add(record.split)
        splits[digest(record.prompt)].add(record.split)
    return {name for name, found in splits.items() if len(found) > 1}


def _common(record: Comparison | Demonstration, answers: list[list[Message]], tokens: Tokens, parted: set[str]) -> dict[str, Any]:
    """The columns of either kind of record."""
    messages = [*record.prompt, *(message for answer in answers for message in answer)]
    prompt_hash = digest(record.prompt)
    roles_ok = all(message["role"] in ROLES for message in messages)
    lengths = [tokens.count(record.prompt, answer) for answer in answers] if roles_ok else [0]
    return {
        "id": digest(record.id),
        "source": record.source,
        "source_id": record.source_id,
        "prompt_hash": prompt_hash,
        "prompt_words": words(record.prompt),
        "filled": all(message["content"].strip() for message in messages),
        "roles_ok": roles_ok,
        "answers_by_assistant": all(message["role"] not in ("system", "user") for answer in answers for message in answer),
        "template_ok": None not in lengths,
        "tokens": max(length or 0 for length in lengths),
        "split_ok": record.group_id not in parted and prompt_hash not in parted,
    }


def _contradicts(table: pd.DataFrame) -> pd.Series:
    """Marks comparisons whose annotator also judged the same two answers the other way round. Ties and unknown people don't."""
    forward = table["chosen_hash"] < table["rejected_hash"]
    first, second = table["chosen_hash"].where(forward, table["rejected_hash"]), table["rejected_hash"].where(forward, table["chosen_hash"])
    judged = table["annotator"].notna() & ~table["tie"]
    both = forward[judged].groupby([table["prompt_hash"], first, second, table["annotator"]]).transform("nunique") > 1
    return both.reindex(table.index, fill_value=False)
