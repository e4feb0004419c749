"""Which texts nearly repeat an earlier one: words in threes, MinHash to find whom to compare, then the exact share in common.

A text joins the earliest leader that it is like, or becomes a leader itself. So what comes later never moves what came
before, and groups stay as data grow.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import rensa

SLOTS = 64
"""Of a signature. At a true share of 0.8 its estimate has a standard error of 0.05."""
FOUND = 0.99
"""At least so likely is a text that is just like enough to be compared at all; one that is more alike is surer to be."""
DOUBT = 4.0
"""Standard errors below the limit at which a signature's estimate settles it: once in 30,000 it does so wrongly."""
HELD = 16
"""Leaders that a bucket holds. Later ones are not found by it: a million texts of one pattern would all meet there."""
BATCH = 1_000_000
"""Characters, or one text that is longer."""
SEED = 1

_TO_SPACES = str.maketrans({chr(number): " " for number in range(128) if not chr(number).isalnum()})
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Letters of writing without spaces between words: Chinese, Japanese, Thai, Lao, Burmese, Khmer."""
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


@dataclass(frozen=True)
class Near:
    """leader: of each text, the number of the one that it joined; its own where it is a leader.

    others: pairs (text, leader), one a row, where a text is like a leader that it did not join.
    """

    leader: np.ndarray
    others: np.ndarray


def words(text: str) -> list[str]:
    """Lower-case words without punctuation. Characters of writing without spaces are words. A text without any gives its signs."""
    if text.isascii():  # the common case, three times as fast
        found = text.lower().translate(_TO_SPACES).split()
        return found or list("".join(text.split()))
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower()) or list("".join(text.split()))


def near_groups(texts: Iterable[str], similarity: float) -> Near:
    """Leaders of texts that come in order of arrival. similarity: least share of word triples in common (Jaccard), above 0.

    Two texts count as alike only if they are: the share is exact. A text may miss its leader: one that is just like enough
    is found with a probability of at least 0.99, unless many leaders lie as near.
    """
    with TemporaryFile() as file:
        sets = _Sets(file)
        signatures = [np.zeros((0, SLOTS), dtype=np.uint32)]
        for batch in _batches(texts):
            signatures.append(sets.add([words(text) for text in batch]))
        return _lead(np.concatenate(signatures), sets, similarity)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def bands(similarity: float) -> int:
    """Slots a band: as many as still find a text that is just like enough. More make fewer false candidates."""
    enough = (rows for rows in range(SLOTS // 2, 1, -1) if 1 - (1 - similarity**rows) ** (SLOTS // rows) >= FOUND)
    return next(enough, 1)


# Word triples ---------------------------------------------------------------------------------------------------------


@dataclass
class _Sets:
    """The word triples of each text as sorted numbers, in a file that vanishes when it is closed."""

    file: IO[bytes]
    ends: list[np.ndarray] = field(default_factory=list)
    _at: np.ndarray | None = None

    def add(self, texts: list[list[str]]) -> np.ndarray:
        """Keep the triples of some texts; returns the texts' signatures."""
        flat, offsets = _triples(texts)
        self.file.write(flat.tobytes())
        before = self.ends[-1][-1] if self.ends else 0
        self.ends.append(offsets[1:].astype(np.int64) + before)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, SLOTS, SEED)
        return np.array(matrix.to_rows(), dtype=np.uint32)

    def close(self) -> None:
        """Nothing more comes; from here on `of` reads."""
        self.file.flush()
        self._at = np.concatenate([[0], *self.ends])
        self.ends = []

    def sizes(self) -> np.ndarray:
        assert self._at is not None
        return np.diff(self._at)

    def of(self, text: int) -> np.ndarray:
        assert self._at is not None
        start, end = int(self._at[text]), int(self._at[text + 1])
        return np.frombuffer(os.pread(self.file.fileno(), 8 * (end - start), 8 * start), dtype=np.uint64)


def _triples(texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct triples of words of each text, one text after the other, and where each begins (one more at the end).

    Two marks before and after each text: short texts have triples too, and a changed word costs three wherever it stands.
    """
    marked = [word for text in texts for word in ("\n", "\n", *text, "\n", "\n")]
    lengths = np.array([len(text) + 4 for text in texts])
    hashes = np.array(rensa.RMinHash.hash_token_sets([marked])[0], dtype=np.uint64)
    first, second, third = hashes[:-2], hashes[1:-1], hashes[2:]
    triples = _mix(_mix(_mix(first) + second) + third)
    text = np.repeat(np.arange(len(texts)), lengths)
    inside = text[:-2] == text[2:]
    triples, text = triples[inside], text[:-2][inside]
    order = np.lexsort((triples, text))
    triples, text = triples[order], text[order]
    new = np.ones(len(triples), dtype=bool)
    new[1:] = (triples[1:] != triples[:-1]) | (text[1:] != text[:-1])
    counts = np.bincount(text[new], minlength=len(texts))
    return triples[new], np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Spread 64-bit numbers evenly (the finaliser of SplitMix64, Steele et al. 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


# Leaders --------------------------------------------------------------------------------------------------------------


def _lead(signatures: np.ndarray, sets: _Sets, similarity: float) -> Near:
    sets.close()
    sizes = sets.sizes()
    buckets, count = _buckets(signatures, bands(similarity))
    first = np.full(count, -1, dtype=np.int32)  # a bucket's first leader; nearly all have no other
    more: dict[int, list[int]] = {}
    leader = np.arange(len(signatures), dtype=np.int64)
    others: list[tuple[int, int]] = []
    doubt = similarity - DOUBT * np.sqrt(similarity * (1 - similarity) / SLOTS)
    for text in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
        mine = buckets[text][buckets[text] >= 0]
        candidates = _met(mine, first, more)
        alike = [c for c in _likely(text, candidates, signatures, sizes, similarity, doubt) if _share(sets, text, c) >= similarity]
        if alike:
            leader[text] = alike[0]
            others += [(text, other) for other in alike[1:]]
        else:
            _hold(text, mine, first, more)
    return Near(leader, np.array(others, dtype=np.int64).reshape(-1, 2))


def _buckets(signatures: np.ndarray, rows: int) -> tuple[np.ndarray, int]:
    """Of each text and band, the number of the bucket that it shares with others, -1 where it is alone; how many there are."""
    found = np.full((len(signatures), SLOTS // rows), -1, dtype=np.int32)
    count = 0
    for band in range(found.shape[1]):
        key = np.zeros(len(signatures), dtype=np.uint64)
        for slot in range(band * rows, (band + 1) * rows):
            key = _mix(key + signatures[:, slot])
        order = np.argsort(key)
        ordered = key[order]
        as_before = np.zeros(len(key), dtype=bool)
        as_before[1:] = ordered[1:] == ordered[:-1]
        shared = as_before.copy()
        shared[:-1] |= as_before[1:]
        number = np.cumsum(shared & ~as_before) - 1 + count
        found[order[shared], band] = number[shared]
        count = int(number[-1]) + 1 if len(number) else 0
    return found, count


def _met(mine: np.ndarray, first: np.ndarray, more: dict[int, list[int]]) -> np.ndarray:
    """The leaders in these buckets, from the earliest on."""
    leaders = first[mine]
    found = set(leaders[leaders >= 0].tolist())
    if found and more:
        for bucket in mine.tolist():
            found.update(more.get(bucket, ()))
    return np.array(sorted(found), dtype=np.int64)


def _hold(text: int, mine: np.ndarray, first: np.ndarray, more: dict[int, list[int]]) -> None:
    """Put a leader into its buckets."""
    empty = first[mine] < 0
    first[mine[empty]] = text
    for bucket in mine[~empty].tolist():
        held = more.setdefault(bucket, [])
        if len(held) < HELD - 1:
            held.append(text)


def _likely(text: int, leaders: np.ndarray, signatures: np.ndarray, sizes: np.ndarray, similarity: float, doubt: float) -> list[int]:
    """The leaders that may be alike by size and signature."""
    if not len(leaders):
        return []
    smaller, larger = np.minimum(sizes[leaders], sizes[text]), np.maximum(sizes[leaders], sizes[text])
    leaders = leaders[smaller >= similarity * larger]
    likely: list[int] = leaders[(signatures[leaders] == signatures[text]).mean(axis=1) >= doubt].tolist()
    return likely


def _share(sets: _Sets, one: int, other: int) -> float:
    """Of the triples that either text has, the share that both have."""
    both = np.concatenate([sets.of(one), sets.of(other)])
    distinct = len(np.unique(both))
    return (len(both) - distinct) / distinct
