"""Our engine on the workload: `python peer_prefline.py time|floor|profile|operators WHAT ...` or `sweep` prints a line of JSON.

Called by benchmarks/peers.py. Start-up and tokenising are outside the time, as they are of the peer's train(). Nothing is saved
and nobody looks on, because the peer does neither. time generate: transformers' own sampling, the peer of ours.

floor: the bare forward and backward passes of the same batches, laid out beforehand: no optimiser, clipping or losses beyond
what a backward pass needs. profile: where the time goes; each part without those within it. operators: where the floor's does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import workload
from clock import Clock
from peer_jobs import prepare, processes_of, read_answers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import PreTrainedModel
from workload import SCALES, Scale

from tasks.training import rollouts
from tasks.training.models import left_padded, without_dropout
from tasks.training.processes import Processes
from tasks.training.sampling import Sampling, sample
from tasks.training.trees import Layout, Tree, lay_out_for

# Sampling ------------------------------------------------------------------------------------------------------------


def sampled(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    """Tokens of answers a second, by our sample() or by transformers' generate(), in batches of scale.answers."""
    words = workload.tokenizer(folder, "left")
    prompts = [workload.encoded(words, row)[0] for row in workload.rankings(count, scale.question, scale.reply)]
    here = processes_of(scale)
    model = without_dropout(workload.policy(folder)).to(here.device).eval()
    if folder is None:
        workload.end_sometimes(model, scale)
    else:
        model.set_output_embeddings(workload.EndsSometimes(model.get_output_embeddings(), words.eos_token_id, scale))
    draw = {"sampling": _by_us, "generate": _by_transformers}[what]
    lengths: list[int] = []

    def work() -> None:
        for first in range(0, count, scale.answers):
            lengths.extend(draw(model, prompts[first : first + scale.answers], scale, words.eos_token_id, seed + first))

    with here.autocast():
        draw(model, prompts[:8], replace(scale, new_tokens=4), words.eos_token_id, seed)  # warm
        seconds = _seconds(work)
    return {
        "a_second": sum(lengths) / seconds,
        "seconds": seconds,
        "peak_mib": workload.peak_mib(),
        "loss": statistics.fmean(lengths),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]},
    }


def _by_us(model: PreTrainedModel, prompts: list[list[int]], scale: Scale, eos: int, seed: int) -> list[int]:
    sampling = Sampling(scale.new_tokens, scale.temperature)
    return [len(answer.tokens) for answer in sample(model, prompts, sampling, eos, sampling.noise(len(prompts), seed))]


@torch.inference_mode()
def _by_transformers(model: PreTrainedModel, prompts: list[list[int]], scale: Scale, eos: int, seed: int) -> list[int]:
    torch.manual_seed(seed)
    tokens, mask = (tensor.to(model.device) for tensor in left_padded(prompts))
    how = {"do_sample": True, "temperature": scale.temperature, "top_k": 0, "top_p": 1.0, "pad_token_id": 0, "eos_token_id": eos}
    said = model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=scale.new_tokens, **how)[:, tokens.shape[1] :].tolist()
    return [row.index(eos) + 1 if eos in row else len(row) for row in said]


# Measuring -----------------------------------------------------------------------------------------------------------


def timed(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    job = prepare(what, count, scale, folder, seed)
    seconds = _seconds(job.work)
    found = {"a_second": count / seconds, "seconds": seconds, "peak_mib": workload.peak_mib(), "loss": job.loss()}
    found["tflops_a_second"] = job.flops() / seconds / 1e12
    return found | {"versions": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}}


def floor(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    """Seconds of the work and of its bare passes; both have run once before, to be warm."""
    bare = _warm_bare(what, count, scale, folder, seed)
    again = prepare(what, count, scale, folder, seed)
    ours, least = _seconds(again.work), _seconds(bare)
    return {"seconds": ours, "floor": least, "times_floor": ours / least}


def _warm_bare(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> Callable[[], None]:
    """The bare passes of the work, which has run once, as they have."""
    job = prepare(what, count, scale, folder, seed)
    job.work()
    bare = job.bare()
    bare()
    return bare


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def profile(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    """Shares of the time: passes with a gradient to come (forward) and without (reading), backward, and so on."""
    clock = Clock()
    for module in [module for name, module in sys.modules.items() if name.startswith("tasks.training.")]:
        for name in ("lay_out_for", "microbatches"):
            if hasattr(module, name):
                setattr(module, name, clock.timing("data", getattr(module, name)))
    rollouts.sample = clock.timing("sampling beside its passes", sample)
    torch.Tensor.backward = clock.timing("backward", torch.Tensor.backward)
    Processes.clip = clock.timing("clipping", Processes.clip)
    register_optimizer_step_pre_hook(lambda *_: clock.enter("optimiser"))
    register_optimizer_step_post_hook(lambda *_: clock.leave())
    job = prepare(what, count, scale, folder, seed)
    for model in job.models:
        for part in (model.base_model, model.get_output_embeddings()):
            if part is not None:
                part.register_forward_pre_hook(lambda *_: clock.enter("forward" if torch.is_grad_enabled() else "reading"))
                part.register_forward_hook(lambda *_: clock.leave())
    clock.start()
    with clock.on("other"):
        seconds = _seconds(job.work)
    return {"seconds": seconds, "shares": {name: round(value / seconds, 4) for name, value in clock.spent.most_common()}}


def operators(what: str, count: int, scale: Scale, folder: Path | None, seed: int) -> dict[str, Any]:
    """Shares of the bare passes' time by torch's operators: matrix products, attention, all others."""
    bare = _warm_bare(what, count, scale, folder, seed)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        bare()
    spent: Counter[str] = Counter()
    for one in seen.key_averages():
        products = one.key in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
        kind = "products" if products else "attention" if "scaled_dot_product" in one.key else "other"
        spent[kind] += one.self_cpu_time_total
    return {"shares": {kind: round(value / spent.total(), 4) for kind, value in spent.most_common()}}


def sweep(scale: Scale, folder: Path | None) -> dict[str, Any]:
    """What a pass costs beside its tokens, in tokens: the straight line through the times of batches of 1 to 64 rows."""
    width = 2 * (sum(scale.prompt) + sum(scale.reply)) // 4
    policy, here = workload.policy(folder).to(scale.device), processes_of(scale)
    tokens, seconds = [], []

    def passes(layout: Layout) -> None:
        with here.autocast():
            loss = read_answers(policy, layout)
        loss.backward()

    for rows in (1, 2, 4, 8, 16, 32, 64):
        layout = lay_out_for(policy, [Tree([2] * (width // 2), [[3] * (width - width // 2)])] * rows)
        times = [_seconds(partial(passes, layout)) for _ in range(8)]
        tokens.append(rows * width)
        seconds.append(statistics.median(times[1:]))
    # Relative errors count alike: else the widest batches alone would say what the narrowest cost
    slope, call = np.polyfit(tokens, seconds, 1, w=1 / np.array(seconds))
    return {"width": width, "call_in_tokens": call / slope, "seconds": dict(zip(map(str, tokens), seconds, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["time", "floor", "profile", "operators", "sweep"])
    parser.add_argument("what", nargs="?", help="sft, reward, group, dpo, ppo, ppo-shared, ppo-mixed; time alone: sampling, generate")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="its folder, instead of the tiny model")
    parser.add_argument("--scale", choices=list(SCALES), default="tiny")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    scale = SCALES[given.scale]
    if given.kind == "sweep":
        print(json.dumps(sweep(scale, given.model)))
        return
    measure = {"time": timed, "floor": floor, "profile": profile, "operators": operators}[given.kind]
    if given.what in ("sampling", "generate"):
        measure = sampled
    print(json.dumps(measure(given.what, given.rows, scale, given.model, given.seed)))


if __name__ == "__main__":
    main()
