import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import near
from tasks.data.near import SLOTS, bands, near_groups, words


def triples(text):
    marked = ["", "", *words(text), "", ""]
    return set(zip(marked, marked[1:], marked[2:], strict=False))


def share(one, other):
    return len(triples(one) & triples(other)) / len(triples(one) | triples(other))


def by_comparing_all(texts, similarity):
    """Leaders as the definition has them, without MinHash."""
    leaders, found = [], []
    for number, text in enumerate(texts):
        alike = [leader for leader in leaders if share(text, texts[leader]) >= similarity]
        found.append(alike[0] if alike else number)
        if not alike:
            leaders.append(number)
    return found


# Words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!\n It's 5_000", ["hello", "world", "it", "s", "5", "000"]),
        ("ÀÉ naïve-x", ["àé", "naïve", "x"]),
        ("e\u0301te\u0301", ["été"]),  # accents as characters of their own
        ("我爱GPT4吗？", ["我", "爱", "gpt4", "吗"]),
        ("東京タワー 2", ["東", "京", "タ", "ワ", "ー", "2"]),
        ("안녕 하세요", ["안녕", "하세요"]),
        ("מה שלומך", ["מה", "שלומך"]),
        ("?! ..", ["?", "!", ".", "."]),
        ("🙂", ["🙂"]),
        (" \n", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_way_for_ascii_finds_the_same_words(text):
    assert words(text) == (near._WORD.findall(text.lower()) or list("".join(text.split())))


# Groups -------------------------------------------------------------------------------------------------------------


def test_shares_by_hand():
    # 25 words: 27 triples. One other word costs 3 on each side: 24 of 30 in common, exactly 0.8, wherever it stands
    text = [f"w{n}" for n in range(25)]
    for place in (0, 12, 24):
        other = " ".join([*text[:place], "x", *text[place + 1 :]])
        assert near_groups([" ".join(text), other], 0.8).leader.tolist() == [0, 0]
        assert near_groups([" ".join(text), other], 0.81).leader.tolist() == [0, 1]
    # 24 words: 23 of 29
    assert near_groups([" ".join(text[:24]), " ".join([*text[:23], "x"])], 0.8).leader.tolist() == [0, 1]


def test_short_prompts_that_differ_in_a_word_stay_apart():
    texts = ["What does the lamp cost?", "What does the rug cost?", "what does the LAMP cost", "Why?", "How?", "why"]
    assert near_groups(texts, 0.8).leader.tolist() == [0, 1, 0, 3, 4, 3]


def test_the_earliest_leader_is_joined_and_others_are_named():
    first, last = [f"a{n}" for n in range(10)], [f"b{n}" for n in range(10)]
    middle = [f"m{n}" for n in range(40)]
    # the third is like both: 50 of the 60 words are those of one, and of the other
    texts = [" ".join([*first, *middle]), " ".join([*middle, *last]), " ".join([*first, *middle, *last])]
    assert share(texts[0], texts[1]) < 0.75 < min(share(texts[2], texts[0]), share(texts[2], texts[1]))
    found = near_groups(texts, 0.75)
    assert found.leader.tolist() == [0, 1, 0]
    assert found.others.tolist() == [[2, 1]]


def test_no_texts_and_empty_texts():
    assert near_groups([], 0.8).leader.tolist() == []
    assert near_groups(["", "a b c", " "], 0.8).leader.tolist() == [0, 1, 0]


def variants(seed, count, changes=(0, 6)):
    """Texts of 8 to 60 words; most are an earlier one with some words changed, left out or moved."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        if texts and rng.random() < 0.7:
            text = rng.choice(texts).split()
            for _ in range(rng.randint(*changes)):
                place = rng.randrange(len(text))
                text[place : place + rng.randint(0, 1)] = [f"w{rng.randrange(500)}"]
        else:
            text = [f"w{rng.randrange(500)}" for _ in range(rng.randint(8, 60))]
        texts.append(" ".join(text))
    return texts


@pytest.mark.parametrize("similarity", [0.6, 0.8, 0.9])
def test_leaders_are_those_of_comparing_all(similarity):
    texts = variants(1, 500, changes=(0, 3))
    found, expected = near_groups(texts, similarity).leader.tolist(), by_comparing_all(texts, similarity)
    assert len(set(expected)) < 450
    assert sum(one != other for one, other in zip(found, expected, strict=True)) <= 0.01 * len(texts)


PIECES = st.lists(st.sampled_from(["a b c d e f g h", "i j k l m n", "o", "p q", "Émile 我爱", ""]), max_size=5).map(" ".join)


@given(st.lists(PIECES, max_size=12), st.sampled_from([0.5, 0.8, 1.0]))
def test_who_joins_is_alike_and_leaders_lead_themselves(texts, similarity):
    found = near_groups(texts, similarity)
    for text, leader in enumerate(found.leader.tolist()):
        assert leader <= text
        assert found.leader[leader] == leader
        assert share(texts[text], texts[leader]) >= similarity
    assert all(share(texts[text], texts[leader]) >= similarity for text, leader in found.others.tolist())


@given(st.lists(PIECES, max_size=12), st.lists(PIECES, max_size=6))
def test_what_comes_later_moves_nobody(texts, more):
    grown = near_groups([*texts, *more], 0.5)
    assert grown.leader[: len(texts)].tolist() == near_groups(texts, 0.5).leader.tolist()


def test_batches_make_no_difference(monkeypatch):
    texts = variants(2, 50)
    whole = near_groups(texts, 0.8)
    monkeypatch.setattr(near, "BATCH", 500)
    parts = near_groups(iter(texts), 0.8)
    assert whole.leader.tolist() == parts.leader.tolist()
    assert whole.others.tolist() == parts.others.tolist()


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_what_is_just_alike(similarity):
    def caught(rows):
        return 1 - (1 - similarity**rows) ** (SLOTS // rows)

    assert caught(bands(similarity)) >= 0.99
    assert bands(similarity) == SLOTS // 2 or caught(bands(similarity) + 1) < 0.99


def test_texts_of_one_pattern_take_no_square_of_their_number():
    # 20 words in common and 5 of their own: a share of about 0.6, so that all meet in buckets and none joins
    rng = random.Random(3)
    pattern = " ".join(f"p{n}" for n in range(20))
    texts = [f"{pattern} {' '.join(f'w{rng.randrange(10**6)}' for _ in range(5))}" for _ in range(6000)]
    began = time.process_time()
    assert np.array_equal(near_groups(texts, 0.8).leader, np.arange(6000))
    assert time.process_time() - began < 20
