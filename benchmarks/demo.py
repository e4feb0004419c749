"""What the built-in line takes and reaches: `python benchmarks/demo.py [SEED ...]` on an otherwise idle machine.

Clones the committed project into a temporary folder and runs it there for each seed, then once more with nothing
changed. Time, peak memory (resident, summed over the process tree), the tools' share and the figures of the evaluation go
to benchmarks/results/demo.json by seed, and a row of the docs'
table to the terminal.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PREFLINE = Path(sys.executable).with_name("prefline")


def peak_memory(process: psutil.Process, done: threading.Event) -> list[float]:
    """GiB resident in the process and all its descendants, sampled until done."""
    seen = [0.0]
    while not done.wait(0.25):
        total = 0
        try:
            for member in [process, *process.children(recursive=True)]:
                try:
                    total += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            break
        seen.append(total / 2**30)
    return seen


def run(project: Path, *arguments: str) -> dict[str, Any]:
    """One `prefline run` in the project; its wall time, peak memory, exit code and record."""
    environment = {**psutil.Process().environ(), "PYTHONPATH": str(project)}
    begun = time.monotonic()
    with (project / "output.log").open("w") as log:
        started = subprocess.Popen([PREFLINE, "run", *arguments], cwd=project, env=environment, stdout=log, stderr=log)
        done, memory = threading.Event(), [0.0]
        watcher = threading.Thread(target=lambda: memory.extend(peak_memory(psutil.Process(started.pid), done)))
        watcher.start()
        code = started.wait()
        done.set()
        watcher.join()
    seconds = time.monotonic() - begun
    newest = max((project / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    record = json.loads(newest.read_text(encoding="utf-8"))
    stages = {stage["name"]: stage for stage in record["stages"]}
    return {
        "arguments": arguments,
        "exit": code,
        "seconds": round(seconds, 1),
        "peak_gib": round(max(memory), 2),
        "tools": {tool: round(value, 1) for tool, value in record["costs"].items()},
        "stages": {name: "skipped" if stage["skipped"] else round(stage["seconds"], 1) for name, stage in stages.items()},
        "decision": (record["decision"] or {}).get("decision"),
        "policy": stages["policy"]["metrics"],
        "evaluation": stages["evaluate"]["metrics"],
    }


def main(seeds: list[str]) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    results = RESULTS / "demo.json"
    found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            project = Path(folder) / f"seed-{seed}"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
            first = run(project, "--set", f"seed={seed}")
            again = run(project, "--set", f"seed={seed}")
            machine = {"commit": commit, "python": platform.python_version(), "cores": psutil.cpu_count()}
            found[f"seed {seed}"] = {**machine, "first": first, "again": again}
            results.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            print(line(seed, first, again), flush=True)


def line(seed: str, first: dict[str, Any], again: dict[str, Any]) -> str:
    """A row of the table in docs/benchmarks.md."""
    row, share = first["evaluation"], sum(first["tools"].values()) / first["seconds"]
    cells = [
        seed,
        f"{first['seconds']:.0f} s",
        f"{again['seconds']:.0f} s",
        f"{first['peak_gib']:.1f} GiB",
        f"{share:.0%}",
        f"{row['gold_sft']:.2f} to {row['gold_policy']:.2f}",
        f"{row['win_rate_gold']:.3f} ({row['win_rate_gold_low']:.3f})",
        f"{row['win_rate']:.3f} ({row['win_rate_low']:.3f})",
        f"{row['right_sft']:.0%} to {row['right_policy']:.0%}",
        f"{row['kl']:.1f}",
        str(first["decision"]),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(sys.argv[1:] or ["0", "1", "2"])
