"""Every rule of the data contract broken once, by Great Expectations itself."""

import copy
from pathlib import Path

import pytest

from tasks.config import PipelineConfig
from tasks.data.contract import RULES, contract_json, value_of
from tasks.data.records import SPLITS, Comparison, Demonstration, assistant, user
from tasks.data.tables import Tokens, comparison_table, counts_table, demonstration_table, parted_by_splits
from tasks.data.validate import Offender, check, judge
from tasks.errors import PreflineError

ROOT = Path(__file__).parents[3]
CONTRACT = {"min_comparisons": 20, "min_demonstrations": 10, "duplicates": 0.1, "ties": 0.3, "annotator_share": 0.6}


@pytest.fixture(scope="module")
def strict_tokenizer(tokenizer):
    """A tokenizer whose template, like that of some models, takes no system message."""
    strict = copy.deepcopy(tokenizer)
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message, please') }}{% endif %}"
    strict.chat_template = refuse + strict.chat_template
    return strict


@pytest.fixture
def comparisons():
    """24 sound comparisons, each on its own prompt, by two people, in all splits, as often longer as shorter."""
    answers = ["Yes, it is.", "No."]
    return [
        Comparison(
            id=f"c{n}",
            prompt=[user(f"Question {n}?")],
            chosen=[assistant(answers[n % 2])],
            rejected=[assistant(answers[1 - n % 2])],
            source="mine.jsonl",
            source_id=str(n + 1),
            group_id=f"g{n}",
            annotator=("ana", "ben")[n // 2 % 2],
            split=SPLITS[n % 4],
        )
        for n in range(24)
    ]


@pytest.fixture
def demonstrations():
    return [
        Demonstration(f"d{n}", [user(f"Question {n}?")], [assistant("Yes.")], "shown.jsonl", str(n + 1), f"g{n}", split=SPLITS[n % 4])
        for n in range(12)
    ]


@pytest.fixture
def found(comparisons, demonstrations, strict_tokenizer, tmp_path):
    """found(rejects={}) -> by rule, what the contract finds in the two lists as they are by then."""

    def run(contract=CONTRACT, rejects=None):
        config = PipelineConfig(max_tokens=60, max_new_tokens=20, contract=contract)
        tokens, parted = Tokens(strict_tokenizer), parted_by_splits([*comparisons, *demonstrations])
        rejected = {"comparisons": [], "demonstrations": []} | (rejects or {})
        tables = {
            "counts": counts_table(comparisons, demonstrations, {kind: len(rows) for kind, rows in rejected.items()}),
            "comparisons": comparison_table(comparisons, tokens, parted),
            "demonstrations": demonstration_table(demonstrations, tokens, parted),
        }
        findings, _ = judge(config, tables, check(config, tables, tmp_path / "docs"), rejected)
        return {finding.rule: finding for finding in findings}

    return run


def broken(findings):
    return {name for name, finding in findings.items() if not finding.passed}


# How to break each rule ---------------------------------------------------------------------------------------------


def few(kind):
    def fault(comparisons, demonstrations):
        del {"comparisons": comparisons, "demonstrations": demonstrations}[kind][9:]

    return fault


def without_split(kind, split):
    def fault(comparisons, demonstrations):
        for record in {"comparisons": comparisons, "demonstrations": demonstrations}[kind]:
            record.split = ("test" if split != "test" else "train") if record.split == split else record.split
        for record in comparisons if kind == "demonstrations" else demonstrations:  # groups stay whole
            record.group_id, record.prompt = f"other {record.id}", [user(f"Other {record.id}?")]

    return fault


def change(kind, **values):
    """One row's fields replaced."""

    def fault(comparisons, demonstrations):
        record = {"comparisons": comparisons, "demonstrations": demonstrations}[kind][5]
        for name, value in values.items():
            setattr(record, name, value)

    return fault


def alone(kind, **values):
    """The same, on a prompt of its own, so that no group is parted."""
    return change(kind, group_id="alone", **({"prompt": [user("Alone?")]} | values))


def sides(comparisons, demonstrations):
    for record in comparisons:
        record.chosen, record.rejected = [assistant("Yes, it is.")], [assistant("No.")]


def copies(comparisons, demonstrations):
    comparisons += [_with_id(comparisons[n], f"copy {n}") for n in range(3)]


def _with_id(record, name):
    other = copy.deepcopy(record)
    other.id = name
    return other


def ties(comparisons, demonstrations):
    for record in comparisons[:8]:
        record.tie = True


def one_person(comparisons, demonstrations):
    for record in comparisons[:20]:
        record.annotator = "ana"


def both_ways(comparisons, demonstrations):
    for n in range(2):
        other = _with_id(comparisons[n], f"other way {n}")
        other.chosen, other.rejected = other.rejected, other.chosen
        comparisons.append(other)


LONG = "Yes, and then again it is, or so they say. " * 9
FAULTS = {
    "counts.enough_comparisons": few("comparisons"),
    "counts.enough_demonstrations": few("demonstrations"),
    **{f"counts.some_comparisons_{split}": without_split("comparisons", split) for split in SPLITS},
    "counts.some_demonstrations_train": without_split("demonstrations", "train"),
    "comparisons.identical_pairs": change("comparisons", rejected=[assistant("No.")], chosen=[assistant("No.")]),
    "comparisons.text": change("comparisons", chosen=[assistant(" ")]),
    "comparisons.roles": alone("comparisons", prompt=[{"role": "customer", "content": "Alone?"}]),
    "comparisons.assistant_answers": change("comparisons", chosen=[user("Yes, it is.")]),
    "comparisons.template": alone("comparisons", prompt=[{"role": "system", "content": "Be kind."}, user("Alone?")]),
    "comparisons.over_length": change("comparisons", rejected=[assistant(LONG)]),
    "comparisons.id": change("comparisons", id="c4"),
    "comparisons.longer_chosen": sides,
    "comparisons.duplicates": copies,
    "comparisons.ties": ties,
    "comparisons.annotator_share": one_person,
    "comparisons.contradictions": both_ways,
    "demonstrations.text": change("demonstrations", answer=[assistant("\n")]),
    "demonstrations.roles": alone("demonstrations", prompt=[{"role": "customer", "content": "Alone?"}]),
    "demonstrations.assistant_answers": change("demonstrations", answer=[user("Yes.")]),
    "demonstrations.template": alone("demonstrations", prompt=[{"role": "system", "content": "Be kind."}, user("Alone?")]),
    "demonstrations.over_length": change("demonstrations", answer=[assistant(LONG)]),
    "demonstrations.id": change("demonstrations", id="d4"),
}


@pytest.mark.parametrize("rule", FAULTS)
def test_each_rule_is_broken_by_its_fault_alone(rule, comparisons, demonstrations, found):
    FAULTS[rule](comparisons, demonstrations)
    findings = found()
    assert broken(findings) == {rule}
    if findings[rule].rows:
        assert {row.source for row in findings[rule].first} == {"mine.jsonl" if rule.startswith("comparisons") else "shown.jsonl"}
        assert all(row.reason and "{" not in row.reason for row in findings[rule].first)
    assert "{" not in findings[rule].says


def test_sound_data_break_nothing(found):
    assert broken(found()) == set()


def test_a_group_in_two_splits(comparisons, found):
    comparisons[5].group_id = "g4"
    findings = found()
    assert broken(findings) == {"comparisons.split", "demonstrations.split"}
    assert [row.line for row in findings["comparisons.split"].first] == ["5", "6"]


def test_a_prompt_in_two_splits_under_two_names(comparisons, demonstrations, found):
    comparisons[20].prompt = comparisons[23].prompt
    assert broken(found()) == {"comparisons.split"}


@pytest.mark.parametrize("kind", ["comparisons", "demonstrations"])
def test_too_many_rejects_of_one_kind(kind, found):
    rejects = {kind: [Offender("", "bad.jsonl", "7", '"chosen" is empty')]}
    assert broken(found(CONTRACT | {"rejected_share": 0.1}, rejects)) == set()
    findings = found(CONTRACT | {"rejected_share": 0.03}, rejects)
    assert broken(findings) == {f"counts.rejected_{kind}"}
    finding = findings[f"counts.rejected_{kind}"]
    assert (finding.rows, finding.of, finding.first[0].line) == (1, 25 if kind == "comparisons" else 13, "7")


def test_every_rule_is_tried_here():
    tried = {*FAULTS, "comparisons.split", "demonstrations.split", "counts.rejected_comparisons", "counts.rejected_demonstrations"}
    assert tried == {rule.key for rule in RULES}


def test_limits_count_rows_exactly(comparisons, found):
    for record in comparisons[:3]:
        record.chosen = record.rejected = [assistant("No.")]
    assert broken(found(CONTRACT | {"identical_pairs": {"max": 2}})) == {"comparisons.identical_pairs"}
    findings = found(CONTRACT | {"identical_pairs": {"max": 3}})
    assert broken(findings) == set()
    assert (findings["comparisons.identical_pairs"].found, findings["comparisons.identical_pairs"].allowed) == ("3", "at most 3")


@pytest.mark.parametrize("rows", [7, 49, 1000, 22_104, 999_983])
def test_a_limit_of_rows_survives_becoming_a_share(rows):
    rule = next(rule for rule in RULES if rule.key == "comparisons.identical_pairs")
    for limit in (0, 1, 3, rows - 1, rows, rows + 5):
        share = rule.settings(PipelineConfig(contract={"identical_pairs": {"max": limit}}), rows)["mostly"]
        assert (rows - min(limit, rows)) / rows >= share  # as many as allowed pass
        if limit < rows:
            assert (rows - limit - 1) / rows < share  # one more does not


def test_no_rows_at_all_are_refused_by_their_number(comparisons, demonstrations, found):
    comparisons.clear()
    demonstrations.clear()
    findings = found()
    assert {"counts.enough_comparisons", "counts.enough_demonstrations", "counts.some_comparisons_train"} <= broken(findings)
    assert findings["comparisons.identical_pairs"].found == "not checked"


def test_length_that_tells_nothing_is_not_checked(comparisons, found):
    for record in comparisons:
        record.chosen, record.rejected = [assistant("Yes.")], [assistant("Nope")]
    findings = found()
    assert broken(findings) == set()
    assert findings["comparisons.longer_chosen"].found == "not checked"


def test_people_without_a_name_contradict_and_dominate_nobody(comparisons, found):
    both_ways(comparisons, [])
    for record in comparisons:
        record.annotator = None
    assert broken(found()) == set()


def test_a_tie_contradicts_nobody(comparisons, found):
    both_ways(comparisons, [])
    for record in comparisons[-2:]:
        record.tie = True
    assert broken(found()) == set()


def test_a_column_that_is_missing_is_not_taken_for_a_broken_rule(tmp_path, comparisons, demonstrations, strict_tokenizer):
    tokens = Tokens(strict_tokenizer)
    tables = {
        "counts": counts_table(comparisons, demonstrations, {}),
        "comparisons": comparison_table(comparisons, tokens, set()),
        "demonstrations": demonstration_table(demonstrations, tokens, set()).drop(columns="tokens"),
    }
    with pytest.raises(KeyError, match="tokens"):
        check(PipelineConfig(), tables, tmp_path / "docs")


def test_outcomes_that_great_expectations_could_not_work_out(tmp_path, comparisons, demonstrations, strict_tokenizer):
    tokens = Tokens(strict_tokenizer)
    tables = {
        "counts": counts_table(comparisons, demonstrations, {}),
        "comparisons": comparison_table(comparisons, tokens, set()).assign(longer_chosen="often"),
        "demonstrations": demonstration_table(demonstrations, tokens, set()),
    }
    with pytest.raises(PreflineError, match="can't be checked"):
        check(PipelineConfig(), tables, tmp_path / "docs")


# In writing ---------------------------------------------------------------------------------------------------------


def test_the_contract_in_data_is_that_of_the_code():
    assert (ROOT / "data" / "contract.json").read_text(encoding="utf-8") == contract_json(), "run: prefline data contract --write"


def test_the_written_contract_holds_no_thresholds_of_a_run():
    assert '"max_value": "${contract.ties}"' in contract_json()
    assert '"min_value": "${contract.longer_chosen.0}"' in contract_json()


def test_every_threshold_is_a_key_that_the_advice_names():
    for rule in RULES:
        for key in rule.thresholds.values():
            assert value_of(PipelineConfig(), key) is not None
            assert key.rstrip(".01") in rule.advice


def test_tables_hold_nothing_that_people_wrote(comparisons, demonstrations, strict_tokenizer):
    comparisons[0].prompt, comparisons[0].annotator, comparisons[0].id = [user("<script>alert(1)</script>")], "<b>ana</b>", "<i>1</i>"
    tokens = Tokens(strict_tokenizer)
    for table in (comparison_table(comparisons, tokens, set()), demonstration_table(demonstrations, tokens, set())):
        assert "<" not in table.drop(columns=["source", "source_id"]).to_csv()


def test_tokens_are_those_that_training_sees(tokenizer, comparisons):
    from tasks.data.encoding import encode_answer, encode_prompt

    c = comparisons[0]
    wanted = len(encode_prompt(tokenizer, c.prompt)) + max(len(encode_answer(tokenizer, c.prompt, side)) for side in (c.chosen, c.rejected))
    assert comparison_table([c], Tokens(tokenizer), set())["tokens"].tolist() == [wanted]
