"""What scorers are worth on files of comparisons by category, as RewardBench and LLMBar publish them.

A category is a row's first tag (RewardBench's `subset`), or else the file that the row came from. RewardBench's own
subsets make up its four sections (Lambert et al. 2024, "RewardBench", section 4); any other category is a section of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tasks.data import hub
from tasks.data.encoding import encode_answer
from tasks.data.files import KNOWN_FILES
from tasks.data.importers import import_file
from tasks.data.records import Comparison
from tasks.evaluation.agreement import HumanPairs
from tasks.evaluation.answers import Texts, Vocabulary
from tasks.evaluation.result import BenchPart, RewardBench
from tasks.training.intervals import Bootstrap, Interval, outcomes_of, resampled_means, surest_share

SECTIONS: dict[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
SECTION_OF = {subset: section for section, subsets in SECTIONS.items() for subset in subsets}
WEIGHTS = {"math-prm": 984 / 447}
"""Of a pair in its section, where that is not 1: its 447 pairs of mathematics weigh as much as the 984 of code."""


@dataclass
class Category:
    """The pairs of one category. Left out are too_long: over max_tokens; undecided: ties and equal answers; unusable: other rows."""

    name: str
    pairs: HumanPairs = field(default_factory=HumanPairs)
    too_long: int = 0
    undecided: int = 0
    unusable: int = 0


def read_categories(sources: Iterable[str], root: Path, vocabulary: Vocabulary, max_tokens: int, texts: Texts) -> list[Category]:
    """The pairs of files, folders and "hub:OWNER/NAME" sets by category, in the order in which they come; their texts go into `texts`.

    Raises PreflineError for a source that can't be read.
    """
    found: dict[str, Category] = {}
    for source in sources:
        path = source if source.startswith(hub.PREFIX) else root / Path(source).expanduser()
        for record in import_file(path, name=source):
            name = record.tags[0] if isinstance(record, Comparison) and record.tags else _file(record.source)
            category = found.setdefault(name, Category(name))
            if isinstance(record, Comparison):
                _take(record, category, vocabulary, max_tokens, texts)
            else:
                category.unusable += 1
    return list(found.values())


def _file(source: str) -> str:
    """The name of a row's file, without folder and ending."""
    name = source.rsplit("/", 1)[-1]
    return name.removesuffix(next((ending for ending in sorted(KNOWN_FILES, key=len, reverse=True) if name.endswith(ending)), ""))


def _take(record: Comparison, category: Category, vocabulary: Vocabulary, max_tokens: int, texts: Texts) -> None:
    prompt = vocabulary.encode(record.prompt)
    chosen, rejected = (prompt + encode_answer(vocabulary.tokenizer, record.prompt, side) for side in (record.chosen, record.rejected))
    if max(len(chosen), len(rejected)) > max_tokens:
        category.too_long += 1
    elif record.tie or chosen == rejected:
        category.undecided += 1
    else:
        category.pairs.add(texts.place(chosen), texts.place(rejected), len(chosen), len(rejected), record.group_id)


def weighed(categories: Sequence[Category], own: np.ndarray, judge: np.ndarray | None, bootstrap: Bootstrap) -> RewardBench | None:
    """Accuracy by category, by section and over all; None without a category. own, judge: scores of all texts.

    A section's accuracy is the mean over its pairs, that over all the mean over sections, as RewardBench has both.
    Intervals draw prompts within each category.
    """
    if not categories:
        return None
    pairs = {category.name: category.pairs for category in categories if len(category.pairs)}
    reward_model = _Accuracies.of({name: outcomes_of(own[p.chosen], own[p.rejected]) for name, p in pairs.items()}, pairs, bootstrap)
    judged = judge is not None and _Accuracies.of(
        {name: outcomes_of(judge[p.chosen], judge[p.rejected]) for name, p in pairs.items()}, pairs, bootstrap
    )

    def part(name: str, inside: Sequence[Category], shares: Mapping[str, float]) -> BenchPart:
        return BenchPart(
            name=name,
            pairs=sum(len(category.pairs) for category in inside),
            too_long=sum(category.too_long for category in inside),
            undecided=sum(category.undecided for category in inside),
            unusable=sum(category.unusable for category in inside),
            reward_model=reward_model.interval(shares) if shares else None,
            judge=judged.interval(shares) if shares and judged else None,
            longer=sum(share * pairs[name].prefer_longer for name, share in shares.items()) if shares else None,
        )

    members: dict[str, list[Category]] = defaultdict(list)
    for category in categories:
        members[SECTION_OF.get(category.name, category.name)].append(category)
    shares_of = {section: _shares(inside) for section, inside in members.items()}
    measured = [shares for shares in shares_of.values() if shares]
    return RewardBench(
        categories=[part(category.name, [category], _shares([category])) for category in categories],
        sections=[part(section, inside, shares_of[section]) for section, inside in members.items()],
        overall=part("all", categories, {name: share / len(measured) for shares in measured for name, share in shares.items()}),
    )


def _shares(categories: Sequence[Category]) -> dict[str, float]:
    """What each category weighs in a mean over their pairs, by name; none of those without a pair."""
    weights = {category.name: WEIGHTS.get(category.name, 1.0) * len(category.pairs) for category in categories if len(category.pairs)}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


@dataclass(frozen=True)
class _Accuracies:
    """A scorer's accuracy on each category, by name: as one number, and as bootstrap samples of it. prompts: behind it."""

    means: dict[str, float]
    samples: dict[str, np.ndarray]
    prompts: dict[str, int]
    confidence: float

    @classmethod
    def of(cls, outcomes: Mapping[str, np.ndarray], pairs: Mapping[str, HumanPairs], bootstrap: Bootstrap) -> _Accuracies:
        drawn = {
            name: resampled_means(outcomes[name], each.prompts, replace(bootstrap, seed=bootstrap.seed + place))
            for place, (name, each) in enumerate(pairs.items())
        }
        prompts = {name: len(set(each.prompts)) for name, each in pairs.items()}
        return cls({name: float(each.mean()) for name, each in outcomes.items()}, drawn, prompts, bootstrap.confidence)

    def interval(self, shares: Mapping[str, float]) -> Interval:
        """Of the mean in which categories have those shares, and never surer than so many prompts that all agree."""
        mean = sum(share * self.means[name] for name, share in shares.items())
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(sum(share * self.samples[name] for name, share in shares.items()), (tail, 1 - tail))
        surest = surest_share(sum(self.prompts[name] for name in shares), self.confidence)
        return mean, min(float(low), mean, surest), max(float(high), mean, 1 - surest)
