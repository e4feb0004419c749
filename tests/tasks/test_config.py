"""What params.yaml may say, and what is refused before anything runs."""

import pytest
from pydantic import ValidationError

from tasks.config import PipelineConfig

DEFAULTS = PipelineConfig().model_dump(mode="json")
OPEN = {"data.fields", "data.rating"}
"""Tables whose keys are the user's own."""


def nested(path, value):
    """{"a": {"b": value}} for the path "a.b"."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def sections(body, path=""):
    yield path
    for name, value in body.items():
        if isinstance(value, dict) and f"{path}{name}" not in OPEN:
            yield from sections(value, f"{path}{name}.")


def test_every_key_has_a_default_and_survives_being_written_and_read():
    assert PipelineConfig.model_validate(DEFAULTS) == PipelineConfig()


@pytest.mark.parametrize("section", list(sections(DEFAULTS)))
def test_an_unknown_key_is_refused_in_every_section(section):
    with pytest.raises(ValidationError) as caught:
        PipelineConfig.model_validate(nested(f"{section}learning_rat", 1))
    (error,) = caught.value.errors()
    assert error["type"] == "extra_forbidden"
    assert ".".join(error["loc"]) == f"{section}learning_rat"


IMPOSSIBLE = [
    ("policy.kl.target", 0),
    ("policy.kl.target", -6),
    ("policy.kl.horizon", 0),
    ("policy.kl.weight", -0.1),
    ("policy.learning_rate", 0),
    ("policy.learning_rate", float("nan")),
    ("policy.learning_rate", float("inf")),
    ("policy.temperature", 0),
    ("policy.ppo.gamma", 1.01),
    ("policy.ppo.lam", -0.1),
    ("policy.clip", 0),
    ("policy.ppo.value_clip", 0),
    ("policy.rounds", 0),
    ("policy.epochs", 1.5),
    ("policy.score_clip", 0),
    ("policy.stop_kl", 0),
    ("policy.no_stop_penalty", -1),
    ("policy.choose", "reward"),
    ("sft.batch", 0),
    ("sft.warmup", 1.5),
    ("sft.epochs", 0),
    ("sft.learning_rate", "fast"),
    ("sft.weight_decay", -0.1),
    ("sft.clip_gradient", 0),
    ("sft.checkpoint_seconds", -1),
    ("sft.tokens_at_once", 0),
    ("sft.max_demonstrations", 0),
    ("reward_model.centring", -1),
    ("reward_model.max_comparisons", 0),
    ("evaluation.confidence", 1),
    ("evaluation.confidence", 0.5),
    ("evaluation.prompts", 0),
    ("evaluation.temperature", -1),
    ("data.format", "csv"),
    ("data.comparisons", []),
    ("data.split.judge", 0),
    ("data.split.validation", 0),
    ("data.split.test", 1),
    ("contract.ties", 1.1),
    ("contract.identical_pairs.max", -1),
    ("tiny.vocabulary", 256),
    ("seed", -1),
    ("seed", 10**20),
    ("threads", -1),
    ("max_new_tokens", 0),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE, ids=[f"{key}={value}" for key, value in IMPOSSIBLE])
def test_an_impossible_value_is_refused_by_its_key(key, value):
    with pytest.raises(ValidationError) as caught:
        PipelineConfig.model_validate(nested(key, value))
    assert {".".join(map(str, error["loc"])) for error in caught.value.errors()} == {key}


CONTRADICTIONS = {
    "a minibatch that does not divide the answers": ({"policy": {"answers": 100, "minibatch": 64}}, "multiple of minibatch"),
    "a minibatch larger than the answers": ({"policy": {"answers": 8, "minibatch": 16}}, "multiple of minibatch"),
    "too few answers to whiten advantages over": ({"policy": {"answers": 4, "minibatch": 4}}, "at least 8"),
    "a KL target without a weight to steer": ({"policy": {"kl": {"weight": 0, "target": 6}}}, "weight above 0"),
    "splits that leave nothing to train on": ({"data": {"split": {"judge": 0.5, "validation": 0.3, "test": 0.2}}}, "leave at least 0.05"),
    "answers as long as the whole text may be": ({"max_tokens": 48, "max_new_tokens": 48}, "must be below max_tokens"),
    "texts longer than the tiny model reads": ({"max_tokens": 300}, "more than tiny.context"),
    "heads that do not divide the width": ({"tiny": {"width": 100, "heads": 8}}, "multiple of 2 \\* heads"),
    "weights of four bits, spread": (
        {"compute": {"processes": 2, "sharding": "fsdp"}, "adapter": {"rank": 4, "base": "4bit"}, "policy": {"method": "dpo"}},
        "choose one of the two",
    ),
    "sampling with spread weights": ({"compute": {"processes": 2, "sharding": "fsdp"}}, "can't sample"),
    "spread over one process": ({"compute": {"sharding": "fsdp"}}, "at least 2"),
    "a group that does not divide the answers": ({"policy": {"method": "rloo", "group": 3}}, "multiple of group"),
    "k1 as a loss": ({"policy": {"kl": {"place": "loss"}}}, "choose k2 or k3"),
    "four bits without adapters": ({"adapter": {"base": "4bit"}}, "rank of at least 1"),
    "a best look without looks": ({"sft": {"choose": "perplexity"}}, "needs looks of at least 1"),
    "patience that outlasts the looks": ({"sft": {"choose": "perplexity", "looks": 3, "patience": 3}}, "needs more looks"),
    "patience for nothing in particular": ({"sft": {"looks": 9, "patience": 2}}, "say what is better"),
    "patience for no better judge": ({"judge": {"looks": 9, "patience": 2}}, "say what is better"),
    "bounds the wrong way round": ({"contract": {"longer_chosen": [0.8, 0.2]}}, "lower and an upper"),
}


@pytest.mark.parametrize(("body", "says"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_values_that_contradict_each_other_are_refused(body, says):
    with pytest.raises(ValidationError, match=says):
        PipelineConfig.model_validate(body)


EDGES = [
    ("policy.kl.weight", 0),
    ("policy.kl.target", 6),
    ("policy.ppo.gamma", 1),
    ("policy.ppo.lam", 0),
    ("sft.warmup", 0),
    ("evaluation.temperature", 0),
    ("seed", 2**31 - 1),
]


@pytest.mark.parametrize(("key", "value"), EDGES, ids=[f"{key}={value}" for key, value in EDGES])
def test_a_value_at_the_edge_is_taken(key, value):
    found = PipelineConfig.model_validate(nested(key, value))
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_the_context_of_tiny_llama_does_not_bind_other_models():
    assert PipelineConfig(model="gpt2", max_tokens=300).max_tokens == 300


def test_a_configuration_can_not_be_changed_once_read():
    with pytest.raises(ValidationError, match="frozen"):
        PipelineConfig().seed = 1
