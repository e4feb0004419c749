"""The configuration's way in, and what it says about mistakes."""

import pytest

from flows.settings import load_config, project_root
from tasks.config import PipelineConfig
from tasks.errors import ConfigError


@pytest.fixture
def root(tmp_path):
    text = "seed: 3\npolicy:\n  rounds: 10\n  kl:\n    weight: 0.2\ndata:\n  comparisons: [a.jsonl, b.jsonl]\n"
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def refusal(root, *overrides, files=()):
    with pytest.raises(ConfigError) as error:
        load_config(root, files, overrides)
    assert error.value.exit_code == 2
    return str(error.value)


def test_the_root_is_found_from_below(root):
    (root / "a" / "b").mkdir(parents=True)
    assert project_root(root / "a" / "b") == root


def test_outside_a_project(tmp_path):
    with pytest.raises(ConfigError, match=r"no params\.yaml"):
        project_root(tmp_path)


def test_layers_merge_key_by_key_and_lists_are_replaced(root):
    (root / "over.yaml").write_text("policy:\n  kl:\n    target: 4\ndata:\n  comparisons: [c.jsonl]\n")
    config = load_config(root, [root / "over.yaml"], ["policy.rounds=20", "sft.learning_rate=5e-4", "policy.kl.target=null"])
    assert (config.seed, config.policy.rounds, config.policy.kl.weight, config.policy.kl.target) == (3, 20, 0.2, None)
    assert config.data.comparisons == ["c.jsonl"]
    assert config.sft.learning_rate == 5e-4


def test_an_empty_file_and_empty_sections_mean_the_defaults(tmp_path):
    (tmp_path / "params.yaml").write_text("")
    assert load_config(tmp_path) == PipelineConfig()
    (tmp_path / "params.yaml").write_text("policy:\n  # rounds: 3\ndata:\n  builtin:\n")
    assert load_config(tmp_path) == PipelineConfig()


def test_a_misspelt_key_names_file_and_the_closest_one(root):
    (root / "over.yaml").write_text("policy:\n  rouds: 3\n")
    assert (
        refusal(root, files=[root / "over.yaml"]) == f"{root / 'over.yaml'}: there is no key policy.rouds.\n  Did you mean policy.rounds?"
    )


def test_a_key_in_the_wrong_section_is_found_elsewhere(root):
    assert "Did you mean policy.kl.horizon?" in refusal(root, "policy.horizon=3")
    assert "sft.epochs" in refusal(root, "epochs=3")


def test_an_unknown_section_lists_what_there_is(root):
    text = refusal(root, "zzzz.qqqq=1")
    assert text.startswith("--set zzzz.qqqq=1: there is no key zzzz.")
    assert "Keys at the top: seed, model," in text


def test_an_impossible_value_names_its_origin_key_and_what_was_expected(root):
    assert refusal(root, "policy.rounds=0").startswith(
        "--set policy.rounds=0: policy.rounds is 0: input should be greater than or equal to 1."
    )
    (root / "params.yaml").write_text("policy:\n  learning_rate: fast\n")
    assert refusal(root).startswith("params.yaml: policy.learning_rate is 'fast': input should be a valid number")


def test_values_that_do_not_fit_together(root):
    assert "answers (100) must be a multiple of minibatch (64)" in refusal(root, "policy.answers=100")


def test_several_mistakes_are_told_at_once(root):
    text = refusal(root, "policy.rounds=0", "policy.rouds=1", "seed=x")
    assert all(part in text for part in ("policy.rounds is 0", "no key policy.rouds", "seed is 'x'"))


def test_an_override_that_is_none(root):
    assert "expected KEY=VALUE" in refusal(root, "policy.rounds")
    assert "expected KEY=VALUE" in refusal(root, "policy..rounds=3")
    assert "not YAML" in refusal(root, "model=[")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "over.yaml, line 2: the key 'seed' is there twice."),
        ("policy:\n  rounds: [1\n", "over.yaml, line "),
        ("- a\n- b\n", "over.yaml holds a list"),
        ("seed: 1\n\tmodel: x\n", "over.yaml, line 2:"),
    ],
)
def test_bad_yaml_names_file_and_line(root, text, expected):
    (root / "over.yaml").write_text(text)
    assert expected in refusal(root, files=[root / "over.yaml"])


def test_a_file_that_is_missing_or_not_text(root):
    assert "can't be read: No such file" in refusal(root, files=[root / "none.yaml"])
    assert "can't be read: Is a directory" in refusal(root, files=[root])
    (root / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "not UTF-8" in refusal(root, files=[root / "bytes.yaml"])
