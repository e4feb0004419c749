"""The decision on a policy, as it is written down: decision.json, the flow's result, the last line of the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.registry.gates import Gate

_NAME = "decision.json"

DECISION, REASONS = "prefline.decision", "prefline.reasons"
"""Tags of a version."""

WAITING = "awaiting approval"


class Decision(BaseModel):
    """What became of the policy. model, version: its name and version in the registry. reasons: the gates that refused it.

    previous: the version that was champion until then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision: Literal["promoted", "awaiting approval", "not promoted", "already champion"]
    model: str
    version: str
    previous: str | None
    gates: list[Gate]
    reasons: list[str]

    @classmethod
    def load(cls, folder: Path) -> Decision:
        return cls.model_validate_json((folder / _NAME).read_text(encoding="utf-8"))

    def save(self, folder: Path) -> None:
        (folder / _NAME).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
