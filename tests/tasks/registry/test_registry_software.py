"""The bill of materials: whole, the same for the same software, with the licences that distributions state."""

import json
from importlib.metadata import PathDistribution

import pytest

from tasks.registry.software import libraries, software_bill


@pytest.fixture
def distribution(tmp_path):
    """distribution(name, version, *lines) -> one whose METADATA has these lines too."""

    def make(name, version, *lines):
        folder = tmp_path / f"{name}-{version}-{len(lines)}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines]) + "\n")
        return PathDistribution(folder)

    return make


def test_the_bill_names_python_the_commit_and_what_is_installed():
    text = software_bill("prefline-policy", "abc", "0" * 40)
    body = json.loads(text)
    assert (body["bomFormat"], body["specVersion"], body["version"]) == ("CycloneDX", "1.6", 1)
    assert body["metadata"]["component"] == {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": "prefline-policy",
        "version": "abc",
    }
    assert body["metadata"]["properties"] == [{"name": "prefline:git_commit", "value": "0" * 40}]
    named = {part["name"]: part for part in body["components"]}
    assert {"CPython", "torch", "transformers", "mlflow", "pydantic"} <= named.keys()
    assert named["pydantic"]["purl"] == f"pkg:pypi/pydantic@{named['pydantic']['version']}"
    assert named["pydantic"]["licenses"] == [{"expression": "MIT"}]
    references = [part["bom-ref"] for part in body["components"]]
    assert len(set(references)) == len(references)
    assert "timestamp" not in text
    assert text == software_bill("prefline-policy", "abc", "0" * 40)
    assert json.loads(software_bill("prefline-policy", "abd", "0" * 40))["serialNumber"] != body["serialNumber"]


def test_licences_by_expression_classifier_or_word(distribution):
    found = libraries(
        [
            distribution("Zoo.Keeper", "2", "License-Expression: MIT AND Apache-2.0", "License: ignored"),
            distribution(
                "b", "1", "License: whole text", "Classifier: License :: OSI Approved", "Classifier: License :: OSI Approved :: ISC"
            ),
            distribution("c", "1", "License: BSD 3-Clause"),
            distribution("d", "1", f"License: {'long ' * 60}"),
            distribution("e", "1", "License: UNKNOWN"),
            distribution("zoo-keeper", "1"),
        ]
    )
    assert [(part["name"], part["version"], part.get("licenses")) for part in found] == [
        ("b", "1", [{"license": {"name": "ISC"}}]),
        ("c", "1", [{"license": {"name": "BSD 3-Clause"}}]),
        ("d", "1", None),
        ("e", "1", None),
        ("Zoo.Keeper", "2", [{"expression": "MIT AND Apache-2.0"}]),
    ]
    assert found[-1]["purl"] == "pkg:pypi/zoo-keeper@2"
