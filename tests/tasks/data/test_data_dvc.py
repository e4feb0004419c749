"""The snapshot stage with the real DVC, in small git repositories."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flows.settings import load_config
from tasks.data import dvc_access, dvc_store
from tasks.data.dvc_store import folder_md5
from tasks.data.prepare import import_sources, normalise, split
from tasks.data.snapshot import dataset, read_snapshot, snapshot
from tasks.errors import EnvironmentRefused, PreflineError
from tasks.stage import Context

ROOT = Path(__file__).parents[3]
OTHER = "data.builtin.seed=1"
PAIR = {"prompt": "Is it red?", "chosen": "Yes, it is.", "rejected": "No."}


def take(root, *overrides):
    """The snapshot stage's result, and what its snapshot.json says."""
    result = snapshot.run(load_config(root, (), overrides), {}, Context(root, root / "runs"))
    return result, read_snapshot(result)


def set_params(root, **changes):
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["data"] |= changes
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return params["data"]


def test_from_first_run_to_a_fresh_clone(project, git, tmp_path, capfd):
    first, seen = take(project)
    assert first.skipped == ""
    assert (str(seen.folder), seen.md5) == ("data/prepared", folder_md5(project / "data" / "prepared"))
    assert seen.comparisons == sum(seen.splits.values()) == first.metrics["comparisons"]
    assert git(project, "status", "--short") == "?? dvc.lock\n"
    assert capfd.readouterr().out == ""

    again, _ = take(project)
    assert (again.skipped, again.digest) == ("data unchanged", first.digest)

    before = set_params(project)["split"]
    set_params(project, split={"judge": 0.2, "validation": 0.2, "test": 0.2})
    changed, other = take(project)
    assert (changed.skipped, other.md5 == seen.md5) == ("", False)
    set_params(project, split=before)
    assert take(project)[1] == seen

    (project / "data" / "prepared" / "comparisons.jsonl").write_text("spoilt by hand\n")
    with pytest.raises(PreflineError, match="no longer holds the data of this run"):
        dataset(first, project)
    assert take(project)[1] == seen
    assert dataset(first, project).md5 == seen.md5

    git(project, "add", "dvc.lock")
    git(project, "commit", "--quiet", "-m", "data")
    git(tmp_path, "clone", "--quiet", str(project), "clone")
    assert take(tmp_path / "clone")[1] == seen
    assert git(tmp_path / "clone", "status", "--short") == ""


def test_overrides_become_snapshots_of_their_own(project, git):
    first, seen = take(project, OTHER)
    assert seen.folder.parent == Path("data/snapshots")
    assert dvc_store.pointed_at(project / seen.folder) == folder_md5(project / seen.folder) == seen.md5
    assert git(project, "status", "--short") == f"?? {seen.folder}.dvc\n"
    assert take(project, OTHER)[0].skipped == "data unchanged"
    assert take(project, "data.builtin.seed=2")[1].md5 != seen.md5

    (project / seen.folder / "comparisons.jsonl").chmod(0o644)
    (project / seen.folder / "comparisons.jsonl").write_text("spoilt by hand\n")
    with pytest.raises(PreflineError, match="no longer holds"):
        dataset(first, project)
    mended, _ = take(project, OTHER)
    assert (mended.skipped, dataset(mended, project).md5) == ("", seen.md5)

    shutil.rmtree(project / seen.folder)
    assert take(project, OTHER)[1] == seen


def test_files_of_your_own_are_watched(project):
    source = project / "data" / "mine.jsonl"
    source.write_text(json.dumps(PAIR) + "\n")
    options = ("data.comparisons=[data/mine.jsonl]", "data.demonstrations=[data/mine.jsonl]")
    first, seen = take(project, *options)
    assert (seen.comparisons, seen.demonstrations, seen.rejects) == (1, 1, 0)
    assert take(project, *options)[0].skipped == "data unchanged"
    source.write_text(source.read_text() + json.dumps(PAIR | {"prompt": "Is it blue?"}) + "\n{cut\n")
    _, grown = take(project, *options)
    assert (grown.comparisons, grown.rejects) == (2, 1)
    assert grown.folder != seen.folder
    with pytest.raises(PreflineError, match="changed while this run was going on"):
        dataset(first, project)
    set_params(project, comparisons=["data/mine.jsonl"], demonstrations=["data/mine.jsonl"])
    assert take(project)[1] == grown  # params.yaml itself may name them


def test_a_source_that_is_missing_leaves_nothing_behind(project, git):
    with pytest.raises(PreflineError, match=r"data/nowhere.jsonl: no such file"):
        take(project, "data.comparisons=[data/nowhere.jsonl]")
    assert sorted(path.name for path in (project / "data" / "snapshots").iterdir()) == [".gitignore"]
    assert git(project, "status", "--short") == ""


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_data_dvc import take
root = Path({root!r})
print(*[take(root, option)[1].md5 for option in sys.argv[1:]])
"""


def in_another_process(root, *overrides):
    """A process that takes snapshots, one for each override."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), root=str(root))
    return subprocess.Popen(
        [sys.executable, "-c", script, *overrides], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_two_snapshots_at_once(project):
    """Of the same data and of different ones, from processes whose current folder is not the project."""
    processes = [in_another_process(project, OTHER, "seed=0"), in_another_process(project, OTHER, "data.builtin.seed=2")]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (one, own), (two, three) = (output[-1].split() for output in outputs)
    assert one == two
    assert len({one, own, three}) == 3


def test_a_snapshot_that_is_killed_is_made_good_by_the_next(project):
    process = in_another_process(project, OTHER)
    while process.poll() is None and not list((project / "data" / "snapshots").glob(".*.prepared")):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    _, seen = take(project, OTHER)
    assert folder_md5(project / seen.folder) == seen.md5
    assert (project / f"{seen.folder}.dvc").is_file()


def test_a_pipeline_that_is_killed_is_made_good_by_the_next(project):
    """Its command lives on for a while, and DVC's list of who reads and writes may be cut."""
    process = in_another_process(project, "seed=0")
    while process.poll() is None and not (project / "data" / "imported" / "comparisons.jsonl").exists():
        time.sleep(0.002)
    process.kill()
    process.communicate()
    (project / ".dvc" / "tmp" / "rwlock").write_text('{"write": {"')
    _, seen = take(project)
    assert folder_md5(project / seen.folder) == seen.md5
    assert take(project)[0].skipped == "data unchanged"


def test_a_foreign_dvc_command_is_waited_for_and_then_named(project, monkeypatch, capsys):
    import zc.lockfile

    (project / ".dvc" / "tmp").mkdir()
    lock = zc.lockfile.LockFile(str(project / ".dvc" / "tmp" / "lock"))
    monkeypatch.setattr(dvc_access, "BUSY_SECONDS", 0.0)
    with pytest.raises(EnvironmentRefused, match="DVC is busy"):
        take(project)
    lock.close()


def test_what_a_command_printed_is_shown_when_it_fails(project, capfd):
    (project / "data" / "shop.yaml").write_text("items: [lamp\n")
    with pytest.raises(PreflineError, match="failed to run: prefline data stage import") as failed:
        take(project)
    assert "shop.yaml" in failed.value.advice
    assert capfd.readouterr() == ("", "")
    assert dvc_access.LOG not in os.environ


def test_no_git_and_no_dvc(project):
    shutil.rmtree(project / ".git")
    with pytest.raises(EnvironmentRefused, match="is not a git repository"):
        take(project)
    shutil.rmtree(project / ".dvc")
    with pytest.raises(EnvironmentRefused, match="no DVC project"):
        take(project)


def damage(root, folder):
    """Cut the cached copy of a folder's comparisons, keeping it write-protected, as a failing disk would."""
    name = hashlib.md5((folder / "comparisons.jsonl").read_bytes()).hexdigest()
    cached = root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes()[:-20])
    cached.chmod(0o444)
    return cached


def test_a_damaged_cache_is_noticed_and_mended(project):
    _, seen = take(project)
    cached = damage(project, project / seen.folder)
    shutil.rmtree(project / seen.folder)
    assert take(project)[1] == seen
    assert folder_md5(project / seen.folder) == seen.md5
    assert cached.read_bytes() == (project / seen.folder / "comparisons.jsonl").read_bytes()

    _, other = take(project, OTHER)
    damage(project, project / other.folder)
    shutil.rmtree(project / other.folder)
    assert take(project, OTHER)[1] == other
    assert folder_md5(project / other.folder) == other.md5


def test_folder_md5_is_that_of_dvc(project):
    folder = project / "data" / "snapshots" / "odd"
    for name in ("b/2.txt", "b-c.txt", "a.txt", "b/deeper/1.txt", "ü.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    assert dvc_store.add(project, folder).md5 == folder_md5(folder)


def test_dvc_lock_in_git_is_what_the_code_makes(tmp_path):
    """Else the first run of a fresh clone changes a file of the repository. To mend: dvc repro, and commit dvc.lock."""
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    data = load_config(ROOT).data
    import_sources(data, ROOT / "data" / "shop.yaml", ROOT, tmp_path / "imported")
    normalise(data, tmp_path / "imported", tmp_path / "normalised")
    split(data.split, tmp_path / "normalised", tmp_path / "prepared")
    for stage, folder in {"import": "imported", "normalise": "normalised", "split": "prepared"}.items():
        assert lock[stage]["outs"][0]["md5"] == folder_md5(tmp_path / folder), f"{stage}: run dvc repro"
    code = folder_md5(ROOT / "tasks" / "data")
    for stage in lock.values():
        assert next(dep["md5"] for dep in stage["deps"] if dep["path"] == "tasks/data") == code, "run dvc repro"
