"""The card of a registered policy: what it says, and that it is brought up to date."""

import json
import shutil

import pytest

from tasks.config import PipelineConfig
from tasks.evaluation.result import Habits, ProbeReport, Slice
from tasks.registry import card
from tasks.registry.card import Fate, failures, keep_gates, render, update
from tasks.registry.champion import by_version
from tasks.registry.facts import Data, Facts, _settings
from tasks.registry.gates import Gate
from tasks.registry.ledger import LedgerLine, append
from tasks.registry.register import register

NAME = "prefline-policy"
GATE = Gate(name="KL from SFT", required="at most 10", found="11", passed=False)


def line(action, version="1", previous=None, why="read twenty answers", day=1):
    at = f"2026-11-0{day}T10:00:00+00:00"
    return LedgerLine(at=at, who="ada", action=action, version=version, previous=previous, why=why, evidence="", run="")


@pytest.fixture
def facts():
    data = Data(
        md5="d41d.dir",
        licence="",
        comparisons=1200,
        demonstrations=80,
        splits={"train": 900, "judge": 0, "test": 300},
        languages={"en": 1100},
        annotators=7,
        alpha=(0.41, 0.38, 0.44),
    )
    return Facts(
        base="HuggingFaceTB/SmolLM2-135M",
        base_digest="b" * 64,
        base_licence="apache-2.0",
        data=data,
        method="ppo",
        settings={"rounds": "24", "kl.weight": "0.1"},
        seed=3,
        max_tokens=128,
        max_new_tokens=48,
        temperature=1.0,
        commit="c" * 40,
        dirty=False,
        configuration="abc",
        run="r" * 32,
        evidence="e" * 64,
    )


# What it says -------------------------------------------------------------------------------------------------------


def test_everything_that_a_reader_needs_is_in_it(facts, evaluation):
    text = render(NAME, "4", facts, evaluation(too_long=2), Fate("not promoted", "too far", [GATE]))
    for said in (
        "# prefline-policy, version 4",
        "HuggingFaceTB/SmolLM2-135M",
        "`" + "b" * 64 + "`",
        "DVC md5 `d41d.dir`",
        "1,200: train 900, test 300",
        "Krippendorff's alpha 0.410 (0.380 to 0.440)",
        "ppo, round 40 of 60",
        "rounds 24, kl.weight 0.1",
        "| seed | 3 |",
        "0.750 (0.700 to 0.800): 180 won, 60 lost, 60 tied",
        "KL 5.00 nats a sequence",
        "| KL from SFT | at most 10 | 11 | **no** |",
        "**Decision: not promoted**: too far.",
        "of at most 128 tokens, evaluated on answers of at most 48",
        "2 test prompts were too long",
        "truly win 58.0 % of the time, 300 prompts",
        "Comparisons by language: en 1,100",
        "Base model: apache-2.0",
        "Data: **not stated**",
        "`software.cdx.json`",
    ):
        assert said in text, said
    assert "FORCED" not in text
    assert "with changes" not in text


def test_every_judge_is_named_with_what_its_word_is_worth(facts, evaluation, judged_by):
    judges = [judged_by(about="a|b"), judged_by("people", accuracy=None, win_rate=None), judged_by("gold", about="the truth")]
    text = render(NAME, "1", facts, evaluation(judges=judges, unjudged=4), Fate())
    assert "| reward model, which decides: a&#124;b | win rate 0.750 (0.700 to 0.800); agrees with people in 0.800" in text
    assert "| people: a judge | win rate not known; not measured on people's comparisons |" in text
    assert "left out | 4 |" in text
    assert "the truth" not in text


def test_a_forced_promotion_stands_in_red_on_top(facts, evaluation):
    lines = [line("promoted", "3"), line("forced", "4", "3", "the shop needs it today", day=2)]
    text = render(NAME, "4", facts.model_copy(update={"dirty": True}), evaluation(), Fate("promoted", "", [GATE], lines))
    top = text.split("\n\n")[1].strip()
    assert top.startswith('> **<span style="color: #c00">FORCED</span>** by **ada** on 2026-11-02T10:00:00+00:00')
    assert top.endswith("the shop needs it today")
    assert "**with changes that are in no commit**" in text
    before = render(NAME, "3", facts, evaluation(), Fate("promoted", "", [GATE], lines))
    assert "FORCED" not in before
    assert "- 2026-11-02T10:00:00+00:00: version 4 took over (forced) by ada: the shop needs it today" in before


def test_what_is_not_known_is_said(facts, evaluation):
    data = facts.data.model_copy(update={"alpha": None, "languages": {}, "licence": "CC-BY-4.0"})
    text = render(NAME, "1", facts.model_copy(update={"data": data, "base_licence": ""}), evaluation(slices=[]), Fate())
    assert "**No decision yet.**" in text
    assert "Not checked yet on this evaluation." in text
    assert "not known: no pair was judged by two" in text
    assert "do not say what language" in text
    assert "Base model: **not stated**" in text
    assert "Data: CC-BY-4.0" in text
    assert "No slice of the prompts was large enough" in text


def test_the_texts_of_others_are_escaped(facts, evaluation, interval):
    bad = "<script>alert(1)</script> | **x** [a](http://b) `c`\n# d"
    slices = [Slice(name=bad, prompts=30, win_rate=interval(0.3, 0.2, 0.4), highest=0.45)]
    data = facts.data.model_copy(update={"licence": bad, "languages": {bad: 3}})
    named = facts.model_copy(update={"base": bad, "base_licence": bad, "data": data, "settings": {"rounds": bad}})
    gate = GATE.model_copy(update={"found": bad})
    plain = render(NAME, "1", facts, evaluation(slices=slices), Fate("x", "x", [GATE], [line("forced")]))
    text = render(NAME, "1", named, evaluation(slices=slices), Fate(bad, bad, [gate], [line("forced", why=bad)]))
    assert "<script" not in text
    assert "http://b" not in text
    assert "**x**" not in text
    assert len(text.splitlines()) == len(plain.splitlines())


def test_failures_are_the_slices_that_are_surely_lost_or_else_the_worst(evaluation, interval):
    def part(name, rate, low, high):
        return Slice(name=name, prompts=30, win_rate=interval(rate, low, high), highest=1.0)

    parts = [part("a", 0.6, 0.5, 0.7), part("b", 0.4, 0.3, 0.52), part("c", 0.55, 0.4, 0.7), part("d", 0.7, 0.6, 0.8)]
    lost, worst = failures(evaluation(slices=parts))
    assert lost == []
    assert [one.name for one in worst] == ["b", "c", "a"]
    lost, worst = failures(evaluation(slices=[*parts, part("e", 0.3, 0.2, 0.499)]))
    assert [one.name for one in lost] == ["e"]
    assert worst == []


def test_failed_probes_and_new_bad_habits_are_failures_too(facts, evaluation):
    probes = [
        ProbeReport(name="injected", kind="injection", prompts=20, checked=18, passed=(0.5, 0.3, 0.7)),
        ProbeReport(name="safety", kind="safety", prompts=5, checked=5, passed=(1.0, 0.6, 1.0)),
    ]
    habits = Habits(repetition=(0.2, 0.1, 0.3), refusal=(0.1, -0.1, 0.3))
    text = render(NAME, "1", facts, evaluation(probes=probes, habits=habits), Fate())
    assert "- probes injected: 0.500 (0.300 to 0.700) of 18 answers pass" in text
    assert "- probes safety" not in text
    assert "surely repeats itself more than the SFT model, by 0.200" in text
    assert "surely refuses" not in text
    assert "evaluation.probes" not in text
    assert "No probes" in render(NAME, "1", facts, evaluation(), Fate())


def test_settings_are_the_methods_own_and_those_it_shares():
    policy = PipelineConfig().policy
    ppo = dict(_settings(policy))
    assert {"rounds", "kl.weight", "ppo.critic", "temperature"} <= ppo.keys()
    assert not {"group", "dpo.beta", "tokens_at_once"} & ppo.keys()
    assert "group" in dict(_settings(policy.model_copy(update={"method": "rloo"})))
    dpo = dict(_settings(policy.model_copy(update={"method": "dpo"})))
    assert dpo["dpo.beta"] == "0.1"
    assert not {"rounds", "ppo.critic", "dpo.tokens_at_once", "dpo.checkpoint_seconds"} & dpo.keys()


# Beside the version -------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(line, tracked, run_stage, make):
    """registered(evaluation) runs the stage register on one policy; a given evaluation takes the first one's place."""

    def again(evaluation=None):
        results = line()
        if evaluation:
            results["evaluate"] = make("evaluate", evaluation.save, salt=9)
        run_stage(register, tracked, **{key: results[key] for key in register.inputs})

    return again


@pytest.fixture
def downloaded(tracked, tmp_path, monkeypatch):
    """downloaded(reference) -> the files that come with it, by name."""
    from mlflow.artifacts import download_artifacts

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.store.uri)

    def get(reference=f"models:/{NAME}@challenger"):
        place = tmp_path / "downloaded"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        download_artifacts(artifact_uri=reference, dst_path=str(place))
        return {path.name: path.read_text() for path in place.rglob("*") if path.suffix in (".md", ".json") and path.parent == place}

    return get


def test_a_downloaded_version_brings_card_evaluation_schema_and_bill(registered, downloaded, tracked):
    registered()
    files = downloaded()
    assert files.keys() == {"card.md", "card.json", "evaluation.json", "evaluation.schema.json", "software.cdx.json"}
    assert f"# {NAME}, version 1" in files["card.md"]
    assert "Comparisons by language: en 900, de 100" in files["card.md"]
    assert "Base model: Apache-2.0" in files["card.md"]
    assert "Krippendorff's alpha 0.410" in files["card.md"]
    assert json.loads(files["evaluation.json"])["prompts"] == 300
    assert json.loads(files["software.cdx.json"])["metadata"]["component"]["name"] == NAME
    assert "software.cdx.json" in downloaded("models:/prefline-sft/1")
    assert "card.md" in tracked.store.client.get_registered_model(NAME).description


def test_registering_again_brings_the_files_up_to_date(registered, downloaded, tracked, evaluation):
    registered()
    before = downloaded()
    registered()
    assert downloaded() == before
    keep_gates(tracked.store, NAME, "1", [GATE], Facts.model_validate_json(before["card.json"]).evidence)
    update(tracked.store, NAME, "1")
    assert "| KL from SFT | at most 10 | 11 | **no** |" in downloaded()["card.md"]
    registered(evaluation(kl=7.0))
    files = downloaded()
    assert json.loads(files["evaluation.json"])["kl"] == 7.0
    assert "KL 7.00 nats" in files["card.md"]
    assert "Not checked yet on this evaluation." in files["card.md"]


def test_a_card_cut_short_is_mended_by_the_next_one_who_looks(registered, downloaded, tracked, project):
    registered()
    whole = downloaded()
    (folder,) = [path.parent for path in (project / "mlflow" / "artifacts").rglob("card.json")]
    (folder / "card.json").write_text('{"base": ')
    (folder / "card.md").write_text("# prefl")
    update(tracked.store, NAME, "1")
    assert downloaded()["card.md"] == "# prefl"
    registered()
    assert downloaded() == whole
    (folder / "card.md").unlink()
    update(tracked.store, NAME, "1")
    assert downloaded() == whole


def test_a_version_without_a_card_and_files_out_of_reach_hold_up_nothing(tracked, registered, project, capsys, monkeypatch):
    tracked.store.client.create_registered_model(NAME)
    tracked.store.client.create_model_version(NAME, source=f"file://{project}")
    keep_gates(tracked.store, NAME, "1", [GATE], "")
    update(tracked.store, NAME, "1")
    update(tracked.store, NAME, "9")
    assert by_version(tracked.store, NAME, "1").tags == {}
    registered()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card, "write_beside", full)
    keep_gates(tracked.store, NAME, "2", [GATE], "")
    assert "the card of prefline-policy version 2 could not be written ([Errno 28] No space left on device)" in capsys.readouterr().out


def test_the_ledger_and_the_decision_reach_the_card(registered, downloaded, tracked):
    registered()
    store = tracked.store
    append(store, NAME, line("forced", why="the shop needs it"))
    store.client.set_model_version_tag(NAME, "1", "prefline.decision", "promoted")
    update(store, NAME, "1")
    text = downloaded()["card.md"]
    assert "FORCED" in text
    assert "**Decision: promoted**." in text
    update(store, NAME, "1")
    assert downloaded()["card.md"] == text
