"""evaluation.json: its schema, and what is said of a file that can't be read."""

import json
from pathlib import Path

import jsonschema
import pytest

from tasks.errors import PreflineError
from tasks.evaluation.findings import findings
from tasks.evaluation.result import Evaluation, schema
from tasks.training.intervals import Bootstrap

COMMITTED = Path(__file__).parents[3] / "docs" / "evaluation.schema.json"


@pytest.fixture
def written(make_evidence, make_rows, tmp_path):
    """A folder with a real evaluation."""
    findings(make_evidence(make_rows(champion=True), version="1"), Bootstrap(resamples=50)).save(tmp_path)
    return tmp_path


def change(folder, **fields):
    path = folder / "evaluation.json"
    body = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in body.items() if value != "left out"}))


def test_the_committed_schema_is_todays():
    assert COMMITTED.read_text() == schema(), "python -m tasks.evaluation.result > docs/evaluation.schema.json"


def test_what_is_written_fits_the_schema_and_what_is_not_one_does_not(written):
    body, rules = json.loads((written / "evaluation.json").read_text()), json.loads(schema())
    jsonschema.Draft202012Validator.check_schema(rules)
    jsonschema.validate(body, rules)
    for wrong in ({"schema_version": 2}, {"prompts": "many"}, {"win_rate": None}, {"unheard_of": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(body | wrong, rules)


def test_what_is_written_is_read(written):
    found = Evaluation.load(written)
    assert found.schema_version == 1
    found.save(written)
    assert Evaluation.load(written) == found


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"schema_version": 2}, r"schema_version is 2, and this Prefline reads version 1"),
        ({"kl": "left out", "prompts": "left out"}, r"prompts: Field required, and 1 more like it"),
        ({"win_rate": {"rate": 0.5}}, r"win_rate\.low: Field required, and 5 more"),
        ({"unheard_of": 1}, r"unheard_of: Extra inputs are not permitted\."),
    ],
)
def test_a_file_of_another_version_is_named_with_what_is_wrong(written, fields, why):
    change(written, **fields)
    with pytest.raises(PreflineError, match=rf"evaluation\.json can't be read: .*{why}"):
        Evaluation.load(written)


def test_damaged_and_missing_files_are_named(written):
    (written / "evaluation.json").write_text('{"prompts": 3')
    with pytest.raises(PreflineError, match=r"evaluation\.json can't be read: it is not JSON"):
        Evaluation.load(written)
    (written / "evaluation.json").write_text("[]")
    with pytest.raises(PreflineError, match=r"evaluation\.json can't be read: the file: "):
        Evaluation.load(written)
    (written / "evaluation.json").unlink()
    with pytest.raises(PreflineError, match="No such file"):
        Evaluation.load(written)
