"""Real files, where PREFLINE_REAL_DATA names a folder that holds them; their known counts are the truth."""

import itertools
import json
import os
import statistics
from collections import Counter
from pathlib import Path

import pytest

from tasks.config import DataConfig, SplitConfig
from tasks.data.contamination import EvaluationPrompts
from tasks.data.export import export
from tasks.data.formats import Reading
from tasks.data.importers import Reject, import_file
from tasks.data.prepare import import_sources, normalise, split
from tasks.data.records import Comparison, Demonstration, digest, read_jsonl

REAL = Path(os.environ.get("PREFLINE_REAL_DATA", "/nowhere"))
HH = REAL / "hh-rlhf" / "harmless-base_test.jsonl.gz"
PANDALM = REAL / "pandalm" / "testset-v1.json"
FINE_GRAINED = REAL / "finegrained_rlhf" / "dev_feedback.json"
OASST = REAL / "oasst" / "en_100_tree.jsonl"
PAIRWISE = REAL / "label-studio" / "label-studio-pairwise-export.json"
RANKER = REAL / "label-studio" / "label-studio-ranker-export.json"

pytestmark = pytest.mark.skipif(not HH.is_file(), reason="PREFLINE_REAL_DATA names no folder with hh-rlhf")


def longer_chosen(comparisons, length):
    """Share of chosen answers that are the longer ones, among those of unequal length."""
    lengths = [(length(pair.chosen[-1]["content"]), length(pair.rejected[-1]["content"])) for pair in comparisons if not pair.tie]
    return statistics.fmean(chosen > rejected for chosen, rejected in lengths if chosen != rejected)


def words(text):
    return len(text.split())


# Every file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format", "counts"),
    [
        ("hh-rlhf/harmless-base_test.jsonl.gz", "hh-rlhf", {"comparisons": 2308, "rejects": 4}),
        ("label-studio/label-studio-pairwise-export.json", "label-studio", {"comparisons": 7, "ties": 1, "skipped": 2}),
        ("label-studio/label-studio-ranker-export.json", "label-studio", {"comparisons": 21, "skipped": 2, "rejects": 1}),
        ("finegrained_rlhf/dev_feedback.json", "fine-grained", {"comparisons": 2616, "ties": 384, "demonstrations": 487}),
        ("pandalm/testset-v1.json", "pandalm", {"comparisons": 2515, "ties": 320, "rejects": 54}),
        ("oasst/en_100_tree.jsonl", "oasst", {"comparisons": 754}),
        ("llmbar/Adversarial_GPTInst.json", "llmbar", {"comparisons": 92}),
        ("llmbar/Adversarial_GPTOut.json", "llmbar", {"comparisons": 47}),
        ("llmbar/Adversarial_Manual.json", "llmbar", {"comparisons": 46}),
        ("llmbar/Adversarial_Neighbor.json", "llmbar", {"comparisons": 134}),
        ("llmbar/Natural.json", "llmbar", {"comparisons": 100}),
        ("llmbar/Processed_FairEval.json", "llmbar", {"comparisons": 66}),
        ("llmbar/Processed_LLMEval2.json", "llmbar", {"comparisons": 199, "rejects": 1}),
        ("llmbar/Processed_MT-Bench.json", "llmbar", {"comparisons": 200}),
        ("mtbench_fastchat/question.jsonl", "mt-bench", {"demonstrations": 38, "rejects": 42}),
        ("self_instruct/seed_tasks.jsonl", "self-instruct", {"demonstrations": 175}),
        ("self_instruct/user_oriented_instructions.jsonl", "self-instruct", {"demonstrations": 252}),
    ],
)
def test_every_file_is_recognised_and_gives_what_it_holds(name, format, counts):
    found = list(import_file(REAL / name))
    kinds = Counter()
    for each in found:
        if isinstance(each, Reject):
            kinds["skipped" if each.skipped else "rejects"] += 1
        elif isinstance(each, Demonstration):
            kinds["demonstrations"] += 1
        else:
            kinds["ties" if each.tie else "comparisons"] += 1
    assert kinds == counts
    assert list(import_file(REAL / name, Reading(format))) == found  # by its name as by its shape
    assert len({each.id for each in found if not isinstance(each, Reject)}) == len(found) - kinds["rejects"] - kinds["skipped"]


@pytest.mark.parametrize("format", ["prefline", "trl", "hh-rlhf", "helpsteer3", "argilla", "ultrafeedback"])
def test_real_conversations_come_back_from_an_export(format, tmp_path):
    pairs = [row for row in import_file(HH) if isinstance(row, Comparison)]
    exported = export(pairs, format, tmp_path / "a.jsonl")
    back = list(import_file(tmp_path / "a.jsonl", Reading(format)))
    five = {"an answer of several messages": 5}  # the rows whose sides have unequally many turns
    assert exported.left_out == (five if format in ("argilla", "helpsteer3") else {})
    assert Counter(digest(c.prompt, c.chosen, c.rejected) for c in back) <= Counter(digest(c.prompt, c.chosen, c.rejected) for c in pairs)
    assert len(back) == exported.written == len(pairs) - sum(exported.left_out.values())


# hh-rlhf ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hh():
    return list(import_file(HH))


@pytest.fixture(scope="module")
def pairs(hh):
    return {int(row.source_id): row for row in hh if isinstance(row, Comparison)}


def test_every_row_but_the_empty_replies_is_a_comparison(hh):
    assert len(hh) == 2312
    assert [row.line for row in hh if isinstance(row, Reject)] == [87, 517, 926, 1104]
    assert {row.reason for row in hh if isinstance(row, Reject)} == {'the last reply of "chosen" is empty'}


def test_prompts_that_differ_at_the_last_marker_do_not_at_the_longest_run_of_turns(pairs):
    uneven = [line for line, pair in pairs.items() if len(pair.chosen) != len(pair.rejected)]
    assert uneven == [1255, 1689, 1951, 1953, 2037]


def test_consecutive_turns_of_the_assistant(pairs):
    def twice(messages):
        roles = [message["role"] for message in messages]
        return any(a == b == "assistant" for a, b in itertools.pairwise(roles))

    assert [line for line, pair in pairs.items() if twice(pair.prompt + pair.chosen)] == [668, 764, 1255, 1320, 1689, 1850, 1953, 2037]
    assert [line for line, pair in pairs.items() if twice(pair.prompt + pair.rejected)] == [668, 764, 1320, 1850, 1951]


def test_pairs_of_one_prompt_share_a_group(pairs):
    groups = {}
    for line, pair in pairs.items():
        groups.setdefault(pair.group_id, []).append(line)
    assert sorted(lines for lines in groups.values() if len(lines) > 1) == [[251, 1484], [1263, 1453]]


def test_first_turns_and_inline_speakers(pairs):
    assert len({pair.prompt[0]["content"] for pair in pairs.values()}) == pytest.approx(2178, abs=4)  # four rows are rejected

    def inline(messages):
        return any("Human:" in message["content"] or "Assistant:" in message["content"] for message in messages)

    assert sum(inline(pair.prompt + pair.chosen) for pair in pairs.values()) == 40
    assert sum(inline(pair.prompt + pair.rejected) for pair in pairs.values()) == 33


def test_lengths(pairs):
    assert statistics.fmean(words(pair.chosen[-1]["content"]) for pair in pairs.values()) == pytest.approx(30.8, abs=0.1)
    assert statistics.fmean(words(pair.rejected[-1]["content"]) for pair in pairs.values()) == pytest.approx(38.8, abs=0.1)
    assert longer_chosen(pairs.values(), len) == pytest.approx(0.445, abs=0.0005)


def test_no_copies(pairs):
    assert len({digest(pair.prompt, pair.chosen, pair.rejected) for pair in pairs.values()}) == len(pairs)
    assert not any(pair.chosen == pair.rejected for pair in pairs.values())


def test_chosen_replies_serve_as_demonstrations(tmp_path):
    config = DataConfig(comparisons=[str(HH)], demonstrations=[str(HH)])
    import_sources(config, tmp_path / "none.yaml", tmp_path, tmp_path / "imported")
    normalise(config, tmp_path / "imported", tmp_path / "normalised")
    split(SplitConfig(), tmp_path / "normalised", tmp_path / "data")
    shown = list(read_jsonl(tmp_path / "data" / "demonstrations.jsonl", Demonstration))
    compared = {c.group_id: c.split for c in read_jsonl(tmp_path / "data" / "comparisons.jsonl", Comparison)}
    assert len(shown) == 2308
    assert all(compared[demonstration.group_id] == demonstration.split for demonstration in shown)


# Label Studio ----------------------------------------------------------------------------------------------------


def test_annotations_of_two_people():
    found = [row for row in import_file(PAIRWISE) if isinstance(row, Comparison)]
    assert Counter(pair.annotator for pair in found) == {"1": 4, "2": 4}
    tie = next(pair for pair in found if pair.tie)
    assert (tie.annotator, tie.seconds, tie.created_at) == ("1", 2.866, "2026-11-25T08:01:18.591162Z")
    first = found[0]
    assert (first.chosen[0]["content"], first.chosen_first, first.seconds, first.labels_by) == ("Eggs are food.", False, 5.23, "people")


def test_rankings_of_three():
    found = list(import_file(RANKER))
    by_ranking = Counter(pair.ranking for pair in found if isinstance(pair, Comparison))
    assert sorted(by_ranking.values()) == [3] * 7
    assert [(row.line, row.reason) for row in found if isinstance(row, Reject) and not row.skipped] == [(3, "the ranking is empty")]


# PandaLM ---------------------------------------------------------------------------------------------------------


def test_pandalm_is_told_row_by_row():
    rows = json.loads(PANDALM.read_text())
    found = list(import_file(PANDALM))
    for field, count in (("response1", 29), ("response2", 25)):
        empty = [place for place, row in enumerate(rows, 1) if row[field] == ""]
        assert [row.line for row in found if isinstance(row, Reject) and row.reason == f'"{field}" is empty'] == empty
        assert len(empty) == count
    labels = {}
    for pair in found:
        if isinstance(pair, Comparison):
            labels.setdefault(int(pair.source_id), []).append(0 if pair.tie else 1 if pair.chosen_first else 2)
    assert labels == {
        place: [row["annotator1"], row["annotator2"], row["annotator3"]]
        for place, row in enumerate(rows, 1)
        if row["response1"] != "" and row["response2"] != ""
    }


def test_pandalm_prompts_and_answers_that_a_table_spoilt():
    found = [pair for pair in import_file(PANDALM) if isinstance(pair, Comparison)]
    rejected = {json.dumps(row.row, sort_keys=True) for row in import_file(PANDALM) if isinstance(row, Reject)}
    rows = json.loads(PANDALM.read_text())
    assert len({(row["instruction"], row["input"]) for row in rows}) == 170
    kept = [row for row in rows if json.dumps(row, sort_keys=True) not in rejected]
    assert len({pair.group_id for pair in found}) == len({(row["instruction"].strip(), row["input"].strip()) for row in kept})
    true = {int(pair.source_id) - 1 for pair in found if "True" in (pair.chosen[0]["content"], pair.rejected[0]["content"])}
    assert true >= {157, 158, 159, 161, 162, 164}
    assert next(pair for pair in found if pair.source_id == "467").prompt == [{"role": "user", "content": "Truthfulness"}]


# Fine-grained, Open Assistant ------------------------------------------------------------------------------------


def test_fine_grained_lengths():
    found = [row for row in import_file(FINE_GRAINED) if isinstance(row, Comparison)]
    assert longer_chosen(found, len) == pytest.approx(0.512, abs=0.0005)
    assert len({pair.group_id for pair in found}) == 500


def test_trees():
    found = list(import_file(OASST))
    groups = Counter(pair.ranking or pair.id for pair in found)
    assert len(groups) == 212
    assert sum(round((1 + (1 + 8 * pairs) ** 0.5) / 2) for pairs in groups.values()) == 641  # k answers make k (k - 1) / 2 pairs
    assert longer_chosen(found, len) == pytest.approx(0.698, abs=0.0005)


def test_an_evaluation_set_is_found_where_it_is_and_nowhere_else():
    """983 of PandaLM's 999 prompts come from these instructions, a few more with small changes; none of the others do."""
    known = EvaluationPrompts.load(["self_instruct/user_oriented_instructions.jsonl"], REAL)
    pandalm = [found for found in import_file(PANDALM) if isinstance(found, Comparison) and found.annotator == "annotator1"]
    assert len(pandalm) == 945
    assert sum(known.knows(found.prompt) for found in pandalm) >= 945 - 16
    others = [
        found for path in (HH, REAL / "llmbar" / "Natural.json", REAL / "self_instruct" / "seed_tasks.jsonl") for found in import_file(path)
    ]
    assert not any(known.knows(found.prompt) for found in others if not isinstance(found, Reject))
