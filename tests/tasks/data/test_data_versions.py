"""Versions: kept, sent and fetched by the real DVC, found by name, hash and revision."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from flows.settings import load_config
from tasks.data import dvc_store, versions
from tasks.data.batches import BATCHES, import_batch
from tasks.data.dvc_store import folder_md5
from tasks.data.formats import Reading
from tasks.data.records import Comparison
from tasks.data.snapshot import read_snapshot, snapshot
from tasks.errors import EnvironmentRefused, PreflineError
from tasks.stage import Context

ROOT = Path(__file__).parents[3]


@pytest.fixture
def mine(project):
    """The project with params.yaml that names the batches, of which there is one with forty comparisons."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"] |= {"comparisons": [str(BATCHES)], "demonstrations": [str(BATCHES)]}
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    take_in(project, *(pair(number) for number in range(40)))
    return project


def pair(number, **more):
    return {"prompt": f"{'blue' * number} {number}?", "chosen": f"Yes, {number}.", "rejected": f"No, {number}."} | more


def take_in(root, *rows):
    source = root.parent / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return import_batch(root, [str(source)], Reading())


def take(root):
    """What the snapshot stage and the batches are kept as."""
    seen = read_snapshot(snapshot.run(load_config(root), {}, Context(root, root / "runs")))
    dvc_store.keep(root, root / BATCHES)
    return seen


def commit(git, root, message="data"):
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", message)
    return git(root, "rev-parse", "HEAD").strip()


def find(root, text=""):
    return versions.find(root, load_config(root).data, text)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cached(root, content):
    name = hashlib.md5(content).hexdigest()
    return root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]


# Keeping ------------------------------------------------------------------------------------------------------------


def test_batches_are_kept_as_they_are(mine, git):
    before = contents(mine / BATCHES)
    kept = dvc_store.keep(mine, mine / BATCHES)
    assert kept.md5 == folder_md5(mine / BATCHES) == dvc_store.pointed_at(mine / BATCHES)
    assert contents(mine / BATCHES) == before
    assert {cached(mine, content).read_bytes() for content in before.values()} == {*before.values()}
    assert git(mine, "status", "--short", "data") == "?? data/batches.dvc\n"
    assert dvc_store.keep(mine, mine / BATCHES).ran == ()
    done = subprocess.run([sys.executable, "-m", "dvc", "status", "data/batches.dvc"], cwd=mine, capture_output=True, text=True, check=True)
    assert "up to date" in done.stdout


def test_what_the_cache_lost_is_kept_again(mine):
    dvc_store.keep(mine, mine / BATCHES)
    (content,) = contents(mine / BATCHES).values()
    cached(mine, content).chmod(0o644)
    cached(mine, content).write_bytes(content[:-9])
    assert dvc_store.keep(mine, mine / BATCHES).ran
    assert cached(mine, content).read_bytes() == content


KEEP = """
import sys
from pathlib import Path
from tasks.data import dvc_store
root = Path(sys.argv[1])
dvc_store.keep(root, root / "data" / "batches")
"""


def test_a_kill_while_batches_are_kept_loses_nothing(mine, git):
    """Real kills, from before DVC begins to after it has moved files into its cache."""
    for number in range(30):
        (mine / BATCHES / f"20200101-0000{number:02}-00000000.jsonl").write_text(f"{number}\n" * 5_000)
    before, killed = contents(mine / BATCHES), 0
    for pause in (0.0, 0.1, 0.2, 0.3, 0.4, 0.6):
        process = subprocess.Popen([sys.executable, "-c", KEEP, str(mine)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        while process.poll() is None and not (mine / "data" / ".batches.adding").exists():
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += process.returncode == -signal.SIGKILL
        assert contents(mine / BATCHES) == before
        assert dvc_store.pointed_at(mine / BATCHES) in ("", folder_md5(mine / BATCHES))
    assert killed >= 2
    assert dvc_store.keep(mine, mine / BATCHES).md5 == folder_md5(mine / BATCHES)
    assert git(mine, "status", "--short", "data") == "?? data/batches.dvc\n"
    assert not dvc_store.lacking(mine, [folder_md5(mine / BATCHES)])


# Sending and fetching -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """The address of an S3 service on this machine, with a bucket."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret-of-tests", "AWS_DEFAULT_REGION": "us-east-1"}
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], env=os.environ | keys, stdout=log, stderr=log
    )
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < end  # noqa: PT018
            time.sleep(0.1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="data")
        yield address
    server.terminate()
    server.wait()


def set_remote(root, url, endpoint=None):
    section = f"[core]\n    remote = store\n    analytics = false\n['remote \"store\"']\n    url = {url}\n"
    (root / ".dvc" / "config").write_text(section + (f"    endpointurl = {endpoint}\n" if endpoint else ""))


def folders(root):
    return [root / folder for folder in versions.pointers(root)]


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_to_a_remote_and_into_a_clone(kind, mine, git, tmp_path, request):
    if kind == "s3":
        set_remote(mine, "s3://data/project", request.getfixturevalue("s3"))
    else:
        set_remote(mine, tmp_path / "store")
    seen = take(mine)
    commit(git, mine)
    assert dvc_store.push(mine, folders(mine)) > 2
    assert dvc_store.push(mine, folders(mine)) == 0

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(mine), str(clone))
    kept = dvc_store.pull(clone, folders(clone))
    assert {one.md5 for one in kept} == {seen.md5, folder_md5(mine / BATCHES)}
    assert all(one.ran for one in kept)
    assert contents(clone / BATCHES) == contents(mine / BATCHES)
    assert contents(clone / seen.folder) == contents(mine / seen.folder)
    assert git(clone, "status", "--short") == ""
    assert not any(one.ran for one in dvc_store.pull(clone, folders(clone)))
    assert take(clone) == seen  # and nothing has to be made again


def test_a_pull_mends_damage_and_overwrites_nothing_that_only_the_folder_has(mine, tmp_path):
    set_remote(mine, tmp_path / "store")
    take(mine)
    dvc_store.push(mine, folders(mine))
    (name, content), *_ = contents(mine / BATCHES).items()
    (mine / BATCHES / "new.jsonl").write_text("only here\n")
    (mine / BATCHES / name).unlink()
    with pytest.raises(PreflineError, match=r"data/batches holds files that DVC does not keep yet: new\.jsonl\.") as refused:
        dvc_store.pull(mine, folders(mine))
    assert "prefline data snapshot" in refused.value.advice
    assert [path.name for path in (mine / BATCHES).iterdir()] == ["new.jsonl"]

    (mine / BATCHES / "new.jsonl").unlink()
    cached(mine, content).chmod(0o644)
    cached(mine, content).write_bytes(b"damaged")
    dvc_store.pull(mine, folders(mine))
    assert contents(mine / BATCHES) == {name: content}
    assert cached(mine, content).read_bytes() == content


def test_a_remote_that_is_missing_damaged_or_gone(mine, tmp_path, monkeypatch):
    take(mine)
    with pytest.raises(EnvironmentRefused, match="no default remote"):
        dvc_store.push(mine, folders(mine))
    assert all(not one.ran for one in dvc_store.pull(mine, folders(mine)))  # who has everything needs none

    set_remote(mine, tmp_path / "store")
    dvc_store.push(mine, folders(mine))
    (content,) = contents(mine / BATCHES).values()
    name = hashlib.md5(content).hexdigest()
    there = tmp_path / "store" / "files" / "md5" / name[:2] / name[2:]
    there.chmod(0o644)
    there.write_bytes(b"damaged")
    shutil.rmtree(mine / BATCHES)
    cached(mine, content).unlink()
    with pytest.raises(PreflineError, match=r"does not hold all of .*, or holds it damaged"):
        dvc_store.pull(mine, folders(mine))
    with pytest.raises(PreflineError, match=r"DVC's cache does not hold all of data/batches"):
        dvc_store.push(mine, folders(mine))

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-tests")
    set_remote(mine, "s3://data/nowhere", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(EnvironmentRefused, match="s3://data/nowhere can't be used") as refused:
        dvc_store.pull(mine, folders(mine))
    assert time.monotonic() - begun < 60
    assert "secret-of-tests" not in str(refused.value)


# Finding ------------------------------------------------------------------------------------------------------------


def test_versions_are_found_by_revision_name_and_hash(mine, git, tmp_path):
    with pytest.raises(PreflineError, match="no snapshot of the data as they are now"):
        find(mine)
    with pytest.raises(PreflineError, match="HEAD names no prepared data"):
        find(mine, "HEAD")
    first = take(mine)
    assert [(version.md5, version.commit) for version in versions.versions(mine)] == [(first.md5, "")]
    assert versions.to_commit(mine) == ["data/batches.dvc", f"{first.folder}.dvc"]
    one = commit(git, mine)
    assert versions.to_commit(mine) == []

    take_in(mine, *(pair(number) for number in range(40, 50)))
    second = take(mine)
    two = commit(git, mine)
    take_in(mine, pair(60))
    third = take(mine)

    assert {version.md5: version.commit for version in versions.versions(mine)} == {third.md5: "", second.md5: two, first.md5: one}
    assert versions.versions(mine)[0].md5 == third.md5
    assert find(mine).md5 == third.md5
    assert find(mine, "HEAD").md5 == second.md5
    assert (
        find(mine, "HEAD~1").md5
        == find(mine, first.md5[:6]).md5
        == find(mine, first.folder.name).md5
        == find(mine, one[:8]).md5
        == first.md5
    )
    with pytest.raises(PreflineError, match="feature is no git revision, and no version"):
        find(mine, "feature")
    with pytest.raises(PreflineError, match="--all is no git revision"):
        find(mine, "--all")

    shutil.rmtree(mine / first.folder)
    found = versions.read(mine, find(mine, one))
    assert len(list(found.stream(Comparison))) == first.comparisons == versions.counts(found.paths)["comparisons"]["rows"]
    (mine / second.folder / "comparisons.jsonl").unlink()  # the cache serves a folder that is no longer whole
    assert len(list(versions.read(mine, find(mine, two)).stream(Comparison))) == 50

    set_remote(mine, tmp_path / "store")
    dvc_store.push(mine, [mine / f for f in (BATCHES, second.folder, third.folder)])
    shutil.rmtree(mine / ".dvc" / "cache")
    with pytest.raises(PreflineError, match="not on this machine, or not whole") as missing:
        versions.read(mine, find(mine, two))
    assert f"prefline data pull {two[:12]}" in missing.value.advice


def test_data_of_a_revision_are_fetched_into_the_cache(mine, git, tmp_path):
    set_remote(mine, tmp_path / "store")
    first = take(mine)
    one = commit(git, mine)
    dvc_store.push(mine, folders(mine))
    take_in(mine, pair(70))
    take(mine)
    commit(git, mine)
    shutil.rmtree(mine / ".dvc" / "cache")
    shutil.rmtree(mine / first.folder)
    before = contents(mine / "data")
    assert versions.fetch(mine, load_config(mine).data, one).md5 == first.md5
    assert contents(mine / "data") == before
    assert len(list(versions.read(mine, find(mine, one)).stream(Comparison))) == 40
    with pytest.raises(PreflineError, match="v9 is no git revision"):
        versions.fetch(mine, load_config(mine).data, "v9")


def hash_of(name):
    return hashlib.md5(name.encode()).hexdigest() + ".dir"


def point(root, name):
    """A pointer to a snapshot that was never taken."""
    (root / "data" / "snapshots" / f"{name}.dvc").write_text(yaml.safe_dump({"outs": [{"md5": hash_of(name), "path": name}]}))
    return hash_of(name)


def test_which_version_a_commit_is_about(tmp_path, git):
    """In a project that is a folder of a larger repository; the newest snapshot is meant, and dvc.lock where params.yaml asks for it."""
    root = tmp_path / "shop" / "project"
    (root / "data" / "snapshots").mkdir(parents=True)
    (root / "params.yaml").write_text("data: {comparisons: [mine.jsonl], demonstrations: [builtin]}\n")
    lock = {"schema": "2.0", "stages": {"split": {"cmd": "c", "outs": [{"path": "data/prepared", "md5": hash_of("own")}]}}}
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    git(tmp_path, "init", "--quiet")
    point(root, "aaaa")
    assert versions.to_commit(root) == ["data/snapshots/aaaa.dvc", "dvc.lock"]
    commit(git, root)
    assert versions.to_commit(root) == []
    assert find(root, "HEAD").md5 == hash_of("aaaa")
    point(root, "bbbb")
    commit(git, root)
    (root / "params.yaml").write_text("data: {}\n")
    commit(git, root)
    assert find(root, "HEAD").folder == Path("data/prepared")
    assert find(root, "HEAD~1").md5 == hash_of("bbbb")
    assert find(root, "HEAD~2").md5 == hash_of("aaaa")
    assert {version.md5 for version in versions.versions(root)} == {hash_of(name) for name in ("own", "aaaa", "bbbb")}
    (root / "params.yaml").write_text("data: {comparisons: [mine.jsonl]}\n")
    point(root, "cccc")
    point(root, "dddd")
    commit(git, root)
    with pytest.raises(PreflineError, match="HEAD names 2 snapshots of one age: cccc, dddd"):
        find(root, "HEAD")
    assert find(root, "dddd").md5 == hash_of("dddd")
    (root / "data" / "snapshots" / "eeee.dvc").write_text("not: [a pointer\n")
    assert {folder.name for folder in versions.pointers(root)} == {"prepared", "aaaa", "bbbb", "cccc", "dddd"}
