"""Real files, where PREFLINE_REAL_DATA names a folder that holds them; their known counts are the truth."""

import itertools
import os
import statistics
from pathlib import Path

import pytest

from tasks.config import DataConfig, SplitConfig
from tasks.data.importers import Reject, import_file
from tasks.data.prepare import normalise, split
from tasks.data.records import Comparison, Demonstration, digest, read_jsonl
from tasks.data.statistics import longer_chosen

REAL = os.environ.get("PREFLINE_REAL_DATA", "")
HH = Path(REAL) / "hh-rlhf" / "harmless-base_test.jsonl.gz"

pytestmark = pytest.mark.skipif(not REAL or not HH.is_file(), reason="PREFLINE_REAL_DATA names no folder with hh-rlhf")


@pytest.fixture(scope="module")
def found():
    return list(import_file(HH))


@pytest.fixture(scope="module")
def pairs(found):
    return {int(row.source_id): row for row in found if isinstance(row, Comparison)}


def test_every_row_but_the_empty_replies_is_a_comparison(found):
    assert len(found) == 2312
    assert [row.line for row in found if isinstance(row, Reject)] == [87, 517, 926, 1104]
    assert {row.reason for row in found if isinstance(row, Reject)} == {'the last reply of "chosen" is empty'}


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
    def words(side):
        return statistics.fmean(len(getattr(pair, side)[-1]["content"].split()) for pair in pairs.values())

    assert words("chosen") == pytest.approx(30.8, abs=0.1)
    assert words("rejected") == pytest.approx(38.8, abs=0.1)
    longer = [longer_chosen(pair) for pair in pairs.values()]
    assert longer.count(True) / (longer.count(True) + longer.count(False)) == pytest.approx(0.445, abs=0.002)


def test_no_copies(pairs):
    assert len({pair.id for pair in pairs.values()}) == len(pairs)
    assert len({digest(pair.prompt, pair.chosen, pair.rejected) for pair in pairs.values()}) == len(pairs)
    assert not any(pair.chosen == pair.rejected for pair in pairs.values())


def test_chosen_replies_as_demonstrations(tmp_path):
    normalise(DataConfig(comparisons=[str(HH)], demonstrations=[str(HH)]), tmp_path, tmp_path, tmp_path / "imported")
    split(SplitConfig(), tmp_path / "imported", tmp_path / "data")
    shown = list(read_jsonl(tmp_path / "data" / "demonstrations.jsonl", Demonstration))
    compared = {c.group_id: c.split for c in read_jsonl(tmp_path / "data" / "comparisons.jsonl", Comparison)}
    assert len(shown) == 2308
    assert all(compared[demonstration.group_id] == demonstration.split for demonstration in shown)
