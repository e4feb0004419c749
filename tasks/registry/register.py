"""The models of a run become versions in MLflow's registry: policy, reward model and SFT model.

A version is found again by the hash of its files, so that a step that is tried twice makes one version.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.data.encoding import load_tokenizer
from tasks.data.snapshot import dataset
from tasks.evaluation.result import JUDGES, Evaluation
from tasks.registry import card, facts
from tasks.registry.baseline import BASELINE_VERSION, POLICY_DIGEST, Baseline
from tasks.registry.beside import MODEL_ID, write_beside, write_files
from tasks.registry.champion import DIGEST
from tasks.registry.flavor import ChatDefaults, Task, save_flavor
from tasks.registry.lineage import Lineage
from tasks.registry.software import BILL, software_bill
from tasks.registry.states import STATE
from tasks.registry.store import REGISTRY_LOCK, first_come, talking_to
from tasks.registry.succession import challenge, mend, with_forced
from tasks.registry.tracking import MLflowRun, lineage_tags
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.ensemble import ensemble_tag
from tasks.training.models import RewardModel, load_policy

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

METHOD = "prefline.method"
"""Tag of a policy's version: policy.method, by which it was optimised."""
VERSION = "version.json"


@dataclass(frozen=True)
class Entry:
    """A model to register. digest: of its stage's files. load: its weights from folder, as a transformers model.

    files: texts to lie beside it, by file name. defaults: of requests, where it chats.
    """

    name: str
    folder: Path
    digest: str
    task: Task
    kind: str
    about: str
    load: Callable[[Path], Any]
    tags: dict[str, str]
    files: dict[str, str]
    description: str = ""
    defaults: ChatDefaults | None = None


@stage("register", reads=("names", *facts.READS), package="registry", cached=False)
def register(
    config: Settings,
    *,
    data: StageResult,
    base: StageResult,
    validate: StageResult,
    sft: StageResult,
    reward_model: StageResult,
    policy: StageResult,
    baseline: StageResult,
    evaluate: StageResult,
    run: StageRun,
) -> Metrics:
    """Register what is new, tag the versions with where they come from, write the policy's card, make it the challenger.

    Writes version.json: the versions by model name, and the policy's under "policy".
    """
    tracked = MLflowRun.watching(run)
    md5 = dataset(data, run.root).md5
    origin = {**lineage_tags(tracked.lineage), "prefline.dataset_md5": md5, "prefline.pipeline_run": tracked.run_id}
    evaluation, opponent = Evaluation.load(evaluate.path), Baseline.load(baseline.path)
    evidence = {
        POLICY_DIGEST: policy.digest,
        METHOD: config.policy.method,
        "prefline.evaluation_digest": evaluate.digest,
        BASELINE_VERSION: opponent.version or "",
    }
    known = facts.gather(config, tracked, data=data, base=base, validate=validate, evaluate=evaluate)
    defaults = ChatDefaults(config.max_new_tokens, config.evaluation.temperature)

    def bill(name: str, made: StageResult) -> dict[str, str]:
        return {BILL: software_bill(name, made.digest[:12], tracked.lineage.commit)}

    entries = (
        Entry(
            config.names.policy,
            policy.path / "model",
            policy.digest,
            "llm/v1/chat",
            "policy",
            POLICY_ABOUT,
            load_policy,
            {**origin, **evidence},
            bill(config.names.policy, policy) | card.files_beside(known, evaluation),
            describe_policy(evaluation, config.policy.method, tracked.lineage, md5),
            defaults,
        ),
        Entry(
            config.names.reward_model,
            reward_model.path / "model",
            reward_model.digest,
            "text-classification",
            "reward model",
            REWARD_ABOUT,
            _load_reward_model,
            origin | ensemble_tag(reward_model.path / "model"),
            bill(config.names.reward_model, reward_model),
        ),
        Entry(
            config.names.sft,
            sft.path / "model",
            sft.digest,
            "llm/v1/chat",
            "SFT model",
            SFT_ABOUT,
            load_policy,
            origin,
            bill(config.names.sft, sft),
            defaults=defaults,
        ),
    )
    versions, made = {}, 0
    with talking_to(tracked.store.uri), first_come(run.root, REGISTRY_LOCK):
        mend(tracked.store, config.names.policy)
        for done, entry in enumerate(entries):
            run.report(done, len(entries))
            version, new = _ensure(tracked, entry, run.stage)
            versions[entry.name] = str(version.version)
            made += new
        card.update(tracked.store, config.names.policy, versions[config.names.policy])
        challenge(tracked.store, config.names.policy, versions[config.names.policy])
        tracked.store.client.log_artifact(tracked.child(run.stage), str(evaluate.path / "evaluation.json"))
    if not made:
        run.nothing_to_do = "registered already"
    summary = {"policy": versions[config.names.policy], "model": config.names.policy, "versions": versions}
    (run.out / VERSION).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return {"version": float(versions[config.names.policy]), "new_versions": float(made)}


def _load_reward_model(folder: Path) -> Any:
    return RewardModel.load(folder).body


def _ensure(tracked: MLflowRun, entry: Entry, stage_name: str) -> tuple[ModelVersion, bool]:
    """The version with the entry's digest, and whether it had to be made. Tags and files are brought up to date."""
    client = tracked.store.client
    _ensure_model(tracked, entry)
    found = client.search_model_versions(f"name = '{entry.name}' and tag.`{DIGEST}` = '{entry.digest}'")
    if not found:
        return _make(tracked, entry, stage_name), True
    version = max(found, key=lambda version: int(version.version))
    write_beside(tracked.store, version, entry.files)
    for key, value in entry.tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(entry.name, version.version, key, value)
    description = with_forced(entry.description, version.tags)
    if entry.description and version.description != description:
        client.update_model_version(entry.name, version.version, description)
    return version, False


def _ensure_model(tracked: MLflowRun, entry: Entry) -> None:
    from mlflow.exceptions import MlflowException

    try:
        tracked.store.client.create_registered_model(entry.name, description=entry.about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _make(tracked: MLflowRun, entry: Entry, stage_name: str) -> ModelVersion:
    """Save the model in MLflow's transformers flavor, log it on the stage's run, and register it."""
    from mlflow.entities import LoggedModelOutput

    client, run_id = tracked.store.client, tracked.child(stage_name)
    logged = client.create_logged_model(
        tracked.store.experiment, name=entry.kind.replace(" ", "-"), source_run_id=run_id, model_type=entry.kind
    )
    with tempfile.TemporaryDirectory() as folder:
        _save(entry, Path(folder) / "model", run_id, logged)
        write_files(Path(folder) / "model", entry.files)
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    for run in (run_id, tracked.run_id):
        client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
    return client.create_model_version(
        entry.name,
        source=logged.artifact_location,
        run_id=run_id,
        model_id=logged.model_id,
        tags={DIGEST: entry.digest, MODEL_ID: logged.model_id, STATE: "registered", **entry.tags},
        description=entry.description or None,
    )


def _save(entry: Entry, folder: Path, run_id: str, logged: Any) -> None:
    """The version's MLflow model folder."""
    from mlflow.models import Model

    save_flavor(
        entry.load(entry.folder),
        load_tokenizer(entry.folder),
        folder,
        task=entry.task,
        name=f"{entry.name} {entry.digest[:12]}",
        logged=Model(artifact_path=logged.artifact_location, run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id),
        defaults=entry.defaults,
    )


# What people read -----------------------------------------------------------------------------------------------------

POLICY_ABOUT = (
    "The language model that this pipeline trains: SFT, then optimised for what people prefer.\n\n"
    "- `champion`: in use. `challenger`: the newest that is not. `previous`: the champion before.\n"
    "- Load it: `mlflow.transformers.load_model('models:/NAME@champion')`, or `prefline ask \"...\"`.\n"
    "- Serve it: `mlflow models serve --model-uri models:/NAME@champion --env-manager local`, which answers chat requests.\n"
    "- Tags of a version: its data (DVC md5), git commit, configuration, method, and the evaluation that it was judged by.\n"
    "- Beside the model: `card.md` (what it is, what it fails at, what became of it), `evaluation.json` with its schema, "
    "`software.cdx.json` (what it was made with). `mlflow artifacts download -u models:/NAME@champion` brings them all."
)
REWARD_ABOUT = (
    "Scores an answer: trained on human comparisons, read at the answer's last token.\n\n"
    "Its config.json holds `prefline_reward_bias`, to be added to each score, and `prefline_reward_temperature`, by which a difference of "
    "scores is to be divided where it should say how sure it is. Policies of the same pipeline run were trained on it; where a version "
    "has the tag `prefline.ensemble`, it is the first of several that they were trained on together."
)
SFT_ABOUT = "The base model after supervised fine-tuning on demonstrations: where every method starts, and what KL is measured from."


def describe_policy(evaluation: Evaluation, method: str, lineage: Lineage, dataset_md5: str) -> str:
    """A version's description, in Markdown."""
    win = evaluation.win_rate
    return (
        f"Win rate over {evaluation.baseline}: **{win.rate:.3f}** ({win.low:.3f} to {win.high:.3f}) on {evaluation.prompts} held-out "
        f"prompts, by the word of: {JUDGES[evaluation.decided_by]}.\n\n"
        f"- KL from SFT: {evaluation.kl:.2f} nats a sequence; method `{method}`, round {evaluation.chosen_round} of {evaluation.rounds}\n"
        f"- data: DVC md5 `{dataset_md5}`\n"
        f"- code: git `{lineage.commit[:12]}`{' with changes' if lineage.dirty else ''}; configuration `{lineage.config}`"
    )
