"""How alike, how repetitive: measures of answers as texts. Pure functions; no model is asked.

All count words as `tasks.data.near.words` finds them (lower case, no punctuation, characters of writing without spaces).
Distinct-n and self-BLEU depend on how many answers there are and how long: compare models on the same prompts only.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from tasks.data.near import words

LONGEST_WORD = 24
"""Letters. A longer run of them is no word but characters hammered out: each counts as one."""
ORDERS = 4
"""Of the n-grams of self-BLEU: words alone, in pairs, threes and fours."""
NO_MATCH = 0.1
"""Counted for an order without a match, so that the geometric mean is not 0: smoothing 1 of Chen and Cherry 2014."""

Gram = tuple[str, ...]


def pieces(text: str) -> list[str]:
    """Its words; a run of letters that is no word, as its characters."""
    return [piece for word in words(text) for piece in ([word] if len(word) <= LONGEST_WORD else word)]


def grams(text: Sequence[str], n: int) -> Counter[Gram]:
    """How often each n-gram occurs."""
    return Counter(zip(*(text[start:] for start in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words over all n-grams, of all texts together; None where there is no n-gram.

    Source: Li et al. 2016, "A diversity-promoting objective function for neural conversation models", section 5.
    """
    counts: Counter[Gram] = Counter()
    for text in texts:
        counts.update(grams(pieces(text), n))
    return len(counts) / counts.total() if counts else None


def repetition(text: str, n: int = 4) -> float:
    """Share of the text's n-grams of words that repeat an earlier one; 0 where it is too short to have two.

    Source: seq-rep-n of Welleck et al. 2020, "Neural text generation with unlikelihood training", section 5.
    """
    counts = grams(pieces(text), n)
    return 1 - len(counts) / counts.total() if counts else 0.0


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each text against all others, 0 (nothing in common) to 1 (all say the same); None for fewer than two.

    Texts without a word are left out. BLEU of a sentence, smoothed by NO_MATCH, of the orders that the text is long enough
    for, with the closest length among the others in its brevity penalty. Source: Zhu et al. 2018, "Texygen", section 3.1;
    Papineni et al. 2002.
    """
    kept = [found for text in texts if (found := pieces(text))]
    if len(kept) < 2:
        return None
    lengths = sorted(map(len, kept))
    logs = [0.0] * len(kept)
    for n in range(1, ORDERS + 1):
        counts = [grams(text, n) for text in kept]
        highest = _two_highest(counts)
        for place, own in enumerate(counts):
            if own:
                matches = sum(min(count, _elsewhere(highest[gram], place)) for gram, count in own.items())
                logs[place] += math.log((matches or NO_MATCH) / own.total()) / min(ORDERS, len(kept[place]))
    return sum(_brevity(len(text), lengths) * math.exp(log) for text, log in zip(kept, logs, strict=True)) / len(kept)


def _two_highest(counts: Sequence[Counter[Gram]]) -> dict[Gram, tuple[int, int, int]]:
    """Of each n-gram: its highest count in one text, which text that is, and its highest count in another.

    With these, the highest count among all others is known for each text without comparing all pairs.
    """
    found: dict[Gram, tuple[int, int, int]] = {}
    for place, own in enumerate(counts):
        for gram, count in own.items():
            best, where, second = found.get(gram, (0, -1, 0))
            found[gram] = (count, place, best) if count > best else (best, where, max(second, count))
    return found


def _elsewhere(highest: tuple[int, int, int], place: int) -> int:
    best, where, second = highest
    return second if where == place else best


def _brevity(length: int, lengths: Sequence[int]) -> float:
    """BLEU's penalty for a text shorter than the reference of the closest length. lengths: of all texts, itself among them, sorted."""
    here = bisect_left(lengths, length)
    others = [*lengths[max(0, here - 1) : here], *lengths[here + 1 : here + 2]]  # lengths[here] is its own, or one like it
    closest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length >= closest else math.exp(1 - closest / length)
