"""What a scorer is worth on comparisons that it was not trained on, as scores.json holds it: read by whoever shows it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from tasks.training.calibration import Bin
from tasks.training.intervals import Interval

SCORES = "scores.json"


@dataclass(frozen=True)
class Part:
    """Some of the comparisons. accuracy: with its interval, over prompts."""

    name: str
    comparisons: int
    accuracy: Interval


@dataclass(frozen=True)
class HeldOut:
    """As scores.json. accuracy: with its 95 % interval, over prompts. longer, shorter: accuracy of who always prefers that answer.

    loss: mean -log sigmoid(margin). length_correlation: of score and length among answers to one prompt. by_margin: from
    the closest quarter to the surest. calibration_error: of sigmoid(margin), and *_at_temperature of sigmoid(margin /
    temperature), the temperature being that of these very comparisons. uncertainty: mean over answers of the members'
    standard deviation; members: each one's accuracy; both of an ensemble only.
    """

    comparisons: int
    prompts: int
    accuracy: Interval
    longer: float
    shorter: float
    loss: float
    margin: float
    length_correlation: float
    temperature: float
    calibration_error: float
    calibration_error_at_temperature: float
    bins: list[Bin]
    bins_at_temperature: list[Bin]
    by_margin: list[Part]
    by_strength: list[Part]
    by_slice: list[Part]
    by_annotator: list[Part]
    uncertainty: float | None = None
    members: list[float] | None = None

    @classmethod
    def load(cls, folder: Path) -> HeldOut | None:
        """What the stage of a scorer wrote into its folder; None for a judge that no stage trained."""
        path = folder / SCORES
        return TypeAdapter(cls).validate_json(path.read_bytes()) if path.is_file() else None

    def save(self, folder: Path) -> None:
        (folder / SCORES).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @property
    def in_words(self) -> str:
        value, low, high = self.accuracy
        return (
            f"accuracy {value:.3f} (95 % interval {low:.3f} to {high:.3f}) on {self.comparisons:,} held-out comparisons of "
            f"{self.prompts:,} prompts, where the longer answer is preferred in {self.longer:.3f} and the shorter in {self.shorter:.3f}"
        )
