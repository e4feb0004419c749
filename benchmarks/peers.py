"""Our engine and its peers on the same work, in turn: `python peers.py WHAT ... --trl116 PYTHON --trl112 PYTHON`.

WHAT: sft, reward, group, dpo, ppo, ppo-shared, ppo-mixed, sampling, or all of them. Every measurement is a process of its own; ours and the
peer's follow one another, each pair in the other order, and what counts is the median of the pairs' ratios. The machine has
to be idle: two busy processes slow one another tenfold. Results are added to results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = {"sft": 2048, "reward": 2048, "group": 512, "dpo": 1024, "ppo": 512, "ppo-shared": 512, "ppo-mixed": 512, "sampling": 512}
SMALL = {"sft": 32, "reward": 16, "group": 8, "dpo": 16, "ppo": 16, "ppo-shared": 16, "sampling": 64}
"""With SmolLM2, which is a hundred times the tiny model. Its answers end by themselves, so that there is no PPO of mixed ones."""
COUNTS = {"tiny": ROWS, "smollm": SMALL, "gpu": ROWS}


def measure(python: str, script: str, kind: str, what: str, rows: int, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own prints."""
    command = [python, str(HERE / script), kind, what, "--rows", str(rows), "--seed", str(seed), "--threads", str(given.threads)]
    command += ["--scale", given.scale, *(["--model", str(given.model)] if given.model else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=os.environ | {"OMP_NUM_THREADS": str(given.threads)})
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(what: str, given: argparse.Namespace) -> dict[str, Any]:
    """Pairs of measurements, and what they come to."""
    rows = given.rows or COUNTS[given.scale][what]
    ours = (sys.executable, "peer_prefline.py", "time", what)
    if what == "sampling":
        theirs = (sys.executable, "peer_prefline.py", "time", "generate")
    else:
        theirs = (given.trl112 if what.startswith("ppo") else given.trl116, "peer_trl.py", "time", what)
    pairs = []
    for seed in range(given.pairs):
        order = [("ours", ours), ("peer", theirs)]
        pairs.append({name: measure(*call, rows, seed, given) for name, call in (order if seed % 2 == 0 else order[::-1])})
        print(
            f"{what} {seed + 1}/{given.pairs}: " + ", ".join(f"{name} {one['a_second']:.1f}/s" for name, one in pairs[-1].items()),
            flush=True,
        )
    found: dict[str, Any] = {
        "rows": rows,
        "ratio": statistics.median(pair["ours"]["a_second"] / pair["peer"]["a_second"] for pair in pairs),
        **{
            f"{name}_{figure}": statistics.median(pair[name][figure] for pair in pairs)
            for name in ("ours", "peer")
            for figure in ("a_second", "loss", "peak_mib")
        },
        "ours_tflops_a_second": statistics.median(pair["ours"].get("tflops_a_second", 0.0) for pair in pairs),
        "pairs": pairs,
    }
    if what != "sampling" and given.scale != "smollm":
        found["floor"] = measure(sys.executable, "peer_prefline.py", "floor", what, rows, 0, given)
    if what != "sampling" and given.scale == "tiny":  # on a GPU a call ends before its work does
        found["shares"] = measure(sys.executable, "peer_prefline.py", "profile", what, rows, 0, given)["shares"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="+", choices=[*ROWS, "all"])
    parser.add_argument("--trl116", default="python", help="of an environment with trl 1.16.0")
    parser.add_argument("--trl112", default="python", help="of an environment with trl 1.12.0, the last that has PPO")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, help="instead of what each takes by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", choices=list(COUNTS), default="tiny", help="smollm: with --model a folder of SmolLM2-135M; gpu: bf16")
    parser.add_argument("--model", type=Path, help="folder of a model, instead of the tiny one")
    given = parser.parse_args()
    path = HERE / "results" / ("peers-gpu.json" if given.scale == "gpu" else "peers.json")
    known = json.loads(path.read_text()) if path.exists() else {}
    for what in COUNTS[given.scale] if "all" in given.what else given.what:
        found = compare(what, given)
        known[what if given.scale == "tiny" else f"{what}, {given.model.name}"] = found
        path.write_text(json.dumps(known, indent=1) + "\n")
        print(
            f"{what}: {found['ratio']:.2f} times ({found['ours_a_second']:.1f} and {found['peer_a_second']:.1f} a second), "
            f"loss {found['ours_loss']:.4f} and {found['peer_loss']:.4f}, "
            f"peak {found['ours_peak_mib']:.0f} and {found['peer_peak_mib']:.0f} MiB, "
            f"{found['ours_tflops_a_second']:.2f} TFLOP/s"
            + (f", {found['floor']['times_floor']:.2f} times the floor" if "floor" in found else ""),
            flush=True,
        )


if __name__ == "__main__":
    main()
