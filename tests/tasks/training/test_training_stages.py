"""Base model and SFT as stages, on a toy set: what they read, what they leave, and that a kill changes nothing."""

import json

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from tasks.data.encoding import load_tokenizer
from tasks.errors import ConfigError, PreflineError
from tasks.training.models import load_policy, save
from tasks.training.sft import perplexity, sft_rows


def weights(result):
    return (result.path / "model" / "model.safetensors").read_bytes()


def test_sft_learns_from_demonstrations_of_train_and_judge_alone(line):
    metrics = line["sft"].metrics
    assert (metrics["demonstrations"], metrics["left_out"]) == (9, 0)
    assert metrics["perplexity"] < metrics["perplexity_before"] / 2


def test_the_rankings_have_no_part_in_sft(line, make_line, tmp_path):
    other = make_line(tmp_path, turned={"train", "judge", "validation", "test"})
    assert weights(other["sft"]) == weights(line["sft"])


def test_a_limit_on_the_demonstrations_holds(line, toy):
    assert line.run("sft", toy(sft={"max_demonstrations": 4})).metrics["demonstrations"] == 4


@pytest.mark.parametrize("step", [3, 20])
def test_sft_that_was_killed_ends_in_the_very_files_of_an_unbroken_run(line, tmp_path, step):
    line.kill("sft", step, tmp_path)
    resumed = line.run("sft", runs=tmp_path)
    assert resumed.digest == line["sft"].digest
    assert resumed.metrics == line["sft"].metrics


def test_another_seed_gives_other_models(line, toy):
    other = toy(seed=1)
    assert weights(line.run("base", other)) != weights(line["base"])
    assert weights(line.run("sft", other)) != weights(line["sft"])  # from the same base: in another order


def test_texts_longer_than_the_base_model_reads_are_refused_before_training(line, toy):
    config = toy(model=str(line["base"].path / "model"), max_tokens=65)
    with pytest.raises(ConfigError, match=r"65 is more than .* can read .64 tokens"):
        line.run("base", config)


# What the section's keys do ------------------------------------------------------------------------------------------


def looks_of(result):
    return [json.loads(row)["perplexity"] for row in (result.path / "looks.jsonl").read_text().splitlines()]


def measured(line, result):
    """The perplexity of a stage's model on the validation split, from its files."""
    model, tokenizer = load_policy(result.path / "model"), load_tokenizer(result.path / "model")
    rows, _ = sft_rows(line.data.demonstrations("validation"), tokenizer, 60)
    return perplexity(model, rows)


OVERSHOOTS = {"schedule": "constant", "looks": 5, "checkpoint_seconds": 60}
"""Steps that stay so long that the validation split is best off after 12 of 30."""


def test_the_looks_are_kept_and_reported_where_they_were_made(line, toy, tmp_path):
    result, reported = line.reported("sft", tmp_path, toy(sft={"looks": 3}))
    seen = {step: metrics["perplexity"] for step, metrics in reported if "perplexity" in metrics}
    assert list(seen) == [10, 20, 30]  # of 30 steps: 2 an epoch
    assert list(seen.values()) == looks_of(result)
    assert looks_of(result)[-1] == pytest.approx(result.metrics["perplexity"]) == pytest.approx(measured(line, result))
    assert weights(result) == weights(line["sft"])  # to look changes nothing
    assert not (line["sft"].path / "looks.jsonl").exists()


def test_the_weights_of_the_best_look_are_kept_where_that_is_asked_for(line, toy):
    last = line.run("sft", toy(sft=OVERSHOOTS))
    best = line.run("sft", toy(sft=OVERSHOOTS | {"choose": "perplexity"}))
    looks = looks_of(last)
    assert looks == looks_of(best)
    assert min(looks) < looks[-1]
    assert best.metrics["chosen_look"] == 1 + looks.index(min(looks))
    assert best.metrics["perplexity"] == pytest.approx(min(looks)) == pytest.approx(measured(line, best))
    assert last.metrics["perplexity"] == pytest.approx(looks[-1])


def test_training_ends_when_looks_find_nothing_better(line, toy):
    patient = line.run("sft", toy(sft=OVERSHOOTS | {"choose": "perplexity", "patience": 2}))
    looks = looks_of(patient)
    assert len(looks) == 4
    assert looks.index(min(looks)) == len(looks) - 3
    assert patient.metrics["steps"] == 24


@pytest.mark.parametrize("step", [6, 25])
def test_a_kill_changes_neither_the_looks_nor_the_choice(line, toy, tmp_path, step):
    whole = line.run("sft", toy(sft=OVERSHOOTS | {"choose": "perplexity"}))
    config = toy(sft=OVERSHOOTS | {"choose": "perplexity", "checkpoint_seconds": 0})
    line.kill("sft", step, tmp_path, config)
    resumed = line.run("sft", config, runs=tmp_path)
    assert (resumed.digest, resumed.metrics) == (whole.digest, whole.metrics)


def windowed(line, folder, window):
    """A model with a sliding window, whose rows are not laid end to end."""
    tokenizer = load_tokenizer(line["base"].path / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    save(MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), sliding_window=window, **shape)), tokenizer, folder)
    return str(folder)


def test_packing_learns_the_same(line, toy, tmp_path):
    model = windowed(line, tmp_path / "wide", window=4096)
    base = line.run("base", toy(model=model))
    packed, plain = (line.run("sft", toy(model=model, sft={"packing": packing}), base=base) for packing in (True, False))
    assert packed.metrics == pytest.approx(plain.metrics, rel=1e-2)
    assert weights(packed) != weights(plain)  # sums in another order


def test_rows_that_lie_end_to_end_need_no_packing(line, toy):
    assert weights(line.run("sft", toy(sft={"packing": True}))) == weights(line["sft"])


def test_packing_is_refused_for_a_model_that_mixes_texts_up(line, toy, tmp_path):
    config = toy(model=windowed(line, tmp_path / "narrow", window=4), sft={"packing": True})
    with pytest.raises(ConfigError, match=r"sft\.packing: MistralForCausalLM"):
        line.run("sft", config, base=line.run("base", config))


def test_every_turn_of_the_assistant_is_trained_where_that_is_asked_for(make_line, toy, tmp_path):
    greeted = make_line(tmp_path, greeted=True)
    every = greeted.run("sft", toy(sft={"trained": "assistant"}))
    assert every.metrics["demonstrations"] == greeted["sft"].metrics["demonstrations"] == 9
    assert weights(every) != weights(greeted["sft"])
    assert every.metrics["perplexity"] < greeted["sft"].metrics["perplexity"]  # the greeting is easy, and counts


def test_in_conversations_of_one_turn_every_turn_is_the_answer(line, toy):
    assert weights(line.run("sft", toy(sft={"trained": "assistant"}))) == weights(line["sft"])


def test_demonstrations_that_are_all_too_long_are_refused(line, toy):
    with pytest.raises(PreflineError, match=r"All 9 demonstrations are longer than max_tokens \(10\): the shortest has"):
        line.run("sft", toy(max_tokens=10))
