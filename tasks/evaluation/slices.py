"""Slices: prompts that have something in common, and the policy's win rate on them alone.

Besides tags there are few kinds, and none without news: each slice more widens the intervals of all (see `slices`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from tasks.data.near import words
from tasks.data.records import Message
from tasks.data.snapshot import Prompt
from tasks.evaluation.answers import Judged, Trait
from tasks.evaluation.means import mean
from tasks.evaluation.rates import certain, rate_of
from tasks.evaluation.result import Slice, SliceKind
from tasks.training.intervals import Bootstrap

SMALLEST_SLICE = 8
"""Prompts; of fewer, a win rate says nothing."""

KINDS: tuple[SliceKind, ...] = get_args(SliceKind)
UNSEEN_WORD = Trait("novelty", "a word no training prompt has")
UNSEEN_PAIR = Trait("novelty", "a word pair no training prompt has")

Pair = tuple[str, str]


# What prompts have in common ----------------------------------------------------------------------------------------


def describe(rows: Sequence[Judged], prompts: Sequence[Prompt], lengths: Sequence[int], learnt: Iterable[list[Message]]) -> None:
    """Give each row its traits. prompts, lengths (in tokens): of the rows. learnt: the prompts that something was trained on."""
    by_length, novel = length_traits(lengths), novelties([prompt.messages for prompt in prompts], learnt)
    for row, prompt, length, new in zip(rows, prompts, by_length, novel, strict=True):
        row.traits = [length, language_trait(prompt), Trait("source", f"source: {prompt.source}"), *new]


def length_traits(lengths: Sequence[int]) -> list[Trait]:
    """The third of the prompts, by length, that each is in; prompts of one length are in one third."""
    first, second = np.quantile(lengths, (1 / 3, 2 / 3), method="lower")
    thirds = [int(length > first) + int(length > second) for length in lengths]
    spans = {third: [length for length, its in zip(lengths, thirds, strict=True) if its == third] for third in set(thirds)}
    names = {third: _span(min(its), max(its)) for third, its in spans.items()}
    return [Trait("length", f"prompt: {names[third]} tokens") for third in thirds]


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def language_trait(prompt: Prompt) -> Trait:
    """The language that the record names; where it names none, the writing of its letters."""
    if prompt.language:
        return Trait("language", f"language: {prompt.language}")
    return Trait("language", f"writing: {writing(prompt.messages[-1]['content'])}")


def writing(text: str) -> str:
    """The script of most of the letters, as Unicode names them: Latin, Cyrillic, Han; "None" without letters."""
    scripts = Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in text if letter.isalpha())
    most = scripts.most_common(1)[0][0] if scripts else "NONE"
    return "Han" if most == "CJK" else most.capitalize()


def novelties(prompts: Sequence[list[Message]], learnt: Iterable[list[Message]]) -> list[list[Trait]]:
    """UNSEEN_WORD: a prompt's last message has a word, such as an item's name, that no learnt prompt has; UNSEEN_PAIR: two words
    in a row, or one at the beginning or end, as in a phrasing that nobody has used.
    """
    asked = [prompt[-1]["content"] for prompt in prompts]
    unseen_words = {word for text in asked for word in words(text)}
    unseen_pairs = {pair for text in asked for pair in _pairs(text)}
    for text in {message["content"] for prompt in learnt for message in prompt}:
        unseen_words.difference_update(words(text))
        unseen_pairs.difference_update(_pairs(text))
    return [
        [UNSEEN_WORD] * (not unseen_words.isdisjoint(words(text))) + [UNSEEN_PAIR] * (not unseen_pairs.isdisjoint(_pairs(text)))
        for text in asked
    ]


def _pairs(text: str) -> list[Pair]:
    found = words(text)
    return list(zip(["", *found], [*found, ""], strict=True))


# Win rates ----------------------------------------------------------------------------------------------------------


def slices(rows: Sequence[Judged], bootstrap: Bootstrap) -> list[Slice]:
    """One for each tag, by name, and each trait, of at least SMALLEST_SLICE prompts."""
    chosen = _parts(rows)
    together = _for_all_of(len(chosen), bootstrap)
    found = []
    for trait, places in chosen.items():
        kept = [rows[place] for place in places]
        found.append(
            Slice(
                name=trait.name,
                kind=trait.kind,
                prompts=len(kept),
                win_rate=certain(rate_of(kept, lambda row: row.judge, bootstrap)),
                win_rate_gold=rate_of(kept, lambda row: row.gold, bootstrap),
                highest=certain(rate_of(kept, lambda row: row.judge, together)).high,
                policy_length=mean([row.policy.length for row in kept]),
                baseline_length=mean([row.rival.length for row in kept]),
            )
        )
    return found


def _parts(rows: Sequence[Judged]) -> dict[Trait, list[int]]:
    """The slices in their order, each with the places of its rows.

    A trait that all prompts have, or just those of another slice, says nothing new and is none; tags are never left out.
    """
    places: dict[Trait, list[int]] = {}
    for place, row in enumerate(rows):
        for trait in (*(Trait("tag", tag) for tag in set(row.tags)), *row.traits):
            places.setdefault(trait, []).append(place)
    chosen: dict[Trait, list[int]] = {}
    for trait in sorted(places, key=_order):
        its = places[trait]
        if len(its) >= SMALLEST_SLICE and (trait.kind == "tag" or (len(its) < len(rows) and its not in chosen.values())):
            chosen[trait] = its
    return chosen


def _order(trait: Trait) -> tuple[int, list[str | int]]:
    """By kind, then by name, numbers in it as numbers."""
    parts = re.split(r"(\d+)", trait.name)
    return KINDS.index(trait.kind), [int(part) if number % 2 else part for number, part in enumerate(parts)]


def _for_all_of(intervals: int, bootstrap: Bootstrap) -> Bootstrap:
    """Intervals so wide that all of them hold together: each misses a share of what one may, and is drawn often enough to tell."""
    miss = (1 - bootstrap.confidence) / max(1, intervals)
    return replace(bootstrap, confidence=1 - miss, resamples=max(bootstrap.resamples, math.ceil(40 / miss)))
