"""`prefline data`: from a file of annotations to a version that is kept, compared and traced, by the commands alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from flows.data_commands import data_app
from flows.data_tables import statistics_table
from tasks.errors import ConfigError, DataRefused, PreflineError

ROOT = Path(__file__).parents[2]
RUN = CliRunner()
WIDE = {"COLUMNS": "180"}


@pytest.fixture
def here(project, git):
    """The project with DVC and params.yaml that reads batches; committed."""
    for part in (".dvc/config", ".dvc/.gitignore", "data/.gitignore", "data/snapshots/.gitignore", "data/shop.yaml", "dvc.yaml"):
        (project / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, project / part)
    params = {
        "data": {"comparisons": ["data/batches"], "demonstrations": ["data/batches"]},
        "contract": {"min_comparisons": 10, "min_demonstrations": 5},
    }
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    git(project, "add", "-A")
    git(project, "commit", "--quiet", "-m", "Data are read from batches")
    return project


ADJECTIVES = ("red", "warm", "old", "tall", "small", "dear", "new", "round", "soft", "loud")
THINGS = ("lamp", "kettle", "chair", "rug", "clock", "mirror")


def pair(number, **more):
    thing = f"{ADJECTIVES[number % 10]} {THINGS[number // 10]}"
    said = {
        "prompt": f"What is the {thing}?",
        "chosen": f"A {thing}, I think.",
        "rejected": "No." if number % 3 else f"I have no idea at all about {number}, sorry.",
    }
    return said | ({"annotator": ("ana", "ben")[number % 2]} | more)


def write(root, name, *rows):
    path = root.parent / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def call(*arguments):
    done = RUN.invoke(data_app, [str(argument) for argument in arguments], env=WIDE)
    assert done.exception is None, done.output + repr(done.exception)
    return done.output


def refusal(*arguments):
    error = RUN.invoke(data_app, [str(argument) for argument in arguments], env=WIDE).exception
    assert isinstance(error, PreflineError), repr(error)
    return error


def folder_of(root):
    """What DVC and people find in data/, by path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()}


# Taking in ----------------------------------------------------------------------------------------------------------


def test_import_tells_what_came_of_it(here):
    rows = [pair(1), pair(2, rejected="[bold]x[/bold]", chosen=5), pair(3)]
    said = call("import", write(here, "march.jsonl", *rows))
    assert "2" in said.split("new comparisons")[1].split("\n")[0]
    assert '"chosen" is a number' in said
    assert f"first: {here.parent}/march.jsonl, line 2" in said
    assert "Next: prefline data snapshot" in said
    assert "nothing new" in call("import", here.parent / "march.jsonl")
    (here / "params.yaml").write_text("seed: 0\n")
    said = call("import", write(here, "april.jsonl", pair(4)))
    assert "Set in params.yaml, section data: comparisons: [data/batches] and demonstrations: [data/batches]" in said
    assert isinstance(refusal("import", here.parent / "march.jsonl", "--snapshot"), ConfigError)


def test_an_import_of_which_nothing_can_be_used_is_refused(here):
    error = refusal("import", write(here, "march.jsonl", pair(1, chosen=5), {"x": 1}))
    assert (type(error), error.exit_code) == (DataRefused, 3)
    assert error.what == "None of the 2 rows could be used."
    (rejects,) = (here / "data" / "rejects").iterdir()
    assert str(rejects.relative_to(here)) in error.advice
    assert not list((here / "data" / "batches").glob("*")) if (here / "data" / "batches").exists() else True


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--format", "nope"), "There is no format nope"),
        (("--field", "left"), "--field left: expected NAME=VALUE"),
        (("--rating", "helpfulness=much"), "much is no number"),
    ],
)
def test_options_that_mean_nothing(here, options, says):
    error = refusal("import", write(here, "march.jsonl", pair(1)), *options)
    assert says in str(error)
    assert error.exit_code == 2


def test_fields_and_ratings_reach_the_importer(here):
    task = {"data": {"question": "Red?", "one": "Yes.", "two": "No."}, "annotations": [{"result": [{"value": {"selected": "right"}}]}]}
    for annotation in task["annotations"]:
        annotation["result"][0] |= {"type": "pairwise", "from_name": "c", "to_name": "one"}
    path = here.parent / "tasks.json"
    path.write_text(json.dumps([task]))
    call("import", path, "--format", "label-studio", "--field", "left=one", "--field", "right=two", "--field", "prompt=question")
    (batch,) = (here / "data" / "batches").iterdir()
    record = json.loads(batch.read_text())
    assert (record["chosen"][0]["content"], record["chosen_first"]) == ("No.", False)


def test_a_batch_in_one_command(here, git):
    first = call("import", write(here, "march.jsonl", *(pair(n) for n in range(30))), "--snapshot")
    assert "To commit: git add data/batches.dvc data/snapshots/" in first
    git(here, "add", "-A")
    git(here, "commit", "--quiet", "-m", "March")
    before = folder_of(here)
    results = here / "runs" / "stages" / "snapshot"
    kept = {path.relative_to(results).as_posix(): path.read_bytes() for path in results.rglob("*") if path.is_file()}

    same = [pair(n, chosen="The same.", rejected="The same.") for n in range(30, 40)]
    error = refusal("import", write(here, "bad.jsonl", *same), "--snapshot")
    assert isinstance(error, DataRefused)
    (refused,) = (here / "data" / "refused").iterdir()
    assert f"mend data/refused/{refused.name} and import it" in error.advice
    assert len(refused.read_text().splitlines()) == 10
    after = folder_of(here)
    assert after.pop(f"data/refused/{refused.name}")
    assert after == before
    assert {path.relative_to(results).as_posix(): path.read_bytes() for path in results.rglob("*") if path.is_file()} == kept
    assert git(here, "status", "--short") == ""

    assert "To commit: git add data/batches.dvc" in call(
        "import", write(here, "april.jsonl", *(pair(n) for n in range(40, 50))), "--snapshot"
    )


# Versions -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_versions(here, git):
    """Two commits, the second with five rows more and one that was judged otherwise; returns the hashes of their data."""
    call("import", write(here, "march.jsonl", *(pair(n) for n in range(30))))
    hashes = []
    for number, more in enumerate(([], [*(pair(n) for n in range(40, 45)), pair(50, tie=True)])):
        if more:
            call("import", write(here, f"{number}.jsonl", *more))
        call("snapshot")
        git(here, "add", "-A")
        git(here, "commit", "--quiet", "-m", f"Data {number}")
        (new,) = {path.stem for path in (here / "data" / "snapshots").glob("*.dvc")} - {name for name, _ in hashes}
        hashes.append((new, yaml.safe_load((here / "data" / "snapshots" / f"{new}.dvc").read_text())["outs"][0]["md5"]))
    return [md5 for _, md5 in hashes]


def test_diff_log_show_and_export(here, two_versions, git, tmp_path):
    from mlflow.tracking import MlflowClient

    found = json.loads(call("diff", "HEAD~1", "HEAD", "--json"))
    assert [found["before"], found["after"]] == two_versions
    assert (found["comparisons"]["added"], found["comparisons"]["removed"], found["comparisons"]["moved"]) == (6, 0, {})
    assert {"name": "comparisons, ties", "before": 0, "after": 1} in found["figures"]
    assert call("diff", two_versions[0][:8], "--json") == call("diff", "HEAD~1", two_versions[1], "--json")
    shown = call("diff", "HEAD~1")
    assert "added" in shown
    assert "comparisons, ties" in shown
    assert "No difference." in call("diff", "HEAD")
    assert "is no git revision" in str(refusal("diff", "v1"))

    client = MlflowClient(f"sqlite:///{here / 'mlflow' / 'mlflow.db'}")
    client.create_registered_model("prefline-policy")
    version = client.create_model_version("prefline-policy", source=str(tmp_path), tags={"prefline.dataset_md5": two_versions[0]})
    client.set_registered_model_alias("prefline-policy", "champion", version.version)
    lines = [line for line in call("log").splitlines() if any(md5[:12] in line for md5 in two_versions)]
    assert [two_versions[1][:12] in lines[0], two_versions[0][:12] in lines[1]] == [True, True]
    assert ("prefline-policy 1 (champion)" in lines[0], "prefline-policy 1 (champion)" in lines[1]) == (False, True)
    assert git(here, "rev-parse", "HEAD~1")[:10] in lines[1]
    assert "36" in lines[0]

    shown = call("show")
    assert "annotator ana" in shown
    page = Path(call("report").strip())
    assert "<html" in page.read_text(encoding="utf-8")
    said = call("export", "--format", "hh-rlhf", tmp_path / "out.jsonl", "--kind", "comparisons")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 35
    assert "out.jsonl: 35 rows" in said
    assert "left out: 1" in said  # the tie
    test = call("export", "--format", "prefline", tmp_path / "test.jsonl", "--split", "test")
    assert {json.loads(line)["split"] for line in (tmp_path / "test.jsonl").read_text().splitlines()} == {"test"}, test
    assert "There is no split exam" in str(refusal("export", "--format", "trl", tmp_path / "x.jsonl", "--split", "exam"))


def test_push_and_pull(here, two_versions, git, tmp_path):
    assert "no default remote" in str(refusal("push"))
    store = tmp_path / "store"
    (here / ".dvc" / "config").write_text(f"[core]\n    remote = store\n    analytics = false\n['remote \"store\"']\n    url = {store}\n")
    assert call("push").startswith("Sent ")
    assert "the remote has them all" in call("push")
    shutil.rmtree(here / ".dvc" / "cache")
    shutil.rmtree(here / "data" / "batches")
    assert "data/batches" in call("pull")
    assert len(list((here / "data" / "batches").iterdir())) == 2
    assert two_versions[0] in call("pull", "HEAD~1")


def test_a_clone_fetches_its_batches_before_it_takes_in_more(here, two_versions, git, tmp_path, monkeypatch):
    store = tmp_path / "store"
    (here / ".dvc" / "config").write_text(f"[core]\n    remote = store\n    analytics = false\n['remote \"store\"']\n    url = {store}\n")
    call("push")
    git(here, "commit", "--quiet", "--all", "-m", "A remote")
    git(tmp_path, "clone", "--quiet", str(here), "clone")
    monkeypatch.chdir(tmp_path / "clone")
    for command in (("import", here.parent / "march.jsonl"), ("snapshot",)):
        error = refusal(*command)
        assert "data/batches.dvc names batches that are not here" in str(error)
        assert "prefline data pull" in error.advice
    assert not (tmp_path / "clone" / "data" / "batches").exists()
    call("pull")
    assert "nothing new" in call("import", here.parent / "march.jsonl")
    shutil.rmtree(tmp_path / "clone" / ".dvc" / "cache")  # without it, too: what is here is all that the pointer names
    assert "nothing new" in call("import", here.parent / "march.jsonl")


def test_nothing_kept_yet(here):
    assert "No version of the data yet" in call("log")
    assert "nothing to send" in str(refusal("push"))
    assert "names no data" in str(refusal("pull"))
    assert "prefline data snapshot" in refusal("show").advice


# Looking ------------------------------------------------------------------------------------------------------------


def statistics():
    return {
        "comparisons": {
            "rows": 1234,
            "groups": 2,
            "prompts": 2,
            "splits": {"train": 1},
            "sources": {"[bold]odd[/bold].jsonl": 1},
            "tags": {f"tag {n}": n for n in range(30)},
            "annotators": {"ana": 1},
            "words": {"prompt": {"mean": 3.0, "median": 3, "longest": 4}},
            "labels_by": {"people": 3},
            "rankings": 2,
            "ties": 0,
            "longer_chosen": None,
            "chosen_first": {"known": 0, "share": None},
            "seconds": {"known": 10, "median": 31.5},
            "duplicates": 0,
            "near_duplicates": None,
        },
        "demonstrations": {"rows": 5, "groups": 2, "prompts": 2, "splits": {"train": 5}, "sources": {}, "tags": {}, "words": {}},
        "rejects": {"rows": 1, "reasons": {'"chosen" is [red]empty[/red]': 1}},
        "skipped": 3,
        "repeated": 0,
    }


def test_tables_take_names_literally_and_not_too_many():
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(statistics_table(statistics()))
    shown = console.export_text()
    assert "from [bold]odd[/bold].jsonl" in shown
    assert '"chosen" is [red]empty[/red]' in shown
    assert "1,234" in shown
    assert "... 10 more" in shown
    assert "31.5 of 10" in shown


def test_the_stages_make_the_data_and_print_nothing(here):
    builtin = {"demonstrations_per_question": 1, "rankings_per_question": 1}
    (here / "params.yaml").write_text(yaml.safe_dump({"data": {"builtin": builtin}}))
    for name in ("import", "normalise", "split", "report"):
        assert call("stage", name) == ""
    rows = json.loads((here / "data" / "prepared" / "counts.json").read_text())["comparisons"]["rows"]
    assert f"{rows:,}" in call("show", here / "data" / "prepared")
    assert (here / "data" / "report" / "data.html").is_file()


def test_contract_is_printed_or_written(here):
    printed = call("contract")
    assert call("contract", "--write") == ""
    assert (here / "data" / "contract.json").read_text() == printed


def test_output_goes_to_the_log_that_is_asked_for(here):
    log = here / "log"
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", "data", "show"],
        env=os.environ | {"PREFLINE_COMMAND_LOG": str(log), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0, done.stdout, done.stderr) == (True, "", "")
    assert "no prepared data there" in log.read_text()
