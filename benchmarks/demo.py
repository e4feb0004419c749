"""What the built-in line takes and reaches: `python benchmarks/demo.py [SEED ...]` on an otherwise idle machine.

Clones the committed project into a temporary folder and runs it there for each seed, then once more with nothing
changed. Time, peak memory (resident, summed over the process tree), the tools' share and the figures of the evaluation go
to benchmarks/results/demo.json and, as a table, to the terminal.
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


def run(project: Path, *arguments: str) -> dict[str, object]:
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
        "ppo": stages["ppo"]["metrics"],
        "evaluation": stages["evaluate"]["metrics"],
    }


def main(seeds: list[str]) -> None:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            project = Path(folder) / f"seed-{seed}"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
            first = run(project, "--set", f"seed={seed}")
            again = run(project, "--set", f"seed={seed}")
            found.append({"seed": seed, "first": first, "again": again})
            row = first["evaluation"]
            share = sum(first["tools"].values()) / first["seconds"]
            print(
                f"seed {seed}: {first['seconds']} s, again {again['seconds']} s, {first['peak_gib']} GiB, tools {share:.0%}, "
                f"{first['decision']}; gold {row['gold_sft']:.2f} -> {row['gold_policy']:.2f}, wins {row['win_rate_gold']:.3f} "
                f"(from {row['win_rate_gold_low']:.3f}), judge {row['win_rate']:.3f} (from {row['win_rate_low']:.3f}), "
                f"right {row['right_sft']:.3f} -> {row['right_policy']:.3f}, KL {row['kl']:.2f}",
                flush=True,
            )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    RESULTS.mkdir(exist_ok=True)
    body = {"commit": commit, "python": platform.python_version(), "cores": psutil.cpu_count(), "runs": found}
    (RESULTS / "demo.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or ["0", "1", "2"])
