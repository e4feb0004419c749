"""Records as flat tables of codes, lengths and labels: what the contract is checked on and what annotators are studied by.

Records pass by once; of their texts nothing is kept. Codes stand for contents (`code`), so that equal texts have equal
numbers. A flag is true where something is wrong with a row.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import orjson
import pandas as pd

from tasks.data.records import SPLITS, Comparison, Demonstration, Message, digest
from tasks.data.texts import Fault, Scanner
from tasks.data.tokens import Shape, Tokens

Table = Literal["counts", "comparisons", "demonstrations"]
TABLES: tuple[Table, ...] = ("counts", "comparisons", "demonstrations")
"""In the order in which they are checked: an empty table passes every expectation, so the counts come first."""
ROLES = ("system", "user", "assistant")
BETWEEN_TAGS = "\x1f"
"""Stands between the names in the column "tags"."""
Known = Callable[[list[Message]], bool]
"""Tells whether a prompt is one that must not be trained on."""

_SPACES = bytes(ord(" ") if chr(byte).isspace() else ord("x") for byte in range(256))

# A row's flags as bits; those of its text come first, just as `Fault` has them.
_TEXT_FLAGS = {
    "control_characters": Fault.CONTROL,
    "garbled": Fault.GARBLED,
    "special_tokens": Fault.SPECIAL,
    "email": Fault.EMAIL,
    "phone": Fault.PHONE,
    "card": Fault.CARD,
    "secret": Fault.KEY,
}
_EMPTY, _ROLE, _AUTHOR, _TURNS, _REFUSED, _LONG, _KNOWN = (1 << bit for bit in range(8, 15))
_FLAGS: dict[str, int] = {name: fault.value for name, fault in _TEXT_FLAGS.items()} | {
    "empty": _EMPTY,
    "unknown_role": _ROLE,
    "not_by_assistant": _AUTHOR,
    "turns": _TURNS,
    "template_refuses": _REFUSED,
    "too_long": _LONG,
    "contaminated": _KNOWN,
}


def code(text: str) -> int:
    """A digest of 16 hexadecimal digits as a number; any other text by its digest."""
    try:
        raw = bytes.fromhex(text) if len(text) == 16 else b""
    except ValueError:
        raw = b""
    return int.from_bytes(raw if len(raw) == 8 else bytes.fromhex(digest(text)), "big")


def code_of(messages: list[Message]) -> int:
    """The same as the code of their digest."""
    return int.from_bytes(sha256(orjson.dumps((messages,), option=orjson.OPT_SORT_KEYS)).digest()[:8], "big")


def words(messages: list[Message]) -> int:
    return sum([_words(message["content"]) for message in messages])


def _words(text: str) -> int:
    """As many as text.split() gives, three times as fast where no other spaces than those of ASCII can be."""
    if not text.isascii():
        return len(text.split())
    marked = text.encode().translate(_SPACES)
    return marked.count(b" x") + marked.startswith(b"x")


def characters(messages: list[Message]) -> int:
    return sum([len(message["content"]) for message in messages])


def comparison_table(comparisons: Iterable[Comparison], tokens: Tokens | None = None, known: Known | None = None) -> pd.DataFrame:
    """A row a comparison, in their order.

    Codes (uint64): id, prompt, chosen, rejected, group; ranking is 0 for a lone pair. Names (categorical, missing where
    unknown): annotator, source, split, labels_by, language, tag (the first), tags (all). line: in the source, 0 where it is
    not numbered. tie. strength, chosen_first (0, 1), seconds: missing where unknown, chosen_first for ties too.
    longer_chosen (0, 1): by characters, missing for ties and equal lengths. Words and characters by part. Flags: those of
    each row, then those that a row has among the others. tokens: without, nothing is asked of the model's tokenizer.
    known: of the prompts of an evaluation set; without, "contaminated" is missing.
    """
    common = _Common(tokens, known)
    chosen, rejected, ranking = array("Q"), array("Q"), array("Q")
    lengths = {f"{part}_{unit}": array("i") for part in ("chosen", "rejected") for unit in ("words", "characters")}
    chosen_words, chosen_characters, rejected_words, rejected_characters = lengths.values()
    annotator, labels_by = _Names(), _Names()
    tie, strength, first, seconds = array("b"), array("f"), array("f"), array("f")
    unknown = float("nan")
    for record in comparisons:
        common.add(record, record.chosen, record.rejected)
        chosen.append(code_of(record.chosen))
        rejected.append(code_of(record.rejected))
        ranking.append(code(record.ranking) if record.ranking else 0)
        chosen_words.append(words(record.chosen))
        rejected_words.append(words(record.rejected))
        chosen_characters.append(characters(record.chosen))
        rejected_characters.append(characters(record.rejected))
        annotator.add(record.annotator)
        labels_by.add(record.labels_by)
        tie.append(record.tie)
        strength.append(unknown if record.strength is None else record.strength)
        first.append(unknown if record.chosen_first is None or record.tie else record.chosen_first)
        seconds.append(unknown if record.seconds is None else record.seconds)
    own = {
        "chosen": np.array(chosen, np.uint64),
        "rejected": np.array(rejected, np.uint64),
        "ranking": np.array(ranking, np.uint64),
        "annotator": annotator.column(),
        "labels_by": labels_by.column(),
        "tie": np.array(tie, bool),
        "strength": np.array(strength, np.float32),
        "chosen_first": np.array(first, np.float32),
        "seconds": np.array(seconds, np.float32),
        **{name: np.array(length, np.int32) for name, length in lengths.items()},
    }
    table = pd.DataFrame(common.columns() | own)
    more = np.sign(table["chosen_characters"].to_numpy() - table["rejected_characters"].to_numpy()).astype(np.float32)
    table["longer_chosen"] = np.where(table["tie"] | (more == 0), np.float32("nan"), (more + 1) / 2)
    table["identical"] = table["chosen"] == table["rejected"]
    table["duplicate"] = table.duplicated(["prompt", "chosen", "rejected", "annotator"])
    table["contradicts"] = _contradicts(table)
    table["mixed_ranking"] = _several(table["ranking"].to_numpy(), table["prompt"].to_numpy()) & (table["ranking"] != 0)
    table["by_ai"] = table["labels_by"] == "ai"
    shares = table["annotator"].value_counts() / max(1, len(table))
    table["annotator_share"] = table["annotator"].map(shares).astype(float).fillna(0.0)
    return table


def demonstration_table(demonstrations: Iterable[Demonstration], tokens: Tokens | None = None, known: Known | None = None) -> pd.DataFrame:
    """A row a demonstration; columns as in `comparison_table`, with answer for chosen and rejected."""
    common = _Common(tokens, known)
    answer, answer_words, answer_characters = array("Q"), array("i"), array("i")
    for record in demonstrations:
        common.add(record, record.answer)
        answer.append(code_of(record.answer))
        answer_words.append(words(record.answer))
        answer_characters.append(characters(record.answer))
    own = {
        "answer": np.array(answer, np.uint64),
        "answer_words": np.array(answer_words, np.int32),
        "answer_characters": np.array(answer_characters, np.int32),
    }
    return pd.DataFrame(common.columns() | own)


def counts_table(comparisons: pd.DataFrame, demonstrations: pd.DataFrame, rejects: Mapping[str, int]) -> pd.DataFrame:
    """One row: how many of each kind, in all and by split, and the share of its sources' rows that could not be used.

    rejects: by kind.
    """
    found: dict[str, float] = {}
    for kind, table in (("comparisons", comparisons), ("demonstrations", demonstrations)):
        rows = len(table) + rejects.get(kind, 0)
        splits = table["split"].value_counts()
        found |= {kind: len(table), f"rejected_{kind}": rejects.get(kind, 0) / rows if rows else 0.0}
        found |= {f"{kind}_{split}": int(splits.get(split, 0)) for split in SPLITS}
    return pd.DataFrame([found])


def mark_parted(*tables: pd.DataFrame) -> None:
    """Add the flag "parted": the row's group or prompt, seen over all tables, is in several splits."""
    splits = np.concatenate([_split_codes(table) for table in tables])
    for table in tables:
        table["parted"] = False
    for name in ("group", "prompt"):
        codes = np.concatenate([table[name].to_numpy() for table in tables])
        bad = np.unique(codes[_several(codes, splits)])
        for table in tables:
            table["parted"] |= np.isin(table[name].to_numpy(), bad)


def mark_near(table: pd.DataFrame, near: pd.DataFrame | None) -> None:
    """Add the flags of near.parquet to the comparisons that it names; without such a file they are missing: nobody looked."""
    for flag in ("near_duplicate", "near_other_group"):
        if near is None:
            table[flag] = np.nan
        else:
            table[flag] = np.isin(table["id"].to_numpy(), near.loc[near[flag], "id"].to_numpy(np.uint64)).astype(float)


# Columns ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Conversation:
    """What follows from the roles of the messages alone. shape: None where there is nothing to measure."""

    flags: int
    shape: Shape | None


class _Names:
    """Names as small numbers, for a categorical column."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._column = array("i")

    def add(self, name: str | None) -> None:
        self._column.append(-1 if name is None else self._codes.setdefault(name, len(self._codes)))

    def column(self) -> pd.Categorical:
        return pd.Categorical.from_codes(np.array(self._column, np.int32), categories=pd.Index(list(self._codes), dtype=object))


class _Common:
    """The columns of either kind of record, filled as records pass by."""

    def __init__(self, tokens: Tokens | None, known: Known | None) -> None:
        self._tokens, self._is_known = tokens, known
        self._scanner = Scanner(tokens.special if tokens else ())
        self._conversations: dict[tuple[str, ...], _Conversation] = {}
        self._known: dict[int, bool] = {}
        self._codes = {name: array("Q") for name in ("id", "prompt", "group")}
        self._names = {name: _Names() for name in ("source", "split", "language", "tag", "tags")}
        self._line, self._words, self._flags = array("i"), array("i"), array("H")

    def add(self, record: Comparison | Demonstration, *answers: list[Message]) -> None:
        prompt = code_of(record.prompt)
        codes, names, tags = self._codes, self._names, record.tags
        codes["id"].append(code(record.id))
        codes["prompt"].append(prompt)
        codes["group"].append(code(record.group_id))
        names["source"].add(record.source)
        names["split"].add(record.split)
        names["language"].add(record.language)
        names["tag"].add(tags[0] if tags else None)
        names["tags"].add((tags[0] if len(tags) == 1 else BETWEEN_TAGS.join(tags)) if tags else None)
        self._line.append(int(record.source_id) if record.source_id.isdecimal() and len(record.source_id) < 10 else 0)
        self._words.append(words(record.prompt))
        row = len(self._flags)
        flags = self._look(row, record.prompt, answers)
        if self._is_known and record.split != "test":
            if prompt not in self._known:
                self._known[prompt] = self._is_known(record.prompt)
            flags |= _KNOWN * self._known[prompt]
        self._flags.append(flags)
        if self._tokens:
            self._settle()

    def _look(self, row: int, prompt: list[Message], answers: Sequence[list[Message]]) -> int:
        """The flags of a row by itself; its length may be settled later."""
        asked = [message["content"] for message in prompt]
        said = [[message["content"] for message in answer] for answer in answers]
        texts = [*asked, *(text for answer in said for text in answer)]
        flags = int(self._scanner.faults("\n".join(texts)))
        for text in texts:
            if not text or text.isspace():
                flags |= _EMPTY
        open_ones = []
        for answer, saying in zip(answers, said, strict=True):
            conversation = self._conversation(prompt, answer)
            flags |= conversation.flags
            if conversation.shape and self._tokens and not self._tokens.fits("".join(asked + saying), conversation.shape):
                open_ones.append(answer)
        if open_ones and self._tokens:
            self._tokens.ask(row, prompt, open_ones)
        return flags

    def _conversation(self, prompt: list[Message], answer: list[Message]) -> _Conversation:
        roles = (*(message["role"] for message in prompt), "", *(message["role"] for message in answer))
        if roles not in self._conversations:
            at = roles.index("")
            self._conversations[roles] = _judge(roles[:at], roles[at + 1 :], self._tokens)
        return self._conversations[roles]

    def _settle(self, last: bool = False) -> None:
        assert self._tokens is not None
        for verdict in self._tokens.verdicts(last):
            self._flags[verdict.row] |= _REFUSED * verdict.refused | _LONG * verdict.too_long

    def columns(self) -> dict[str, Any]:
        if self._tokens:
            self._settle(last=True)
        flags = np.array(self._flags, np.uint16)
        columns = {
            **{name: np.array(codes, np.uint64) for name, codes in self._codes.items()},
            **{name: names.column() for name, names in self._names.items()},
            "line": np.array(self._line, np.int32),
            "prompt_words": np.array(self._words, np.int32),
            **{name: (flags & bit) != 0 for name, bit in _FLAGS.items()},
        }
        if not self._is_known:
            columns["contaminated"] = np.full(len(flags), np.nan)
        return columns


def _judge(prompt: tuple[str, ...], answer: tuple[str, ...], tokens: Tokens | None) -> _Conversation:
    if any(role not in ROLES for role in prompt + answer):
        return _Conversation(_ROLE | (_AUTHOR if {"system", "user"} & {*answer} else 0), None)
    flags = _AUTHOR if any(role != "assistant" for role in answer) else 0
    spoken = prompt[1:] if prompt[:1] == ("system",) else prompt
    turns = spoken + answer[:1]
    if turns != tuple(("user", "assistant")[n % 2] for n in range(len(turns))) or len(turns) % 2 or len(answer) != 1:
        flags |= _TURNS
    shape = tokens.shape(prompt, answer) if tokens else None
    return _Conversation(flags | (_REFUSED if tokens and not shape else 0), shape)


# Over rows ----------------------------------------------------------------------------------------------------------


def _several(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Marks the rows whose key comes with more than one value."""
    if not len(keys):
        return np.zeros(0, bool)
    grouped = pd.Series(values).groupby(keys)
    return (grouped.transform("min") != grouped.transform("max")).to_numpy()


def _split_codes(table: pd.DataFrame) -> np.ndarray:
    """Splits as numbers that mean the same in every table."""
    known = Counter({split: n for n, split in enumerate(SPLITS, 1)})
    names = [known[name] or -code(name) % 2**31 for name in table["split"].cat.categories]
    return np.array([0, *names])[table["split"].cat.codes.to_numpy() + 1]


def _contradicts(table: pd.DataFrame) -> np.ndarray:
    """Marks comparisons whose annotator also judged the same two answers the other way round. Ties and unknown people don't."""
    judged = (table["annotator"].notna() & ~table["tie"]).to_numpy()
    people, prompt = table["annotator"].cat.codes.to_numpy()[judged], table["prompt"].to_numpy()[judged]
    chosen, rejected = table["chosen"].to_numpy()[judged], table["rejected"].to_numpy()[judged]
    found = np.zeros(len(table), bool)
    found[judged] = _several(_mixed(prompt, np.minimum(chosen, rejected), np.maximum(chosen, rejected), people), chosen < rejected)
    return found


def _mixed(*columns: np.ndarray) -> np.ndarray:
    """One code for the values that stand side by side."""
    found = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        found = (found ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return found
