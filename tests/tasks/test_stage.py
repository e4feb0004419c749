"""The stage contract: what decides a result, what is left behind, and who does the work."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

import tasks.stage
from tasks.config import PipelineConfig, PolicyConfig
from tasks.errors import EXIT_ENVIRONMENT, EnvironmentRefused, PreflineError
from tasks.stage import Context, Stage, StageResult, code_digest, finite, read_result, stage

ROOT = Path(__file__).parents[2]
CONFIG = PipelineConfig()


class Recorder:
    """Notes what a stage tells its observers."""

    def __init__(self):
        self.told = []

    def started(self, stage, key, settings):
        self.told.append(("started", stage, settings))

    def progressed(self, stage, done, total, metrics):
        self.told.append(("progressed", done, total, metrics))

    def finished(self, result):
        self.told.append(("finished", result.stage))

    def failed(self, stage, error):
        self.told.append(("failed", stage, type(error).__name__))


@pytest.fixture
def context(tmp_path):
    return Context(root=tmp_path, runs=tmp_path / "runs", observers=[Recorder()])


@pytest.fixture
def work():
    """A stage that writes a file and counts how often it ran."""
    ran = []

    @stage("copy", reads=("seed", "sft"), package="training")
    def body(config, *, data, run):
        ran.append(config.seed)
        (run.out / "model").mkdir()
        (run.out / "model" / "weights").write_text(f"{config.seed} {data.digest}")
        run.report(1, 2, loss=0.5)
        return {"loss": 0.25, "rows": 3}

    return body, ran


def result(digest="d1"):
    return StageResult(stage="data", key="k", path=Path("/nowhere"), digest=digest, metrics={}, seconds=0.0)


def failing(error, writes=True):
    @stage("fails", reads=(), package="data")
    def body(config, *, run):
        if writes:
            (run.out / "rejects.jsonl").write_text("{}\n")
        (run.checkpoints).mkdir(exist_ok=True)
        (run.checkpoints / "at").write_text("step 7")
        raise error

    return body


def left_in(context, name):
    return sorted(path.name for path in (context.runs / "stages" / name).iterdir() if path.suffix != ".lock")


# Skipping --------------------------------------------------------------------------------------------------------------


def test_work_is_done_once_and_then_found(work, context):
    body, ran = work
    first = body.run(CONFIG, {"data": result()}, context)
    second = body.run(CONFIG, {"data": result()}, context)
    assert ran == [0]
    assert (first.skipped, second.skipped) == ("", "unchanged")
    assert first == second.model_copy(update={"skipped": ""})
    assert (first.path / "model" / "weights").read_text() == "0 d1"
    assert first.metrics == {"loss": 0.25, "rows": 3.0}


CHANGES = {
    "the seed it reads": (CONFIG.model_copy(update={"seed": 1}), "d1", True),
    "a key in a section it reads": (PipelineConfig.model_validate({"sft": {"epochs": 2}}), "d1", True),
    "an input": (CONFIG, "d2", True),
    "a section it does not read": (PipelineConfig(policy=PolicyConfig(rounds=7)), "d1", False),
}


@pytest.mark.parametrize(("config", "digest", "again"), CHANGES.values(), ids=CHANGES)
def test_work_is_done_again_only_where_what_decides_it_changed(work, context, config, digest, again):
    body, ran = work
    first = body.run(CONFIG, {"data": result()}, context)
    second = body.run(config, {"data": result(digest)}, context)
    assert len(ran) == (2 if again else 1)
    assert (first.key != second.key) is again
    assert body.run(CONFIG, {"data": result()}, context).skipped == "unchanged"  # back again: a hit
    assert len(ran) == (2 if again else 1)


def test_where_an_input_lies_and_how_long_it_took_decide_nothing(work, context):
    body, _ = work
    elsewhere = result().model_copy(update={"path": Path("/elsewhere"), "seconds": 9.0, "skipped": "unchanged", "metrics": {"a": 1.0}})
    assert body.key(CONFIG, {"data": result()}, context.root) == body.key(CONFIG, {"data": elsewhere}, context.root)


def test_a_file_that_the_configuration_names_is_part_of_the_key(context):
    body = stage("reads", reads=("contract",), package="data", files=("contract.evaluation_sets",))(lambda config, *, run: {"rows": 1.0})
    config = PipelineConfig.model_validate({"contract": {"evaluation_sets": ["exam.jsonl"]}})
    missing = body.key(config, {}, context.root)
    (context.root / "exam.jsonl").write_text("one")
    first = body.run(config, {}, context)
    assert first.key != missing
    assert body.run(config, {}, context).skipped == "unchanged"
    (context.root / "exam.jsonl").write_text("two")
    assert body.run(config, {}, context).key not in (first.key, missing)


def test_a_folder_that_the_configuration_names_is_part_of_the_key(context):
    body = stage("loads", reads=("model",), package="data", files=("model",))(lambda config, *, run: {})
    config = PipelineConfig(model="base", max_tokens=64)
    (context.root / "base").mkdir()
    (context.root / "base" / "model.safetensors").write_text("one")
    before = body.key(config, {}, context.root)
    (context.root / "base" / "model.safetensors").write_text("two")
    assert body.key(config, {}, context.root) != before


def test_a_library_of_another_version_changes_the_key(work, context, monkeypatch):
    body, _ = work
    before = body.key(CONFIG, {"data": result()}, context.root)
    monkeypatch.setattr(tasks.stage, "library_versions", lambda: {"torch": "99"})
    assert body.key(CONFIG, {"data": result()}, context.root) != before


def edit(path):
    path.write_text(path.read_text() + "\n# changed\n")


EDITS = {
    "its own package": ("training/loop.py", {"training", "evaluation", "registry"}),
    "a helper in a package below": ("data/encoding.py", {"data", "training", "evaluation", "registry"}),
    "a package above": ("registry/__init__.py", {"registry"}),
    "what all stages share": ("errors.py", {"data", "training", "evaluation", "registry"}),
}


@pytest.mark.parametrize(("edited", "changed"), EDITS.values(), ids=EDITS)
def test_code_decides_the_results_of_its_package_and_those_above(tmp_path, monkeypatch, edited, changed):
    copy = tmp_path / "tasks"
    shutil.copytree(ROOT / "tasks", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(tasks.stage, "__file__", str(copy / "stage.py"))
    digest = code_digest.__wrapped__
    before = {name: digest(name) for name in tasks.stage.LAYERS}
    (copy / "training" / "__pycache__").mkdir()
    (copy / "training" / "__pycache__" / "loop.cpython-311.pyc").write_bytes(b"compiled")
    assert {name: digest(name) for name in tasks.stage.LAYERS} == before
    edit(copy / edited)
    assert {name for name in tasks.stage.LAYERS if digest(name) != before[name]} == changed


def test_moving_code_from_one_file_to_another_changes_the_digest(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(tasks.stage, "__file__", str(tmp_path / "stage.py"))
    digests = set()
    for first, second in [("ab", ""), ("a", "b"), ("", "ab")]:
        (tmp_path / "data" / "one.py").write_text(first)
        (tmp_path / "data" / "two.py").write_text(second)
        digests.add(code_digest.__wrapped__("data"))
    assert len(digests) == 3


DAMAGE = {
    "a byte changed": lambda path: (path / "model" / "weights").write_text("0 d2"),
    "a file cut off": lambda path: (path / "model" / "weights").write_text(""),
    "a file gone": lambda path: (path / "model" / "weights").unlink(),
    "a file more": lambda path: (path / "model" / "more").touch(),
    "a file renamed": lambda path: (path / "model" / "weights").rename(path / "model" / "weight"),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "a manifest cut off": lambda path: (path / "manifest.json").write_text((path / "manifest.json").read_text()[:100]),
    "an empty manifest": lambda path: (path / "manifest.json").write_text("{}"),
    "a manifest of something else": lambda path: (path / "manifest.json").write_text("[]"),
    "a manifest of bytes": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_result_is_made_again(work, context, damage):
    body, ran = work
    first = body.run(CONFIG, {"data": result()}, context)
    damage(first.path)
    assert read_result(first.path) is None
    again = body.run(CONFIG, {"data": result()}, context)
    assert len(ran) == 2
    assert (again.skipped, again.digest) == ("", first.digest)
    assert read_result(again.path).digest == first.digest


def test_force_runs_a_stage_again_and_no_other(work, context):
    body, ran = work
    body.run(CONFIG, {"data": result()}, context)
    assert body.run(CONFIG, {"data": result()}, Context(context.root, context.runs, force=frozenset({"other"}))).skipped == "unchanged"
    assert body.run(CONFIG, {"data": result()}, Context(context.root, context.runs, force=frozenset({"copy"}))).skipped == ""
    assert len(ran) == 2


def test_a_stage_on_an_outside_store_looks_there_every_time_and_says_why_it_did_nothing(context):
    looked = []

    @stage("register", reads=(), package="registry", cached=False)
    def body(config, *, run):
        looked.append(1)
        (run.out / "version.json").write_text("3")
        run.nothing_to_do = "version 3 is there"
        return {}

    assert [body.run(CONFIG, {}, context).skipped for _ in range(2)] == ["version 3 is there"] * 2
    assert len(looked) == 2


# Settings --------------------------------------------------------------------------------------------------------------


def test_a_setting_that_was_not_declared_raises_and_names_itself(context):
    @stage("greedy", reads=("sft",), package="training")
    def body(config, *, run):
        return {"rounds": config.policy.rounds}

    with pytest.raises(AttributeError, match=r"'policy'.*reads="):
        body.run(CONFIG, {}, context)


def test_a_setting_that_does_not_exist_can_not_be_declared(context):
    with pytest.raises(AttributeError, match="nonesuch"):
        stage("odd", reads=("nonesuch",), package="data")(lambda config, *, run: {}).run(CONFIG, {}, context)


def test_inputs_are_the_names_of_the_bodys_arguments(work):
    assert work[0].inputs == ("data",)


# The manifest ------------------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_decided_the_result_and_what_it_hashes_to(work, context):
    import hashlib

    body, _ = work
    made = body.run(CONFIG, {"data": result()}, context)
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["files"] == {"model/weights": hashlib.sha256(b"0 d1").hexdigest()}
    assert manifest["inputs"] == {"data": "d1"}
    assert manifest["settings"] == {"seed": 0, "sft": CONFIG.sft.model_dump(mode="json")}
    assert manifest["code"] == code_digest("training")
    assert manifest["metrics"] == {"loss": 0.25, "rows": 3.0}
    assert (manifest["stage"], manifest["key"], manifest["digest"]) == ("copy", made.key, made.digest)
    assert set(manifest["libraries"]) >= {"torch", "transformers"}
    assert StageResult.model_validate_json(made.model_dump_json()) == made


def test_equal_outputs_have_one_digest_whatever_made_them(context):
    def writes(name, text):
        def body(config, *, run):
            (run.out / "a").write_text(text)
            return {}

        return Stage(name, body, (), "data").run(CONFIG, {}, context).digest

    assert writes("one", "x") == writes("two", "x") != writes("three", "y")


# Failure -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [PreflineError("no"), RuntimeError("bug"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_stage_that_fails_leaves_no_result_and_keeps_what_it_wrote_aside(context, error):
    body = failing(error)
    with pytest.raises(type(error)) as caught:
        body.run(CONFIG, {}, context)
    assert caught.value is error
    key = body.key(CONFIG, {}, context.root)
    assert left_in(context, "fails") == [f"{key}.failed", f"{key}.partial"]
    folder = context.runs / "stages" / "fails"
    assert (folder / f"{key}.failed" / "rejects.jsonl").exists()
    assert (folder / f"{key}.partial" / "checkpoints" / "at").read_text() == "step 7"
    assert not (folder / f"{key}.partial" / "out").exists()
    assert context.observers[0].told[-1] == ("failed", "fails", type(error).__name__)


def test_a_stage_that_fails_before_it_wrote_leaves_nothing_aside(context):
    body = failing(PreflineError("no"), writes=False)
    with pytest.raises(PreflineError):
        body.run(CONFIG, {}, context)
    assert not [name for name in left_in(context, "fails") if name.endswith(".failed")]


def test_messages_may_point_to_where_the_failed_folder_will_lie(context):
    @stage("points", reads=(), package="data")
    def body(config, *, run):
        (run.out / "rejects.jsonl").write_text("{}\n")
        raise PreflineError(str(run.failed / "rejects.jsonl"))

    with pytest.raises(PreflineError) as caught:
        body.run(CONFIG, {}, context)
    assert Path(caught.value.what).is_file()


def test_checkpoints_outlive_a_failure_and_are_gone_after_success(context):
    seen = []

    @stage("resumes", reads=(), package="training")
    def body(config, *, run):
        seen.append(sorted(path.name for path in run.checkpoints.glob("*")))
        run.checkpoints.mkdir(exist_ok=True)
        (run.checkpoints / f"step{len(seen)}").touch()
        assert not any(run.out.iterdir())  # what a failed try wrote is not mixed in
        (run.out / f"by try {len(seen)}").touch()
        if len(seen) < 3:
            raise PreflineError("again")
        return {}

    for _ in range(2):
        with pytest.raises(PreflineError):
            body.run(CONFIG, {}, context)
    made = body.run(CONFIG, {}, context)
    assert seen == [[], ["step1"], ["step1", "step2"]]
    assert sorted(path.name for path in made.path.iterdir()) == ["by try 3", "manifest.json"]
    assert not [name for name in left_in(context, "resumes") if name.endswith(".partial")]


def test_a_forced_run_that_fails_leaves_the_earlier_result(context):
    tries = []

    @stage("once", reads=(), package="data")
    def body(config, *, run):
        tries.append(1)
        (run.out / "file").write_text(str(len(tries)))
        if len(tries) == 2:
            raise PreflineError("no")
        return {}

    body.run(CONFIG, {}, context)
    with pytest.raises(PreflineError):
        body.run(CONFIG, {}, Context(context.root, context.runs, force=frozenset({"once"})))
    again = body.run(CONFIG, {}, context)
    assert again.skipped == "unchanged"
    assert (again.path / "file").read_text() == "1"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_not_finite_fails_the_stage_by_name(context, value):
    @stage("spoilt", reads=(), package="training")
    def body(config, *, run):
        (run.out / "model").touch()
        return {"loss": 1.0, "kl": value}

    with pytest.raises(PreflineError, match=f"spoilt: kl is {value}"):
        body.run(CONFIG, {}, context)
    assert body.lookup(CONFIG, {}, context) is None
    assert context.observers[0].told[-1][0] == "failed"


def test_metrics_become_plain_floats():
    import numpy as np

    found = finite("x", {"a": np.float32(0.5), "b": 2})
    assert found == {"a": 0.5, "b": 2.0}
    assert {type(value) for value in found.values()} == {float}


def test_observers_see_start_progress_and_end_with_the_settings_that_were_read(work, context):
    body, _ = work
    body.run(CONFIG, {"data": result()}, context)
    assert context.observers[0].told == [
        ("started", "copy", {"seed": 0, "sft": CONFIG.sft.model_dump(mode="json")}),
        ("progressed", 1, 2, {"loss": 0.5}),
        ("finished", "copy"),
    ]
    body.run(CONFIG, {"data": result()}, context)
    assert len(context.observers[0].told) == 3  # nothing ran, nothing to watch


# A full disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_words_with_an_exit_code_of_its_own(context):
    @stage("writes", reads=(), package="data")
    def body(config, *, run):
        (run.out / "big").symlink_to("/dev/full")
        (run.out / "big").write_text("x" * 100_000)
        return {}

    with pytest.raises(EnvironmentRefused, match="no space left") as caught:
        body.run(CONFIG, {}, context)
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    assert "goes on from its checkpoint" in caught.value.advice
    assert context.observers[0].told[-1] == ("failed", "writes", "EnvironmentRefused")


@pytest.mark.parametrize("place", ["the stages' folder", "the lock", "the manifest"])
def test_a_disk_that_is_full_before_or_after_the_work_is_said_too(work, context, monkeypatch, place):
    def full(path, *rest, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def manifest_only(path, *rest, **options):
        return full(path) if path.name == "manifest.json" else path.write_bytes(rest[0].encode())

    if place == "the stages' folder":
        monkeypatch.setattr(Path, "mkdir", full)
    elif place == "the lock":
        monkeypatch.setattr(tasks.stage.FileLock, "acquire", full)
    else:
        monkeypatch.setattr(Path, "write_text", manifest_only)
    with pytest.raises(EnvironmentRefused, match="no space left"):
        work[0].run(CONFIG, {"data": result()}, context)
    monkeypatch.undo()
    assert work[0].lookup(CONFIG, {"data": result()}, context) is None


def test_other_errors_of_the_system_keep_their_own_name(context):
    with pytest.raises(FileNotFoundError):
        failing(FileNotFoundError(errno.ENOENT, "no such file")).run(CONFIG, {}, context)
