"""What software a version was made with: a bill of materials in CycloneDX, the same bytes for the same software."""

from __future__ import annotations

import json
import platform
import re
import uuid
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, PackageMetadata, distributions
from typing import Any

BILL = "software.cdx.json"

LONGEST_LICENCE = 100
"""Characters of a licence's name; what is longer is its text."""


def software_bill(name: str, version: str, commit: str) -> str:
    """CycloneDX 1.6 as JSON: Python, the machine's kind, and every distribution that this process could import.

    name, version: of the model that it is about. commit: of the project.
    """
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "machine-learning-model", "bom-ref": "model", "name": name, "version": version},
            "properties": [{"name": "prefline:git_commit", "value": commit}],
        },
        "components": [
            {"type": "operating-system", "bom-ref": "system", "name": platform.system(), "version": platform.machine()},
            {"type": "platform", "bom-ref": "python", "name": platform.python_implementation(), "version": platform.python_version()},
            *_installed(),
        ],
    }
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return json.dumps(body | {"serialNumber": f"urn:uuid:{number}"}, sort_keys=True, indent=1) + "\n"


@cache
def _installed() -> list[dict[str, Any]]:
    return libraries(distributions())


def libraries(found: Iterable[Distribution]) -> list[dict[str, Any]]:
    """A component for each distribution, by name; of two of one name the first, which is the one that is imported."""
    named: dict[str, PackageMetadata] = {}
    for one in found:
        metadata = one.metadata  # parsed anew whenever it is asked for
        if metadata["Name"]:
            named.setdefault(re.sub(r"[-_.]+", "-", metadata["Name"]).lower(), metadata)
    return [_component(name, named[name]) for name in sorted(named)]


def _component(name: str, metadata: PackageMetadata) -> dict[str, Any]:
    version = metadata["Version"]
    address = f"pkg:pypi/{name}@{version}"
    component = {"type": "library", "bom-ref": address, "name": metadata["Name"], "version": version, "purl": address}
    licences = _licences(metadata)
    return component | ({"licenses": licences} if licences else {})


def _licences(metadata: PackageMetadata) -> list[dict[str, Any]]:
    """An SPDX expression where there is one; else the names that its classifiers give, else its own word."""
    if "License-Expression" in metadata:
        return [{"expression": metadata["License-Expression"]}]
    classifiers = [one.split(" :: ")[-1] for one in metadata.get_all("Classifier") or () if one.startswith("License :: ")]
    said = metadata["License"].strip() if "License" in metadata else ""
    own = [said] if re.fullmatch(rf".{{1,{LONGEST_LICENCE}}}", said) and said != "UNKNOWN" else []
    names = [name for name in classifiers if name != "OSI Approved"] or own
    return [{"license": {"name": name}} for name in dict.fromkeys(names)]
