"""Ours and TRL on the same work, in turn: `python benchmarks/peers.py --trl116 PYTHON --trl112 PYTHON` on an otherwise idle machine.

Each run is a process of its own with two threads, never two at once, and who begins changes from pair to pair. Compared are
rows a second of training (without start-up and tokenising), peak memory, and the loss on rows that nobody trained on; for
PPO rewards less the KL penalty. The seed, of the order of rows and of sampling, is the pair's number on both sides.
Settings are the peer's: a batch of 32, AdamW at 1e-3 falling linearly to 0, gradients clipped at 1, fp32. Ours differ in
Adam's second beta (0.98; TRL's is 0.999), and in PPO's clipped gradients and Adam's epsilon.

--floor: ours against its bare forward and backward passes. --profile: where our time goes. --sweep: what a pass costs beside its
tokens. All goes to benchmarks/results/peers.json by what was measured, and as tables to the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "peers.json"
ROWS = {"sft": 2048, "reward": 2048, "group": 512, "dpo": 2048, "ppo": 512, "sampling": 512}
SMOLLM_ROWS = {"sft": 64, "reward": 64, "dpo": 64, "ppo": 32, "sampling": 64}
ONCE = ("sft", "reward", "group", "dpo", "ppo")
"""What has a floor and a profile."""


@dataclass(frozen=True)
class Setting:
    """Where runs happen. python: of TRL's environments, by version. smollm: a folder, or None for the tiny model."""

    python: dict[str, str]
    threads: int
    rows: int | None
    smollm: Path | None = None

    def count(self, what: str) -> int:
        return self.rows or (SMOLLM_ROWS if self.smollm else ROWS)[what]

    def ours(self, kind: str, what: str, seed: int = 0) -> dict[str, Any]:
        count = self.count("sampling" if what == "generate" else what)
        return self._run([sys.executable, str(HERE / "peer_prefline.py"), kind, what], count, seed)

    def peer(self, what: str, seed: int) -> dict[str, Any]:
        """TRL, or for sampling transformers' generate() in our own environment."""
        if what == "sampling":
            return self.ours("time", "generate", seed)
        python = self.python["1.12" if what == "ppo" else "1.16"]
        return self._run([python, str(HERE / "peer_trl.py"), "time", what], self.count(what), seed)

    def sweep(self) -> dict[str, Any]:
        return self._run([sys.executable, str(HERE / "peer_prefline.py"), "sweep"], 0, 0)

    def _run(self, command: list[str], count: int, seed: int) -> dict[str, Any]:
        command += ["--rows", str(count), "--seed", str(seed), "--threads", str(self.threads)]
        command += ["--smollm", str(self.smollm)] if self.smollm else []
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def compare(what: str, pairs: int, setting: Setting) -> dict[str, Any]:
    """Runs of both, pair by pair, and the middle of their ratios."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for number in range(pairs):
        for own in (True, False) if number % 2 == 0 else (False, True):
            (ours if own else theirs).append(setting.ours("time", what, number) if own else setting.peer(what, number))
    ratios = [own["a_second"] / their["a_second"] for own, their in zip(ours, theirs, strict=True)]
    return {"rows": setting.count(what), "ratio": statistics.median(ratios), "ratios": ratios, "ours": ours, "peer": theirs}


def line(what: str, found: dict[str, Any]) -> str:
    """A row of the table in docs/benchmarks.md. Losses: the mean over the pairs, and the largest difference within one."""

    def middle(side: str, key: str) -> float:
        return statistics.median(run[key] for run in found[side])

    losses = [[run["loss"] for run in found[side]] for side in ("ours", "peer")]
    apart = max(abs(own - their) for own, their in zip(*losses, strict=True))
    cells = [f"{middle(side, 'a_second'):,.1f}" for side in ("ours", "peer")]
    cells += [f"{found['ratio']:.2f} ({min(found['ratios']):.2f} to {max(found['ratios']):.2f})"]
    cells += [f"{statistics.fmean(loss):.4f}" for loss in losses] + [f"{apart:.4f}"]
    cells += [f"{middle(side, 'peak_mib'):,.0f}" for side in ("ours", "peer")]
    return f"| {what} | {' | '.join(cells)} |"


def folder_of(gguf: Path, folder: Path) -> Path:
    """A GGUF file as a folder of safetensors, which both sides can read."""
    from tasks.config import TinyConfig
    from tasks.training.base import build_base
    from tasks.training.models import save

    model, words = build_base(str(gguf), TinyConfig(), [], seed=0)
    save(model, words, folder)
    return folder


def keep(name: str, found: dict[str, Any], threads: int) -> None:
    """Add to the results, with what they were measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    machine = {"commit": commit, "python": platform.python_version(), "cores": os.cpu_count(), "threads": threads}
    results[name] = machine | found
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def measure(given: argparse.Namespace, setting: Setting) -> None:
    prefix = "smollm " if setting.smollm else ""
    if given.sweep:
        found = setting.sweep()
        keep(f"{prefix}sweep", found, setting.threads)
        print(f"A pass costs {found['call_in_tokens']:.0f} tokens beside its own.")
        return
    possible = SMOLLM_ROWS if setting.smollm else ROWS
    wanted = [what for what in given.what or possible if what in possible and (what in ONCE or not (given.floor or given.profile))]
    if given.floor or given.profile:
        for what in wanted:
            kind = "floor" if given.floor else "profile"
            found = setting.ours(kind, what) | {"rows": setting.count(what)}
            keep(f"{prefix}{kind} {what}", found, setting.threads)
            shares = ", ".join(f"{name} {share:.1%}" for name, share in found.get("shares", {}).items())
            print(f"{prefix}{what}: {shares or format(found['times_floor'], '.2f') + ' times its bare passes'}", flush=True)
        return
    print(
        "| | ours, a second | peer | ratio | loss, ours | peer | apart | MiB, ours | peer |\n|:---|---:|---:|:---|---:|---:|---:|---:|---:|"
    )
    for what in wanted:
        found = compare(what, given.pairs, setting)
        keep(f"{prefix}{what}", found, setting.threads)
        print(line(f"{prefix}{what}", found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", action="append", choices=[*ROWS, "smollm"], help="again for several; all of the tiny model if not given")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, help="rows, rankings, episodes or prompts of a run; each benchmark's own if not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl116", default="", help="python of an environment with torch 2.13 and trl 1.16.0")
    parser.add_argument("--trl112", default="", help="python of an environment with torch 2.13 and trl 1.12.0")
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M, for --what smollm")
    parser.add_argument("--floor", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args()
    python = {"1.16": given.trl116, "1.12": given.trl112}
    if "smollm" not in (given.what or []):
        measure(given, Setting(python, given.threads, given.rows))
        return
    if given.gguf is None:
        parser.error("--what smollm needs --gguf")
    given.what = [what for what in given.what if what != "smollm"]
    with tempfile.TemporaryDirectory() as temporary:
        measure(given, Setting(python, given.threads, given.rows, folder_of(given.gguf, Path(temporary) / "model")))


if __name__ == "__main__":
    main()
