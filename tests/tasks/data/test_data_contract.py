"""Every rule of the data contract broken once, by Great Expectations itself."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.config import PipelineConfig
from tasks.data.annotators import study
from tasks.data.checks import Outcome, check
from tasks.data.contract import PERSONAL, RULES, contract_json, value_of
from tasks.data.findings import KEPT, Rejects, judge
from tasks.data.records import SPLITS, Comparison, Demonstration, assistant, user
from tasks.data.tables import comparison_table, demonstration_table, mark_near
from tasks.data.tokens import Tokens
from tasks.data.validate import complete
from tasks.errors import PreflineError

ROOT = Path(__file__).parents[3]
CONTRACT = {
    "min_comparisons": 20,
    "min_demonstrations": 10,
    "duplicates": 0.1,
    "ties": 0.3,
    "annotator_share": 0.6,
    "min_shared": 8,
    "turns": 0.0,
}
KNOWN = "What only the evaluation asks?"


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
def tables(comparisons, demonstrations, strict_tokenizer):
    """tables(contract, rejects) -> what the contract looks at, of the two lists as they are by then."""

    def make(contract=CONTRACT, rejects=None, near=()):
        tokens = Tokens(strict_tokenizer, 60)

        def known(prompt):
            return prompt[0]["content"] == KNOWN

        made = comparison_table(comparisons, tokens, known), demonstration_table(demonstrations, tokens, known)
        ids = made[0]["id"].to_numpy()[list(near)] if len(near) else np.zeros(0, np.uint64)
        mark_near(made[0], pd.DataFrame({"id": ids, "near_duplicate": len(near) > 1, "near_other_group": True}))
        config = PipelineConfig(contract=contract).contract
        return complete(*made, study(made[0]), rejects or Rejects(), config)

    return make


@pytest.fixture
def found(tables):
    """found(contract, rejects) -> by rule, what the contract finds."""

    def run(contract=CONTRACT, rejects=None, near=()):
        config = PipelineConfig(max_tokens=60, max_new_tokens=20, contract=contract)
        made = tables(contract, rejects, near)
        findings, _ = judge(config, made, check(config, made).outcomes, rejects or Rejects())
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


def mixed_ranking(comparisons, demonstrations):
    for record in comparisons[:2]:
        record.ranking = "one"


def by_place(comparisons, demonstrations):
    for record in comparisons:
        record.chosen_first = True


def by_a_model(comparisons, demonstrations):
    comparisons[3].labels_by = "ai"


def says(kind, text):
    """A text among one row's answers."""
    return change(kind, **({"rejected": [assistant(text)]} if kind == "comparisons" else {"answer": [assistant(text)]}))


LONG = "Yes, and then again it is, or so they say. " * 9
TWICE = [assistant("Yes,"), assistant("it is.")]
TEXTS = {
    "over_length": LONG,
    "control_characters": "N\x00o.",
    "garbled": "NÃ³.",
    "special_tokens": "No<|end|>",
    "email": "a@b.co",
    "phone": "+49 170 1234567",
    "card": "4111 1111 1111 1111",
    "secret": "AKIAABCDEFGHIJKLMNOP",
}


def of_records(kind):
    """How to break the rules that hold for either kind."""
    answer = "chosen" if kind == "comparisons" else "answer"
    number = {"comparisons": "c4", "demonstrations": "d4"}[kind]
    return {
        "text": change(kind, **{answer: [assistant(" ")]}),
        "roles": alone(kind, prompt=[{"role": "customer", "content": "Alone?"}]),
        "turns": change(kind, **{answer: TWICE}),
        "template": alone(kind, prompt=[{"role": "system", "content": "Be kind."}, user("Alone?")]),
        "contaminated": alone(kind, prompt=[user(KNOWN)]),
        "id": change(kind, id=number),
        **{name: says(kind, text) for name, text in TEXTS.items()},
    }


FAULTS = {
    "counts.enough_comparisons": few("comparisons"),
    "counts.enough_demonstrations": few("demonstrations"),
    **{f"counts.some_comparisons_{split}": without_split("comparisons", split) for split in SPLITS},
    "counts.some_demonstrations_train": without_split("demonstrations", "train"),
    "comparisons.identical_pairs": change("comparisons", rejected=[assistant("No.")], chosen=[assistant("No.")]),
    "comparisons.ranking": mixed_ranking,
    "comparisons.longer_chosen": sides,
    "comparisons.position": by_place,
    "comparisons.duplicates": copies,
    "comparisons.ties": ties,
    "comparisons.annotator_share": one_person,
    "comparisons.contradictions": both_ways,
    "comparisons.ai_labels": by_a_model,
}
OF_BOTH = {kind: of_records(kind) for kind in ("comparisons", "demonstrations")}
ELSEWHERE = {
    "comparisons.split",
    "demonstrations.split",
    "comparisons.assistant_answers",
    "demonstrations.assistant_answers",
    "counts.rejected_comparisons",
    "counts.rejected_demonstrations",
    "comparisons.near_duplicates",
    "comparisons.near_other_group",
    "comparisons.at_chance",
    "counts.agreement",
}


@pytest.mark.parametrize("rule", FAULTS)
def test_each_rule_is_broken_by_its_fault_alone(rule, comparisons, demonstrations, found):
    FAULTS[rule](comparisons, demonstrations)
    findings = found()
    assert broken(findings) == {rule}
    blames_rows_of(findings[rule], "mine.jsonl")


@pytest.mark.parametrize("name", OF_BOTH["comparisons"])
def test_each_rule_of_both_kinds_is_broken_by_its_fault_alone(name, comparisons, demonstrations, found):
    for faults in OF_BOTH.values():
        faults[name](comparisons, demonstrations)
    findings = found()
    assert broken(findings) == {f"comparisons.{name}", f"demonstrations.{name}"}
    blames_rows_of(findings[f"comparisons.{name}"], "mine.jsonl")
    blames_rows_of(findings[f"demonstrations.{name}"], "shown.jsonl")
    assert findings[f"demonstrations.{name}"].rows == (2 if name == "id" else 1)


def blames_rows_of(finding, source):
    assert {row.source for row in finding.first} <= {source}
    assert all(row.reason and "{" not in row.reason for row in finding.first)
    assert "{" not in finding.says


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
def test_an_answer_by_somebody_else_breaks_the_turns_too(kind, comparisons, demonstrations, found):
    answer = "chosen" if kind == "comparisons" else "answer"
    change(kind, **{answer: [user("Yes, it is.")]})(comparisons, demonstrations)
    assert broken(found()) == {f"{kind}.assistant_answers", f"{kind}.turns"}


@pytest.mark.parametrize("kind", ["comparisons", "demonstrations"])
def test_too_many_rejects_of_one_kind(kind, found):
    rejects = Rejects()
    rejects.add(kind, "bad.jsonl", "7", '"chosen" is empty')
    assert broken(found(CONTRACT | {"rejected_share": 0.1}, rejects)) == set()
    findings = found(CONTRACT | {"rejected_share": 0.03}, rejects)
    assert broken(findings) == {f"counts.rejected_{kind}"}
    finding = findings[f"counts.rejected_{kind}"]
    assert (finding.rows, finding.of, finding.first[0].line) == (1, 25 if kind == "comparisons" else 13, "7")


def test_near_ones_warn_by_their_share(found):
    assert broken(found(CONTRACT | {"near_duplicates": 0.25, "near_other_group": 0.25}, near=range(6))) == set()
    findings = found(CONTRACT | {"near_duplicates": 0.2, "near_other_group": 0.2}, near=range(6))
    assert broken(findings) == {"comparisons.near_duplicates", "comparisons.near_other_group"}
    assert not any(finding.stops for finding in findings.values())
    assert findings["comparisons.near_duplicates"].rows == 6


def judged_by_two(comparisons, alike):
    """Ben judges what Ana did; alike(n) says whether he says the same."""
    for n, record in enumerate(comparisons[:12]):
        record.annotator = "ana"
        other = _with_id(record, f"ben {n}")
        other.annotator = "ben"
        if not alike(n):
            other.chosen, other.rejected = other.rejected, other.chosen
        comparisons.append(other)


def test_too_little_agreement(comparisons, found):
    judged_by_two(comparisons, lambda n: n % 2 == 0)
    findings = found(CONTRACT | {"min_agreement": 0.2})
    assert broken(findings) == {"counts.agreement"}
    assert "agree by -0.28" in findings["counts.agreement"].says
    assert findings["counts.agreement"].allowed == "at least 0.20"


def test_agreement_that_is_high_enough_or_rests_on_too_few_pairs(comparisons, found):
    judged_by_two(comparisons, lambda n: True)
    assert found()["counts.agreement"].found == "1.00"
    del comparisons[24:]
    judged_by_two(comparisons, lambda n: False)
    findings = found(CONTRACT | {"min_shared": 13})
    assert broken(findings) == set()
    assert findings["counts.agreement"].found == "not checked"


def test_comparisons_by_people_at_chance(tables):
    made = tables()
    made["comparisons"]["at_chance"] = made["comparisons"]["annotator"] == "ana"
    for limit, wanted in ((0.5, True), (0.49, False)):
        config = PipelineConfig(max_tokens=60, max_new_tokens=20, contract=CONTRACT | {"at_chance": limit})
        findings, _ = judge(config, made, check(config, made).outcomes, Rejects())
        finding = next(finding for finding in findings if finding.rule == "comparisons.at_chance")
        assert (finding.passed, finding.rows) == (wanted, 0 if wanted else 12)


def test_every_rule_is_tried_here():
    of_both = {f"{kind}.{name}" for kind, faults in OF_BOTH.items() for name in faults}
    assert FAULTS.keys() | of_both | ELSEWHERE == {rule.key for rule in RULES}
    assert len(FAULTS) + len(of_both) + len(ELSEWHERE) == len(RULES)


def test_limits_count_rows_exactly(comparisons, found):
    for record in comparisons[:3]:
        record.chosen = record.rejected = [assistant("No.")]
    assert broken(found(CONTRACT | {"identical_pairs": {"max": 2}})) == {"comparisons.identical_pairs"}
    findings = found(CONTRACT | {"identical_pairs": {"max": 3}})
    assert broken(findings) == set()
    assert (findings["comparisons.identical_pairs"].found, findings["comparisons.identical_pairs"].allowed) == ("3", "at most 3")


def test_limits_are_exact_in_a_million_rows(tables):
    """Neither a share nor a rounded one: of 999,983 rows 7 are too many where 6 are allowed, and 7 are not where 7 are."""
    made = tables()
    many = made["comparisons"].loc[np.zeros(999_983, int)].reset_index(drop=True)
    many["id"] = np.arange(len(many), dtype=np.uint64)
    many.loc[[5, 70, 800, 9_000, 99_000, 500_000, 999_982], "identical"] = True
    made["comparisons"] = many
    for limit, passed in ((6, False), (7, True)):
        config = PipelineConfig(max_tokens=60, max_new_tokens=20, contract=CONTRACT | {"identical_pairs": {"max": limit}})
        outcome = check(config, made).outcomes["comparisons.identical_pairs"]
        assert (outcome.passed, outcome.found) == (passed, 7)


def test_position_is_not_judged_by_a_handful(comparisons, found):
    for n, record in enumerate(comparisons[:7]):
        record.chosen_first = n < 6
    assert broken(found()) == set()
    assert found()["comparisons.position"].found == "85.7 %"
    for n, record in enumerate(comparisons):
        record.chosen_first = n >= 3
    assert broken(found()) == {"comparisons.position"}


def test_what_is_listed_is_bounded_and_holds_some_of_every_rule(tables):
    made, rejects = tables(), Rejects()
    for line in range(KEPT + 50):
        rejects.add("comparisons", "bad.jsonl", str(line), "bad")
    made["comparisons"]["empty"] = True
    config = PipelineConfig(contract=CONTRACT)
    findings, offenders = judge(config, made, {"comparisons.text": Outcome(False, 24)}, rejects)
    assert {finding.rule: finding.rows for finding in findings if finding.rows} == {
        "counts.rejected_comparisons": KEPT + 50,
        "comparisons.text": 24,
    }
    assert sum(offender.rule == "comparisons.text" for offender in offenders) == 24
    assert len(offenders) <= KEPT


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


def test_a_column_that_is_missing_is_not_taken_for_a_broken_rule(tables):
    made = tables()
    made["demonstrations"] = made["demonstrations"].drop(columns="too_long")
    with pytest.raises(KeyError, match="too_long"):
        check(PipelineConfig(), made)


def test_outcomes_that_great_expectations_could_not_work_out(tables):
    made = tables()
    made["comparisons"]["longer_chosen"] = "often"
    with pytest.raises(PreflineError, match="can't be checked"):
        check(PipelineConfig(), made)


def test_data_docs_say_what_our_own_expectations_want(tmp_path, comparisons, tables):
    by_place(comparisons, [])
    check(PipelineConfig(max_tokens=60, max_new_tokens=20, contract=CONTRACT), tables()).write_docs(tmp_path / "docs")
    text = (tmp_path / "docs" / "expectations" / "comparisons.html").read_text()
    assert "rows may be marked" in text
    assert "or its interval" in text


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


def test_every_key_of_the_contract_is_a_threshold_of_some_rule():
    used = {key.split(".")[1] for rule in RULES for key in rule.thresholds.values()}
    assert used | {"evaluation_sets", "min_shared"} == set(PipelineConfig().contract.model_dump())


def test_kinds_of_personal_data_are_counted_apart():
    assert {rule.key for rule in RULES if rule.thresholds.get("max_value") == "contract.personal_data.max"} == {
        f"{kind}.{name}" for kind in ("comparisons", "demonstrations") for name in PERSONAL
    }
