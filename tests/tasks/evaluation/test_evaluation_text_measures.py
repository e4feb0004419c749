"""Diversity and repetition: by hand, and against the definitions spelt out pair by pair."""

import math
import random
import time

import pytest

from tasks.evaluation.text_measures import distinct, grams, pieces, repetition, self_bleu

THANKS = "Thank you! " * 12


def test_distinct_by_hand():
    texts = ["The lamp is red.", "The lamp is in aisle two."]
    # words: 4 + 6, of which the, lamp, is come twice: 7 of 10. Pairs: 3 + 5, of which "the lamp", "lamp is" come twice: 6 of 8
    assert distinct(texts, 1) == 7 / 10
    assert distinct(texts, 2) == 6 / 8
    assert distinct(["Yes.", "No."], 2) is None
    assert distinct(["Yes.", "yes!"], 1) == 1 / 2


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The lamp costs five euros.", 0.0),  # two fours, both new
        ("a b c d a b c d", 1 / 5),  # abcd bcda cdab dabc abcd
        ("Yes. Yes. Yes.", 0.0),  # too short for a four
        ("", 0.0),
        ("no no no no no no", 2 / 3),  # three fours, one kind
        (THANKS, 1 - 2 / 21),
        ("a" * 103, 1 - 1 / 100),  # hammered characters are no word
        ("!" * 103, 1 - 1 / 100),
        ("好" * 23, 1 - 1 / 20),
    ],
)
def test_repetition_by_hand(text, share):
    assert repetition(text) == pytest.approx(share)


def test_self_bleu_by_hand():
    # "a b c d e" against "a b c d f": 4/5, 3/4, 2/3, 1/2 of its n-grams are there; both are equally long and symmetric
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # "a b" against "a b c": all matches, orders 1 and 2, penalty exp(1 - 3/2). "a b c" against "a b": 2/3, 1/2, and 0.1 for no match
    assert self_bleu(["a b", "a b c"]) == pytest.approx((math.exp(1 - 3 / 2) + (2 / 3 * 1 / 2 * 0.1) ** (1 / 3)) / 2)


def test_self_bleu_at_its_ends():
    assert self_bleu(["Sorry, I can not help with that."] * 5) == 1.0
    assert self_bleu(["No.", "No."]) == 1.0
    assert self_bleu(["one two three four", "five six seven eight"]) == pytest.approx((0.1**4 / 24) ** 0.25)
    assert self_bleu(["only one", "", " . "]) == pytest.approx(self_bleu(["only one", "."]))
    assert self_bleu(["only one", ""]) is None


def bleu_of(text, references):
    """BLEU-4 of one text against references, as Papineni et al. write it down."""
    logs = []
    for n in range(1, min(4, len(text)) + 1):
        own = grams(text, n)
        matches = sum(min(count, max(grams(other, n)[gram] for other in references)) for gram, count in own.items())
        logs.append(math.log((matches or 0.1) / own.total()))
    closest = min((len(other) for other in references), key=lambda length: (abs(length - len(text)), length))
    return min(1.0, math.exp(1 - closest / len(text))) * math.exp(sum(logs) / len(logs))


@pytest.mark.parametrize("seed", range(5))
def test_self_bleu_is_that_of_all_pairs(seed):
    rng = random.Random(seed)
    texts = [[rng.choice("abcdef") for _ in range(rng.randint(1, 12))] for _ in range(25)]
    expected = sum(bleu_of(text, texts[:place] + texts[place + 1 :]) for place, text in enumerate(texts)) / len(texts)
    assert self_bleu([" ".join(text) for text in texts]) == pytest.approx(expected)


def test_self_bleu_of_many_answers_is_no_matter_of_time():
    rng = random.Random(0)
    texts = [" ".join(rng.choices([f"w{i}" for i in range(500)], k=60)) for _ in range(2000)]
    begun = time.process_time()
    assert 0 < self_bleu(texts) < 1
    assert time.process_time() - begun < 5


def test_pieces():
    assert pieces("The LAMP, isn't it?") == ["the", "lamp", "isn", "t", "it"]
    assert len(pieces("x" * 25)) == 25
