"""The built-in set: customers' questions to a shop assistant, made from data/shop.yaml and a seed.

Writers of different quality answer each question; simulated annotators of known skill and bias rank the answers.
Because the facts are known, so is how good an answer is (`Shop.gold`). Gold judges the pipeline and is never
trained on.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from tasks.data.records import Comparison, Demonstration, assistant, digest, user

ANSWERS_PER_GROUP = 4
RANKINGS_OF_UNSEEN = 2
"""Of a question that nothing is trained on: enough to measure a reward model by."""


@dataclass(frozen=True)
class Question:
    """text: what the customer says. kind: the slice. asks: the facts asked for, as (item, attribute).

    policy, refusal: the name of the shop's policy asked for, or of the request to refuse. item: what it is about.
    """

    text: str
    kind: str
    split: str | None
    asks: tuple[tuple[str, str], ...] = ()
    policy: str | None = None
    refusal: str | None = None
    item: str = ""


@dataclass(frozen=True)
class Verdict:
    """utility: the known worth of an answer, about -3 to 2.5. right: every fact asked for, and nothing false."""

    utility: float
    right: bool


class Shop:
    """The catalogue with its facts, the questions about it, and the truth about answers."""

    def __init__(self, definition: dict[str, Any], seed: int) -> None:
        self.definition = definition
        self.seed = seed
        rng = random.Random(f"facts {seed}")
        self.facts = {
            (item, name): rng.choice(attribute["values"])
            for item in definition["items"]
            for name, attribute in definition["attributes"].items()
        }

    @classmethod
    def load(cls, path: Path) -> Shop:
        """Read what `save` wrote beside the data."""
        body = json.loads(path.read_text(encoding="utf-8"))
        return cls(body["definition"], body["seed"])

    @classmethod
    def from_yaml(cls, path: Path, seed: int) -> Shop:
        return cls(yaml.safe_load(path.read_text(encoding="utf-8")), seed)

    def save(self, path: Path) -> None:
        body = {"definition": self.definition, "seed": self.seed}
        path.write_text(json.dumps(body, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    # Sentences -----------------------------------------------------------------------------------------------

    def state(self, item: str, attribute: str, value: str) -> str:
        return self.definition["attributes"][attribute]["sentence"].format(item=item, value=value)

    def comply(self, question: Question) -> str:
        assert question.refusal is not None
        return self.definition["refusals"][question.refusal]["comply"].format(item=question.item)

    def right_sentences(self, question: Question) -> list[str]:
        if question.refusal:
            return [self.definition["refuse"]]
        if question.policy:
            return [self.definition["policies"][question.policy]["right"]]
        return [self.state(item, attribute, self.facts[item, attribute]) for item, attribute in question.asks]

    # Questions -----------------------------------------------------------------------------------------------

    @cached_property
    def questions(self) -> list[Question]:
        """Every question that can be asked. Unseen phrasings and combinations have split "test"; others None."""
        found: list[Question] = []
        attributes, items = self.definition["attributes"], self.definition["items"]
        for name, attribute in attributes.items():
            for item in items:
                for seen, split in (("questions", None), ("unseen", "test")):
                    kind = name if split is None else "unseen phrasing"
                    found += [Question(q.format(item=item), kind, split, ((item, name),), item=item) for q in attribute[seen]]
        for number, (first, second) in enumerate((a, b) for a in attributes for b in attributes if a != b):
            for place, item in enumerate(items):
                held_out = (place + number) % 4 == 0
                question = attributes[first]["questions"][(place + number) % 3]
                text = self.definition["both"].format(question=question.format(item=item).rstrip("?."), clause=attributes[second]["clause"])
                kind = "unseen combination" if held_out else "two facts"
                asks = ((item, first), (item, second))
                found.append(Question(text, kind, "test" if held_out else None, asks, item=item))
        for name, policy in self.definition["policies"].items():
            found += [Question(q, "policy", None, policy=name) for q in policy["questions"]]
            found += [Question(q, "unseen phrasing", "test", policy=name) for q in policy["unseen"]]
        for name, refusal in self.definition["refusals"].items():
            for item in items if "{item}" in refusal["comply"] else [""]:
                found += [Question(q.format(item=item), "refuse", None, refusal=name, item=item) for q in refusal["questions"]]
                found += [Question(q.format(item=item), "refuse", "test", refusal=name, item=item) for q in refusal["unseen"]]
        return found

    @cached_property
    def by_text(self) -> dict[str, Question]:
        return {question.text: question for question in self.questions}

    # Truth ---------------------------------------------------------------------------------------------------

    @cached_property
    def _claims(self) -> dict[str, tuple[str, str, str]]:
        return {
            self.state(item, name, value): (item, name, value)
            for item in self.definition["items"]
            for name, attribute in self.definition["attributes"].items()
            for value in attribute["values"]
        }

    @cached_property
    def _compliance(self) -> set[str]:
        refusals = self.definition["refusals"].values()
        return {r["comply"].format(item=item) for r in refusals for item in self.definition["items"]}

    def gold(self, prompt: str, answer: str) -> Verdict:
        """The known worth of an answer: right, complete, short, polite, and no to what the shop must not do.

        Points: 2 for the share of asked facts given; -1.5 for each falsehood; 0.5 for one polite sentence; -0.4 for
        filler, an evasion or a true fact nobody asked for; -0.5 for each repetition; -0.75 for each sentence that is
        none of ours (broken, cut short), at most four. A request to refuse: 2 for refusing, -2 for doing it.
        Refusing a fair question costs 1. Raises KeyError for a prompt that is not in the set.
        """
        question = self.by_text[prompt]
        sentences = re.findall(r"[^.!?]+[.!?]?", " ".join(answer.split()))
        sentences = [s.strip() for s in sentences if s.strip()]
        distinct = list(dict.fromkeys(sentences))
        wanted = set(self.right_sentences(question))
        given = [s for s in distinct if s in wanted]
        points = 2.0 * len(given) / len(wanted) - 0.5 * (len(sentences) - len(distinct))
        falsehoods, broken, polite = 0, 0, 0
        for sentence in distinct:
            if sentence in wanted:
                continue
            if sentence in self.definition["polite"]:
                polite += 1
            elif sentence in self._falsehoods or self._is_false(sentence):
                falsehoods += 1
                points -= 2.0 if sentence in self._compliance else 1.5
            elif sentence == self.definition["refuse"]:
                points -= 1.0
            elif sentence in self._harmless or sentence in self._claims:
                points -= 0.4
            else:
                broken += 1
        points += 0.5 if polite == 1 else 0.0
        points -= 0.75 * min(broken, 4) + (1.0 if not sentences else 0.0)
        return Verdict(points, len(given) == len(wanted) and falsehoods == 0)

    def _is_false(self, sentence: str) -> bool:
        claim = self._claims.get(sentence)
        return claim is not None and self.facts[claim[0], claim[1]] != claim[2]

    @cached_property
    def _falsehoods(self) -> set[str]:
        wrong = {s for policy in self.definition["policies"].values() for s in policy["wrong"]}
        return wrong | self._compliance

    @cached_property
    def _harmless(self) -> set[str]:
        rights = {policy["right"] for policy in self.definition["policies"].values()}
        return rights | set(self.definition["evasive"]) | set(self.definition["filler"])


class Writers:
    """Answers of mixed quality, as people (and models in training) write them.

    An answer has a matter (is it right?), a manner (how is it said?) and perhaps a damage. They are drawn apart, so
    that the manner says nothing about the matter: a reward model has to learn the facts.
    """

    def __init__(self, shop: Shop, mix: dict[str, dict[str, float]], rng: random.Random) -> None:
        """mix: relative weights of matters, manners and damages, as data/shop.yaml gives them."""
        self.shop = shop
        self.mix = mix
        self.rng = rng

    def write(self, question: Question) -> str:
        matter, manner, damage = (self.rng.choices(list(weights), list(weights.values()))[0] for weights in self.mix.values())
        return self.compose(question, matter, manner, damage)

    def compose(self, question: Question, matter: str, manner: str, damage: str) -> str:
        sentences = self._matter(question, matter)
        filler, polite = (self.rng.choice(self.shop.definition[name]) for name in ("filler", "polite"))
        match manner:
            case "plain":
                pass
            case "polite":
                sentences = [*sentences, polite]
            case "wordy":
                sentences = [filler, *sentences, self.rng.choice(self.shop.definition["filler"])]
            case "thankful":
                sentences = [*sentences, *(self.rng.choice(self.shop.definition["polite"]) for _ in range(self.rng.randint(2, 4)))]
            case _:
                raise ValueError(f"unknown manner {manner!r}")
        return " ".join(self._damaged(sentences, damage))

    def _matter(self, question: Question, matter: str) -> list[str]:
        match matter:
            case "right":
                return self.shop.right_sentences(question)
            case "wrong":
                return self._wrong(question)
            case "half":
                return [self.rng.choice(self.shop.right_sentences(question))]
            case "evasive":
                return [self.rng.choice(self.shop.definition["evasive"])]
            case "overcautious":
                return [self.shop.definition["refuse"]]
        raise ValueError(f"unknown matter {matter!r}")

    def _wrong(self, question: Question) -> list[str]:
        if question.refusal:
            return [self.shop.comply(question)]
        if question.policy:
            return [self.rng.choice(self.shop.definition["policies"][question.policy]["wrong"])]
        sentences = self.shop.right_sentences(question)
        place = self.rng.randrange(len(sentences))
        item, attribute = question.asks[place]
        values = self.shop.definition["attributes"][attribute]["values"]
        value = self.rng.choice([v for v in values if v != self.shop.facts[item, attribute]])
        sentences[place] = self.shop.state(item, attribute, value)
        return sentences

    def _damaged(self, sentences: list[str], damage: str) -> list[str]:
        words = " ".join(sentences).split()
        match damage:
            case "none":
                return words
            case "repeated":
                return words + sentences[-1].split() * self.rng.randint(1, 2)
            case "truncated":
                return words[: self.rng.randint(1, len(words) - 1)]
            case "shuffled":
                for _ in range(self.rng.randint(1, 3)):
                    place, other = self.rng.randrange(len(words)), self.rng.randrange(len(words))
                    match self.rng.randrange(3):
                        case 0 if len(words) > 2:
                            del words[place]
                        case 1:
                            words.insert(place, words[other])
                        case _:
                            words[place], words[other] = words[other], words[place]
                return words
        raise ValueError(f"unknown damage {damage!r}")


def demonstrations(shop: Shop, per_question: int, seed: int) -> list[Demonstration]:
    """Demonstrations of mixed quality, so that SFT learns the format and not the judgement."""
    rng = random.Random(f"demonstrations {seed}")
    writers = Writers(shop, shop.definition["demonstrations"], rng)
    found: list[Demonstration] = []
    for question in shop.questions:
        if question.split is not None:
            continue
        for _ in range(per_question):
            answer = writers.write(question)
            found.append(
                Demonstration(
                    id=digest("demonstration", question.text, answer, len(found)),
                    prompt=[user(question.text)],
                    answer=[assistant(answer)],
                    source="shop",
                    source_id=str(len(found) + 1),
                    group_id=digest("prompt", question.text),
                    tags=[question.kind],
                )
            )
    return found


@dataclass(frozen=True)
class Annotator:
    """skill: how sharply they tell better from worse (1 / noise). length: what a word more is worth to them.

    position: what a place further up on the screen is worth to them. seconds: that a ranking takes them, in the middle.
    share: of the rankings.
    """

    skill: float
    length: float
    share: float
    position: float = 0.0
    seconds: float | None = None


class Annotators:
    """The simulated people, each a Plackett-Luce model of the truth and of their weaknesses.

    Order of display and time are drawn apart from taste, so that they can change without the verdicts.
    """

    def __init__(self, shop: Shop, taste: random.Random, manner: random.Random) -> None:
        self.shop = shop
        self.taste = taste
        self.manner = manner
        self.of = {name: Annotator(**about) for name, about in shop.definition["annotators"].items()}

    def choose(self, but: str | None = None) -> str:
        names = [name for name in self.of if name != but]
        return self.taste.choices(names, [self.of[name].share for name in names])[0]

    def rank(self, name: str, question: Question, answers: list[str], ranking: str) -> Iterator[Comparison]:
        """Six comparisons: by skill * gold + length * words - position * place + Gumbel noise.

        Gumbel noise makes each pair follow a Bradley-Terry model with that utility (Yellott 1977).
        """
        who = self.of[name]
        shown = self.manner.sample(answers, len(answers))
        seconds = None if who.seconds is None else round(self.manner.lognormvariate(math.log(who.seconds), 0.4), 1)
        liking = {
            answer: who.skill * self.shop.gold(question.text, answer).utility
            + who.length * len(answer.split())
            - math.log(-math.log(self.taste.random()))
            - who.position * shown.index(answer)
            for answer in answers
        }
        for better, worse in combinations(sorted(answers, key=lambda answer: -liking[answer]), 2):
            yield Comparison(
                id="",
                prompt=[user(question.text)],
                chosen=[assistant(better)],
                rejected=[assistant(worse)],
                source="shop",
                source_id="",
                group_id=digest("prompt", question.text),
                ranking=ranking,
                annotator=name,
                chosen_first=shown.index(better) < shown.index(worse),
                seconds=seconds,
                labels_by="people",
                split=question.split,
                tags=[question.kind],
            )


def comparisons(shop: Shop, groups_per_question: int, seed: int, second_opinions: float = 0.0) -> list[Comparison]:
    """Rankings of four answers by one annotator each, as six comparisons of one group.

    second_opinions: share of the rankings that another annotator makes too. They come last and have random numbers of
    their own, so that they leave the first ones as they are.
    """
    rng = random.Random(f"comparisons {seed}")
    writers = Writers(shop, shop.definition["answers"], rng)
    annotators = Annotators(shop, rng, random.Random(f"display {seed}"))
    found: list[Comparison] = []
    ranked: list[tuple[Question, list[str], int, str]] = []
    for question in shop.questions:
        for turn in range(groups_per_question if question.split is None else RANKINGS_OF_UNSEEN):
            answers: list[str] = []
            while len(answers) < ANSWERS_PER_GROUP:
                answer = writers.write(question)
                if answer not in answers:
                    answers.append(answer)
            name = annotators.choose()
            ranked.append((question, answers, turn, name))
            found += annotators.rank(name, question, answers, digest("ranking", question.text, turn))
    again = Annotators(shop, random.Random(f"second opinions {seed}"), random.Random(f"second display {seed}"))
    for question, answers, turn, name in ranked:
        if again.taste.random() < second_opinions:
            found += again.rank(again.choose(but=name), question, answers, digest("ranking", question.text, turn, "second"))
    for place, one in enumerate(found):
        one.id = digest("comparison", one.prompt[0]["content"], one.chosen[0]["content"], one.rejected[0]["content"], one.annotator, place)
        one.source_id = str(place + 1)
    return found
