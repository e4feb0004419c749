"""What a comparison of methods found, as one checked document (compare.json): for people's tables, and for other programs."""

from __future__ import annotations

from pathlib import Path

from tasks.evaluation.result import Finding, WinRate

COMPARED, PICTURE = "compare.json", "compare.png"
"""In the folder of the run."""


class Reached(Finding):
    """What a policy reached on the held-out prompts. judge, gold: mean scores. kl: nats a sequence from the SFT model.

    *_gain: over SFT, in standard deviations of its answers' scores, with its interval. win_rate*: over SFT.
    length: tokens an answer. stopped: share that ended by themselves. What nobody measured is None.
    """

    kl: float
    judge: float
    judge_gain: tuple[float, float, float]
    gold: float | None = None
    gold_gain: tuple[float, float, float] | None = None
    win_rate: WinRate | None = None
    win_rate_gold: WinRate | None = None
    length: float | None = None
    stopped: float | None = None


class Step(Finding):
    """A look at a policy on the way, on the validation prompts: mean gains over SFT, in its standard deviations."""

    round: int
    kl: float
    judge_gain: float
    gold_gain: float | None


class MethodRow(Finding):
    """A method. error: why it came to nothing, or "". seconds, peak_bytes: of optimising, without evaluation; 0 bytes are unknown."""

    method: str
    error: str = ""
    reached: Reached | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    path: tuple[Step, ...] = ()


class BestOf(Finding):
    """The answer that the reward model likes best of n answers of the SFT model."""

    n: int
    reached: Reached


class Compared(Finding):
    """All methods of a run, beside the SFT model that they began from and the best of n of its answers.

    price_per_hour: of the machine, in the user's currency; 0 where nobody said.
    """

    run: str
    prompts: int = 0
    confidence: float = 0.95
    price_per_hour: float = 0.0
    sft: Reached | None = None
    methods: tuple[MethodRow, ...] = ()
    best_of_n: tuple[BestOf, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Compared:
        return cls.model_validate_json((folder / COMPARED).read_text(encoding="utf-8"))

    def save(self, folder: Path) -> None:
        (folder / COMPARED).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
