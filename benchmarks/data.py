"""What a million comparisons take: `python benchmarks/data.py [ROWS ...]` on an otherwise idle machine, 6 GB of disk free.

Makes so many comparisons of about 1 KB each, then takes them in as a batch (`prefline data import`), and imports, groups,
splits and validates them as the line of data does, each step in a process of its own. Seconds and peak memory (resident) of
each, with the start of Python, go to benchmarks/results/data.json by number of rows, and as a table to the terminal. The
search for near-duplicates is what `normalise` takes longer with it than without.
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson

from tasks.config import DataConfig, PipelineConfig
from tasks.data import prepare
from tasks.data.batches import import_batch
from tasks.data.dvc_store import folder_md5
from tasks.data.formats import Reading
from tasks.data.snapshot import SNAPSHOT, Snapshot
from tasks.data.validate import validate
from tasks.stage import Context, StageResult

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "data.json"
POINTS = (10_000, 100_000, 1_000_000)
COMPARISONS, DEMONSTRATIONS = "comparisons.jsonl", "demonstrations.jsonl"
STEPS = ("batch", "import", "normalise", "near", "split", "validate")
MAX_TOKENS = 1024
PEAK = "peak.txt"


# Data -----------------------------------------------------------------------------------------------------------------


def comparisons(rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Comparisons as labelling leaves them: one to four pairs a prompt, one to three judges a pair, who do not always agree.

    One prompt in twenty is an earlier one with a word changed, and so are its first answers; one in ten belongs to the
    conversation of the prompt before.
    """
    rng = random.Random(seed)
    write = Writer(rng)
    annotators = [f"annotator {number}" for number in range(60)]
    recent = [(write.text(40), (write.text(50), write.text(50)))]
    left, group = rows, 0
    while left:
        again = rng.random() < 0.05
        prompt, answers = rng.choice(recent) if again else (write.text(rng.randint(20, 60)), write.answers())
        if again:
            prompt, answers = write.changed(prompt), (write.changed(answers[0]), write.changed(answers[1]))
        recent = [*recent[-99:], (prompt, answers)]
        group += rng.random() < 0.9
        tags = [f"slice {group % 12}"]
        for pair in range(rng.randint(1, 4)):
            answers = write.answers() if pair else answers
            for annotator in rng.sample(annotators, rng.randint(1, 3))[:left]:
                better = rng.random() < 0.75
                chosen, rejected = answers if better else answers[::-1]
                yield {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                    "annotator": annotator,
                    "tie": rng.random() < 0.05,
                    "chosen_first": rng.random() < 0.5,
                    "seconds": round(rng.uniform(5, 90), 1),
                    "group_id": f"conversation {group}",
                    "tags": tags,
                }
                left -= 1


def demonstrations(rows: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    write = Writer(random.Random(seed))
    for _ in range(rows):
        yield {"prompt": write.text(40), "completion": write.text(55)}


class Writer:
    """Texts of made-up words, the first ones far more common than the last."""

    def __init__(self, rng: random.Random, words: int = 20_000) -> None:
        self._rng = rng
        parts = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
        spelling = random.Random("spelling")
        self._words = ["".join(spelling.choices(parts, k=spelling.randint(1, 4))) for _ in range(words)]
        self._weights = list(accumulate(1 / (rank + 10) for rank in range(words)))

    def text(self, words: int) -> str:
        return " ".join(self._rng.choices(self._words, cum_weights=self._weights, k=words)).capitalize() + "."

    def answers(self) -> tuple[str, str]:
        return self.text(self._rng.randint(30, 80)), self.text(self._rng.randint(30, 80))

    def changed(self, text: str) -> str:
        words = text.split()
        words[self._rng.randrange(len(words))] = self._rng.choice(self._words)
        return " ".join(words)


def write(folder: Path, rows: int) -> float:
    """The sources; returns the bytes a comparison."""
    for name, made in ((COMPARISONS, comparisons(rows)), (DEMONSTRATIONS, demonstrations(max(rows // 100, 100)))):
        with (folder / name).open("wb") as file:
            for row in made:
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return (folder / COMPARISONS).stat().st_size / rows


# Steps ----------------------------------------------------------------------------------------------------------------


def step(name: str, folder: Path) -> None:
    """One step of the line, in this process."""
    if name == "batch":
        import_batch(folder, [str(folder / COMPARISONS)], Reading())
        return
    config = DataConfig(comparisons=[COMPARISONS], demonstrations=[DEMONSTRATIONS], near_duplicates=0 if name == "normalise" else 0.8)
    if name == "import":
        prepare.import_sources(config, ROOT / "data" / "shop.yaml", folder, folder / "imported")
    elif name in ("normalise", "near"):
        prepare.normalise(config, folder / "imported", folder / "normalised")
    elif name == "split":
        prepare.split(config.split, folder / "normalised", folder / "prepared")
    else:
        _validate(folder)


def _validate(folder: Path) -> None:
    seen = json.loads((folder / SNAPSHOT).read_text(encoding="utf-8"))
    data = StageResult(stage="snapshot", key="k", path=folder, digest=seen["md5"], metrics={}, seconds=0)
    base = StageResult(stage="base", key="k", path=folder / "base", digest="d", metrics={}, seconds=0)
    config = PipelineConfig.model_validate({"max_tokens": MAX_TOKENS, "tiny": {"context": MAX_TOKENS}})
    validate.run(config, {"data": data, "base": base}, Context(folder, folder / "runs"))


def snapshot(folder: Path) -> None:
    """What validating needs besides the data: their hash, and a model's tokenizer."""
    from tasks.training.base import train_tokenizer

    texts = [row["prompt"][0]["content"] for row in comparisons(2000, seed=2)]
    train_tokenizer(texts, 640).save_pretrained(folder / "base" / "model")
    md5 = folder_md5(folder / "prepared")
    seen = Snapshot(folder=Path("prepared"), md5=md5, comparisons=0, demonstrations=0, rejects=0, splits={})
    (folder / SNAPSHOT).write_text(seen.model_dump_json(), encoding="utf-8")


def measured(name: str, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of a step in a process of its own."""
    begun = time.monotonic()
    command = [sys.executable, __file__, "--step", name, str(folder)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    seconds = time.monotonic() - begun
    return {"seconds": round(seconds, 1), "peak_gb": round(int((folder / PEAK).read_text(encoding="utf-8")) * 1024 / 1e9, 2)}


def peak() -> int:
    """Peak resident memory of this process, KiB. Not ru_maxrss, which begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def measure(rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found: dict[str, Any] = {"bytes_a_row": round(write(folder, rows))}
        for name in STEPS:
            if name == "validate":
                snapshot(folder)
            found[name] = measured(name, folder)
        found["near"]["seconds"] = round(found["near"]["seconds"] - found["normalise"]["seconds"], 1)
        found["counts"] = json.loads((folder / "prepared" / prepare.COUNTS).read_text(encoding="utf-8"))
    return found


def main(points: list[int]) -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    print(f"| rows | {' | '.join(STEPS)} |\n|{'---:|' * (len(STEPS) + 1)}")
    for rows in points:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        found[str(rows)] = {"commit": commit, "python": platform.python_version(), "cores": os.cpu_count()} | measure(rows)
        RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(line(rows, found[str(rows)]), flush=True)


def line(rows: int, found: dict[str, Any]) -> str:
    """A row of the table in docs/benchmarks.md."""
    cells = [f"{found[name]['seconds']:.1f} s, {found[name]['peak_gb']:.2f} GB" for name in STEPS]
    return f"| {rows:,} | {' | '.join(cells)} |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step(sys.argv[2], Path(sys.argv[3]))
        (Path(sys.argv[3]) / PEAK).write_text(str(peak()), encoding="utf-8")
    else:
        main([int(rows) for rows in sys.argv[1:]] or list(POINTS))
