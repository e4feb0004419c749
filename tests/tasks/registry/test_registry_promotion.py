"""From results to a champion: baseline, register, promote, on a real registry."""

import json
import shutil
from pathlib import Path

import pytest

from tasks.config import PipelineConfig
from tasks.errors import ConfigError, PreflineError
from tasks.registry.ask import ask
from tasks.registry.baseline import Baseline, Besides, baseline
from tasks.registry.beside import read_beside
from tasks.registry.by_hand import approve, force
from tasks.registry.champion import by_alias
from tasks.registry.decision import Decision
from tasks.registry.gates import PromotionPolicy
from tasks.registry.ledger import read_ledger
from tasks.registry.promote import promote
from tasks.registry.register import register
from tasks.registry.told import describe_champion
from tasks.stage import Context

NAME = "prefline-policy"


@pytest.fixture
def finish(line, tracked, run_stage):
    """finish(policy, evaluation) -> (decision, baseline): the line's last four stages for a policy of that number."""

    def stages(policy=0, evaluation=None, compare_with=None, validate=None):
        results = line(policy, evaluation)
        results["validate"] = validate or results["validate"]
        found = compare_with or run_stage(baseline, tracked, sft=results["sft"], policy=results["policy"])
        results["baseline"] = found
        registered = run_stage(register, tracked, **{key: results[key] for key in register.inputs})
        keys = ("data", "validate", "baseline", "evaluate")
        promoted = run_stage(promote, tracked, register=registered, **{key: results[key] for key in keys})
        return Decision.load(promoted.path), found

    return stages


def aliases(tracked):
    found = {alias: by_alias(tracked.store, NAME, alias) for alias in ("champion", "challenger", "previous")}
    return {alias: str(version.version) for alias, version in found.items() if version}


def card_of(tracked, version):
    return read_beside(tracked.store, tracked.store.client.get_model_version(NAME, version), "card.md")


def versions(tracked, name=NAME):
    return sorted(int(version.version) for version in tracked.store.client.search_model_versions(f"name = '{name}'"))


def test_the_first_policy_becomes_champion_and_answers(tracked, finish, data):
    decision, opponent = finish()
    assert decision.decision == "promoted"
    assert Baseline.load(opponent.path).name == "SFT model"
    assert not (opponent.path / "model").exists()
    assert aliases(tracked) == {"champion": "1"}
    champion = by_alias(tracked.store, NAME, "champion")
    assert champion.tags["prefline.git_commit"] == tracked.lineage.commit
    assert champion.tags["prefline.dataset_md5"].endswith(".dir")
    assert champion.tags["prefline.baseline_version"] == ""
    assert champion.tags["prefline.method"] == "ppo"
    (entry,) = read_ledger(tracked.store, NAME)
    assert (entry.action, entry.version, entry.previous, entry.run) == ("promoted", "1", None, tracked.run_id)
    reply = ask(tracked.store, NAME, "How warm is the red lamp?", max_new_tokens=4)
    assert reply.version == "1"
    shown = describe_champion(tracked.store, NAME)
    assert "version 1" in shown
    card = Path(shown.partition("Its card: ")[2].splitlines()[0]).read_text()
    assert "**Decision: promoted**." in card
    assert "| dataset | validated | validated | yes |" in card
    assert f": promoted by {entry.who}: {entry.why}" in card
    finish()
    assert card_of(tracked, "1").count("yes |") == card.count("yes |") - 2  # without the gates about the champion before


def test_all_three_models_load_by_name_as_mlflow_models(tracked, finish, monkeypatch):
    import mlflow.transformers
    import torch

    from tasks.training.models import REWARD_BIAS

    finish()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.store.uri)
    for reference in (f"models:/{NAME}@champion", "models:/prefline-sft/1"):
        parts = mlflow.transformers.load_model(reference, return_type="components")
        assert parts["model"].generate(torch.tensor([[2, 3]]), max_new_tokens=2).shape[0] == 1
    scorer = mlflow.transformers.load_model("models:/prefline-reward-model/1", return_type="components")["model"]
    assert getattr(scorer.config, REWARD_BIAS) == 0.5


def test_of_an_ensemble_the_first_member_is_registered_and_says_so(tracked, line, run_stage, make, tokenizer, policy_folder):
    from tasks.training.ensemble import Ensemble
    from tasks.training.models import RewardModel

    results = line()
    members = [RewardModel.from_policy(policy_folder, seed) for seed in (1, 2)]
    results["reward_model"] = make("reward_model", lambda out: Ensemble(members, "min", 1.0).save(tokenizer, out / "model"), salt=1)
    run_stage(register, tracked, **{key: results[key] for key in register.inputs})
    version = tracked.store.client.get_model_version("prefline-reward-model", "1")
    assert version.tags["prefline.ensemble"] == "member 1 of 2; policies were trained on their min"


def test_registering_twice_makes_one_version(tracked, line, run_stage):
    results = line()
    inputs = {key: results[key] for key in register.inputs}
    first = run_stage(register, tracked, **inputs)
    second = run_stage(register, tracked, **inputs)
    assert versions(tracked) == versions(tracked, "prefline-sft") == versions(tracked, "prefline-reward-model") == [1]
    assert second.skipped == "registered already"
    assert json.loads((second.path / "version.json").read_text()) == json.loads((first.path / "version.json").read_text())


def test_an_identical_run_meets_the_same_opponent_and_changes_nothing(tracked, finish):
    _, first = finish()
    decision, second = finish()
    assert decision.decision == "already champion"
    assert second.digest == first.digest
    assert aliases(tracked) == {"champion": "1"}
    assert len(read_ledger(tracked.store, NAME)) == 1


def test_a_better_policy_takes_the_place_and_the_old_one_is_remembered(tracked, finish, evaluation):
    finish(policy=0)
    decision, opponent = finish(policy=1, evaluation=evaluation(baseline="champion, version 1", baseline_version="1"))
    assert "version 2 took over (promoted)" in card_of(tracked, "1")
    assert Baseline.load(opponent.path).version == "1"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (opponent.path / "model").iterdir()}
    assert decision.decision == "promoted"
    assert decision.previous == "1"
    assert aliases(tracked) == {"champion": "2", "previous": "1"}
    assert [entry.version for entry in read_ledger(tracked.store, NAME)] == ["1", "2"]
    again, same = finish(policy=1, evaluation=evaluation(baseline="champion, version 1", baseline_version="1"))
    assert again.decision == "already champion"
    assert same.digest == opponent.digest


def test_other_versions_to_compare_with(tracked, finish, line, project, evaluation):
    finish(policy=0)
    finish(policy=1, evaluation=evaluation(baseline="champion, version 1", baseline_version="1"))
    results = line(2)

    def compared(*against):
        config = PipelineConfig(evaluation={"against": against})
        inputs = {"sft": results["sft"], "policy": results["policy"]}
        return baseline.run(config, inputs, Context(project, project / "runs", [tracked])).path

    found = compared("previous", 1, "champion")
    assert (Baseline.load(found).version, Baseline.load(found).against) == ("2", [Besides(name="version 1", version="1")])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (found / "against" / "1").iterdir()}
    for missing, said in (("9", "no version 9"), ("best", "no alias best")):
        with pytest.raises(ConfigError, match=f"evaluation.against: {NAME} has {said}"):
            compared(missing)


def test_a_worse_policy_stays_challenger(tracked, finish, evaluation, interval):
    finish(policy=0)
    decision, _ = finish(policy=1, evaluation=evaluation(baseline_version="1", win_rate=interval(0.4, 0.3, 0.5)))
    assert decision.decision == "not promoted"
    assert decision.reasons == ["win rate over SFT model: required lower bound above 0.50, found 0.400 (0.300 to 0.500)"]
    assert aliases(tracked) == {"champion": "1", "challenger": "2"}
    assert len(read_ledger(tracked.store, NAME)) == 1
    assert "Version 2 is challenger: not promoted (win rate over SFT model" in describe_champion(tracked.store, NAME)
    assert "**Decision: not promoted**: win rate over SFT model: required lower bound above 0.50" in card_of(tracked, "2")
    force(tracked.store, NAME, "2", "ada", "the shop needs it", PromotionPolicy())
    assert card_of(tracked, "2").split("\n\n")[1].startswith('> **<span style="color: #c00">FORCED</span>** by **ada** on ')
    assert "| win rate over SFT model | lower bound above 0.50 | 0.400 (0.300 to 0.500) | **no** |" in card_of(tracked, "2")


def test_where_a_person_has_the_last_word_the_version_waits(tracked, finish, project):
    policy = project / "mlflow" / "promotion.yaml"
    policy.write_text(policy.read_text().replace("approval: false", "approval: true").replace("git_tree: true", "git_tree: false"))
    decision, _ = finish()
    assert decision.decision == "awaiting approval"
    assert aliases(tracked) == {"challenger": "1"}
    assert read_ledger(tracked.store, NAME) == []
    approve(tracked.store, NAME, "1", "ada", "read twenty answers", PromotionPolicy())
    assert aliases(tracked) == {"champion": "1"}
    assert finish()[0].decision == "already champion"


def test_a_champion_that_changed_since_the_comparison_is_not_overthrown(tracked, finish, evaluation):
    _, against_sft = finish(policy=0)
    decision, _ = finish(policy=1, compare_with=against_sft)
    assert decision.decision == "not promoted"
    assert [gate.name for gate in decision.gates if not gate.passed] == ["champion since the comparison"]
    assert aliases(tracked) == {"champion": "1", "challenger": "2"}


def test_a_deleted_champion_is_for_a_person_to_replace(tracked, finish):
    finish(policy=0)
    tracked.store.client.delete_model_version(NAME, "1")
    assert by_alias(tracked.store, NAME, "champion") is None
    decision, opponent = finish(policy=1)
    assert Baseline.load(opponent.path).version is None
    assert decision.decision == "not promoted"
    (gate,) = (gate for gate in decision.gates if not gate.passed)
    assert (gate.name, gate.required) == ("champion on record", "version 1, as the ledger says")
    assert gate.found.startswith("none: deleted, or the alias moved by hand.")
    with pytest.raises(
        PreflineError, match=r"version 1 is champion by the ledger, but it was deleted.*\n  prefline rollback --to VERSION .*--force"
    ):
        describe_champion(tracked.store, NAME)
    force(tracked.store, NAME, "2", "ada", "the old one is gone", PromotionPolicy())
    assert aliases(tracked) == {"champion": "2"}
    assert finish(policy=1)[0].decision == "already champion"


def test_a_champion_whose_files_are_gone_is_named(tracked, finish, project):
    finish(policy=0)
    shutil.rmtree(project / "mlflow" / "artifacts" / "models")
    with pytest.raises(PreflineError, match=r"prefline-policy version 1 can't be read"):
        finish(policy=1)


def test_what_can_not_be_traced_is_refused(tracked, finish, line, project, make, evaluation):
    (project / "params.yaml").write_text("seed: 7\n")
    (project / "data" / "snapshots" / "prepared.dvc").unlink()
    other, validated = make("snapshot", lambda out: (out / "other").touch(), salt=1), line(evaluation=evaluation(prompts=199))["validate"]
    unvalidated = make("validate", lambda out: shutil.copytree(validated.path, out, dirs_exist_ok=True), salt=1, data=other)
    unvalidated = unvalidated.model_copy(update={"metrics": validated.metrics})
    decision, _ = finish(evaluation=evaluation(prompts=199), validate=unvalidated)
    assert {gate.name: gate.found for gate in decision.gates if not gate.passed} == {
        "held-out prompts": "199",
        "git tree": "changed: params.yaml",
        "dataset": "not validated",
        "version of the dataset": "no file of the project names it: it could not be brought back",
    }
    assert aliases(tracked) == {"challenger": "1"}


def test_no_champion_is_said_in_a_friendly_way(tracked):
    with pytest.raises(PreflineError, match="no champion yet"):
        ask(tracked.store, NAME, "Hello?", max_new_tokens=4)
    with pytest.raises(PreflineError, match="has no version 9"):
        ask(tracked.store, NAME, "Hello?", max_new_tokens=4, version="9")
    with pytest.raises(PreflineError, match="No version is registered yet"):
        describe_champion(tracked.store, NAME)
