"""Accuracy by category: by hand, on rows as RewardBench has them, and on LLMBar's own files."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks.data.encoding import encode_answer
from tasks.data.records import assistant, user, write_jsonl
from tasks.errors import PreflineError
from tasks.evaluation.agreement import HumanPairs
from tasks.evaluation.answers import Texts, Vocabulary
from tasks.evaluation.reward_bench import SECTION_OF, SECTIONS, Category, read_categories, weighed
from tasks.training.intervals import Bootstrap
from tasks.training.models import RewardModel, save

BOOTSTRAP = Bootstrap(resamples=300)
REAL = Path(os.environ.get("PREFLINE_REAL_DATA", ""))


@pytest.fixture
def vocabulary(tokenizer):
    return Vocabulary(tokenizer, "tiny")


def category(name, outcomes, too_long=0):
    """Pairs of texts 2 i (chosen) and 2 i + 1, of equal length: a scorer of `scores(...)` is right where outcomes say so."""
    pairs = HumanPairs()
    for place, _ in enumerate(outcomes):
        pairs.add(2 * place, 2 * place + 1, 5, 5, f"{name} {place}")
    return Category(name, pairs, too_long=too_long)


def scores(outcomes):
    return np.array([value for outcome in outcomes for value in (outcome, 1 - outcome)], dtype=float)


def test_sections_and_their_mean_by_hand():
    # Category by category the same texts: the first of 4 pairs right, of 2 pairs both, of 2 pairs one and a draw.
    outcomes = [1, 0.5, 0, 0]
    found = weighed([category("alpacaeval-easy", outcomes), category("mt-bench-med", outcomes[:2])], scores(outcomes), None, BOOTSTRAP)
    assert [part.reward_model[0] for part in found.categories] == [1.5 / 4, 1.5 / 2]
    assert [(part.name, part.pairs, part.reward_model[0]) for part in found.sections] == [("Chat", 6, 3 / 6)]
    assert found.overall.reward_model[0] == 0.5
    assert found.overall.judge is None
    assert found.overall.longer == 0.5


def test_mathematics_weighs_as_much_as_code():
    texts = scores([1] * 447 + [0] * 984)
    code = category("hep-rust", range(984))
    code.pairs.chosen = [2 * 447 + place for place in code.pairs.chosen]
    code.pairs.rejected = [2 * 447 + place for place in code.pairs.rejected]
    found = weighed([category("math-prm", range(447)), code], texts, 1 - texts, BOOTSTRAP)
    assert found.sections[0].reward_model[0] == pytest.approx(0.5)
    assert [part.reward_model[0] for part in found.categories] == [1.0, 0.0]
    assert [part.judge[0] for part in found.categories] == [0.0, 1.0]


def test_sections_count_alike_however_many_pairs_they_have():
    outcomes = [1] * 10 + [0] * 90
    found = weighed(
        [category("donotanswer", outcomes[:10]), category("mine", outcomes), category("empty", [], too_long=3)],
        scores(outcomes),
        None,
        BOOTSTRAP,
    )
    assert [(part.name, part.pairs) for part in found.sections] == [("Safety", 10), ("mine", 100), ("empty", 0)]
    assert found.overall.reward_model[0] == pytest.approx((1.0 + 0.1) / 2)
    assert found.categories[2].reward_model is None
    assert (found.overall.pairs, found.overall.too_long) == (110, 3)


def test_intervals_cover_the_truth_and_never_vanish():
    rng = np.random.default_rng(0)
    hits, worlds = 0, 200
    for _ in range(worlds):
        outcomes = np.concatenate([rng.random(60) < 0.8, rng.random(60) < 0.5]).astype(int)
        second = category("b", range(60))
        second.pairs.chosen, second.pairs.rejected = [120 + p for p in second.pairs.chosen], [120 + p for p in second.pairs.rejected]
        _, low, high = weighed([category("a", range(60)), second], scores(outcomes), None, BOOTSTRAP).overall.reward_model
        hits += low <= 0.65 <= high
    assert hits / worlds > 0.9
    all_right = weighed([category("a", range(8))], scores([1] * 8), None, BOOTSTRAP).overall.reward_model
    assert all_right == (1.0, pytest.approx(0.025 ** (1 / 8)), 1.0)


def test_no_files_no_finding():
    assert weighed([], np.zeros(0), None, BOOTSTRAP) is None


def test_every_subset_has_one_section():
    assert len(SECTION_OF) == sum(map(len, SECTIONS.values())) == 23


ROWS = [
    {"prompt": prompt, "chosen": chosen, "rejected": rejected, "subset": subset, "id": number, "chosen_model": "a", "rejected_model": "b"}
    for number, (prompt, chosen, rejected, subset) in enumerate(
        [
            ("Sky?", "Blue.", "Square, as everybody knows.", "alpacaeval-easy"),
            ("Sky?", "It is blue.", "No.", "alpacaeval-easy"),
            ("Sum?", "Four.", "Four.", "math-prm"),
            ("Sum?", "Four " * 200, "Five.", "math-prm"),
            ("Sum?", None, "Five.", "math-prm"),
        ]
    )
]


def test_rows_of_reward_bench(vocabulary, tmp_path):
    write_jsonl(tmp_path / "bench.jsonl", ROWS)
    texts = Texts()
    found = read_categories(["bench.jsonl"], tmp_path, vocabulary, 100, texts)
    assert [(one.name, len(one.pairs), one.too_long, one.undecided) for one in found] == [
        ("alpacaeval-easy", 2, 0, 0),
        ("math-prm", 0, 1, 1),
        ("bench", 0, 0, 0),
    ]
    assert found[2].unusable == 1  # a row that can't be read has no category but its file
    assert found[0].pairs.prefer_longer == 0.5
    assert len(set(found[0].pairs.prompts)) == 1
    assert weighed(found, np.zeros(4), np.zeros(4), BOOTSTRAP).overall.reward_model[0] == 0.5  # draws count half


def test_a_file_that_is_not_there(vocabulary, tmp_path):
    with pytest.raises(PreflineError, match=r"none.jsonl: no such file"):
        read_categories(["none.jsonl"], tmp_path, vocabulary, 100, Texts())


# LLMBar ----------------------------------------------------------------------------------------------------------------

LLMBAR = {
    "Adversarial_GPTInst": 92,
    "Adversarial_GPTOut": 47,
    "Adversarial_Manual": 46,
    "Adversarial_Neighbor": 134,
    "Natural": 100,
    "Processed_FairEval": 66,
    "Processed_LLMEval2": 200,
    "Processed_MT-Bench": 200,
}
"""Rows as published."""


@pytest.mark.skipif(not os.environ.get("PREFLINE_REAL_DATA"), reason="PREFLINE_REAL_DATA does not name a folder with llmbar/")
def test_llmbar_by_category(vocabulary, make_llama, tmp_path):
    texts = Texts()
    found = read_categories([str(REAL / "llmbar")], tmp_path, vocabulary, 1_000_000, texts)
    assert {one.name: len(one.pairs) + one.undecided + one.unusable for one in found} == LLMBAR
    assert sum(one.too_long for one in found) == 0

    for one in (found[1], found[4]):  # "prefer the longer", by a second way through the same file
        wins = Counter()
        for row in json.loads((REAL / "llmbar" / f"{one.name}.json").read_text()):
            sides = [row["output_1"].strip(), row["output_2"].strip()]
            if not all(sides) or sides[0] == sides[1]:
                continue
            better = row["label"] - 1
            lengths = [len(encode_answer(vocabulary.tokenizer, [user("?")], [assistant(side)])) for side in sides]
            wins[np.sign(lengths[better] - lengths[1 - better])] += 1
        assert one.pairs.prefer_longer == pytest.approx((wins[1] + wins[0] / 2) / wins.total())

    short = read_categories([str(REAL / "llmbar" / "Natural.json")], tmp_path, vocabulary, 400, fits := Texts())
    assert 0 < len(short[0].pairs) == 100 - short[0].too_long - short[0].undecided
    save(make_llama(len(vocabulary.tokenizer), context=400), vocabulary.tokenizer, tmp_path / "policy")
    RewardModel.from_policy(tmp_path / "policy", 0).save(vocabulary.tokenizer, tmp_path / "model")
    [scored] = weighed(short, fits.scores(tmp_path / "model"), None, BOOTSTRAP).categories
    assert scored.reward_model[1] < 0.5 < scored.reward_model[2]  # from random weights
    assert scored.too_long == short[0].too_long > 0
