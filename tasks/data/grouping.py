"""Which records are given again, which belong together, and which nearly repeat others: all from a few numbers of each record.

Texts are asked for again, in a second and third pass over the records, only where they are needed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import orjson
import pandas as pd

from tasks.data.near import Near, near_groups
from tasks.data.records import Comparison, Demonstration, Message
from tasks.data.splits import join
from tasks.data.tables import code

Texts = Callable[[np.ndarray], Iterable[str]]
"""The wanted texts (a row a record; columns prompt, chosen, rejected) in order of arrival."""


@dataclass(frozen=True)
class NearFigures:
    """prompts, answers: different ones. joined: those that joined an earlier one. comparisons: that nearly repeat an earlier one.

    near_other_group: comparisons whose prompt is like one of another group. Prompts and answers are alike from similarity on.
    """

    similarity: float
    prompts: int
    joined_prompts: int
    answers: int
    joined_answers: int
    comparisons: int
    near_other_group: int


@dataclass(frozen=True)
class Grouped:
    """first: of each record in order of arrival, the first one of its id (its own number, where it is kept).

    same: it says the same as that one. own, group: the number of its own group and of that to which it belongs in the end, which
    is the oldest of them; of kept records only. records: of the kept ones, what splits.assign wants. near: near.parquet.
    """

    first: np.ndarray
    same: np.ndarray
    own: np.ndarray
    group: np.ndarray
    records: pd.DataFrame
    near: pd.DataFrame | None
    figures: NearFigures | None

    def groups(self) -> dict[str, int]:
        """How many there are, and the records of the largest."""
        sizes = np.bincount(self.group)
        return {"all": int((sizes > 0).sum()), "largest": int(sizes.max(initial=0))}


class Seen:
    """What is held of each record, in order of arrival."""

    def __init__(self) -> None:
        self.comparison = array("b")
        self.id, self.group, self.prompt, self.answers = array("Q"), array("Q"), array("Q"), array("Q")
        self.says = array("q")
        self.slice, self.given = array("i"), array("i")
        self._names: dict[str | None, int] = {None: -1}

    def add(self, record: Comparison | Demonstration) -> None:
        prompt = _code(record.prompt)
        if isinstance(record, Comparison):
            first, second = _code(record.chosen), _code(record.rejected)
            says = hash((prompt, first, second, record.annotator, record.tie))
        else:
            first = second = _code(record.answer)
            says = hash((prompt, first))
        self.comparison.append(isinstance(record, Comparison))
        self.id.append(code(record.id))
        self.group.append(code(record.group_id))
        self.prompt.append(prompt)
        self.answers.append(first)
        self.answers.append(second)
        self.says.append(says)
        self.slice.append(self._number(record.tags[0] if record.tags else None))
        self.given.append(self._number(record.split))

    def named(self, numbers: np.ndarray) -> pd.Categorical:
        """Slices or given splits by name."""
        names = pd.Index([name for name in self._names if name is not None], dtype="str")
        return pd.Categorical.from_codes(numbers.tolist(), categories=names)

    def _number(self, name: str | None) -> int:
        return self._names.setdefault(name, len(self._names) - 1)


def _code(messages: list[Message]) -> int:
    return int.from_bytes(sha256(orjson.dumps(messages, option=orjson.OPT_SORT_KEYS)).digest()[:8], "big")


def bring_together(seen: Seen, similarity: float, texts: Texts) -> Grouped:
    """Decide about every record. similarity: of texts that are alike, 0 for equal ones only."""
    comparison = np.frombuffer(seen.comparison, dtype=np.int8).astype(bool)
    says, codes = np.frombuffer(seen.says, dtype=np.int64), np.frombuffer(seen.group, dtype=np.uint64)
    first = first_rows(comparison, np.frombuffer(seen.id, dtype=np.uint64))
    kept = np.flatnonzero(first == np.arange(len(first)))
    group, _ = numbered(codes[kept])
    prompt, new = numbered(np.frombuffer(seen.prompt, dtype=np.uint64)[kept])
    near_prompts = Near(np.arange(len(new)), np.zeros((0, 2), dtype=np.int64))
    if similarity:
        wanted = np.zeros((len(first), 3), dtype=bool)
        wanted[kept[new], 0] = True
        near_prompts = near_groups(texts(wanted), similarity)
    arrived, joined = join(group.tolist(), prompt.tolist(), near_prompts.leader.tolist())
    near, figures = None, None
    if similarity:
        of = comparison[kept]
        near, figures = _near(seen, similarity, texts, kept[of], prompt[of], joined[new], near_prompts)
    records = pd.DataFrame(
        {
            "comparison": comparison[kept],
            "code": codes[kept],
            "arrived": arrived,
            "group": joined,
            "slice": seen.named(np.frombuffer(seen.slice, dtype=np.int32)[kept]),
            "given": seen.named(np.frombuffer(seen.given, dtype=np.int32)[kept]),
        }
    )
    return Grouped(first, says == says[first], group, joined, records, near, figures)


def _near(
    seen: Seen, similarity: float, texts: Texts, comparisons: np.ndarray, prompt: np.ndarray, group_of_prompt: np.ndarray, near: Near
) -> tuple[pd.DataFrame, NearFigures]:
    """Comparisons that nearly repeat an earlier one: other texts, but a prompt alike and two answers alike.

    comparisons: numbers of the kept ones. prompt: that of each. near: of the prompts, and group_of_prompt the group of each.
    """
    answer, new = numbered(np.frombuffer(seen.answers, dtype=np.uint64).reshape(-1, 2)[comparisons].ravel())
    wanted = np.zeros((len(seen.id), 3), dtype=bool)
    wanted[comparisons[new // 2], 1 + new % 2] = True
    alike = near_groups(texts(wanted), similarity)
    exact, roughly = np.sort(answer.reshape(-1, 2), axis=1), np.sort(alike.leader[answer].reshape(-1, 2), axis=1)
    same = first_rows(prompt, exact[:, 0], exact[:, 1])
    repeats = same != first_rows(near.leader[prompt], roughly[:, 0], roughly[:, 1])
    apart = near.others[group_of_prompt[near.others[:, 0]] != group_of_prompt[near.others[:, 1]]]
    elsewhere = np.isin(prompt, apart)
    table = pd.DataFrame(
        {"id": np.frombuffer(seen.id, dtype=np.uint64)[comparisons], "near_duplicate": repeats, "near_other_group": elsewhere}
    )
    figures = NearFigures(
        similarity,
        prompts=len(near.leader),
        joined_prompts=_joined(near),
        answers=len(alike.leader),
        joined_answers=_joined(alike),
        comparisons=int(repeats.sum()),
        near_other_group=int(elsewhere.sum()),
    )
    return table, figures


def _joined(near: Near) -> int:
    return int((near.leader != np.arange(len(near.leader))).sum())


def first_rows(*columns: np.ndarray) -> np.ndarray:
    """Of each row, the first one that is equal to it in all columns."""
    order = np.lexsort(columns)
    new = np.ones(len(order), dtype=bool)
    new[1:] = np.any([column[order[1:]] != column[order[:-1]] for column in columns], axis=0)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first


def numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as numbers from 0 in order of their first appearance, and the place of that appearance, by number."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    return number[inverse], first[order]
