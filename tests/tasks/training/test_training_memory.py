"""Out of memory, with a real limit on a real process."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.config import PipelineConfig
from tasks.errors import EnvironmentRefused
from tasks.stage import Settings
from tasks.training.memory import forget_peak, keep_freed_memory, memory_errors, peak_bytes

ROOT = Path(__file__).parents[3]


def settings(**changes):
    return Settings(PipelineConfig.model_validate(changes), ("sft", "policy"))


PROGRAM = """
import resource
from test_training_memory import *
torch.zeros(1)
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
try:
    with memory_errors("sft", settings(sft={"tokens_at_once": 4096})):
        torch.ones(2**31)
except EnvironmentRefused as error:
    print(error)
"""


def test_memory_that_ends_names_the_key_to_lower():
    program = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]" + PROGRAM
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("sft: out of memory (")
    assert "Lower sft.tokens_at_once (now 4096): the result stays the same." in said


@pytest.mark.parametrize(("method", "key"), [("ppo", "policy.tokens_at_once (now 8192)"), ("dpo", "policy.dpo.tokens_at_once (now 77)")])
def test_the_key_is_that_of_the_method(method, key):
    config = settings(policy={"method": method, "dpo": {"tokens_at_once": 77}})
    with pytest.raises(EnvironmentRefused) as caught, memory_errors("policy", config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    assert key in caught.value.advice


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("sft", settings()):
        raise RuntimeError("shapes do not match")


BIG = 2**26
"""Numbers: 256 MiB."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part of a process's life")
def test_the_peak_is_of_what_came_after_it_was_forgotten():
    keep_freed_memory()
    forget_peak()
    before = peak_bytes()
    torch.ones(BIG)  # freed at once, and kept by glibc
    after = peak_bytes()
    assert after - before == pytest.approx(4 * BIG, rel=0.1)
    forget_peak()
    assert peak_bytes() - before < BIG


PASSES = """
import resource, torch
from tasks.training.memory import keep_freed_memory
keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def passes(count):
    for _ in range(count):
        torch.ones(2**25)
passes(10)  # the heap has to find its size
before = faults()
passes(20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems' memory is not told what to keep")
def test_memory_that_was_freed_is_there_for_the_next_pass():
    """A tensor of 128 MiB is 32,768 pages: handed back, each of twenty passes touches them as if new."""
    out = subprocess.run([sys.executable, "-c", PASSES], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert int(out) < 32_768


HUGE = """
import sys, torch
from tasks.training.memory import keep_freed_memory
def huge():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps") if line.startswith("AnonHugePages"))
before = huge()
if sys.argv[1] == "kept":
    keep_freed_memory()
kept = [torch.ones(2**18) for _ in range(256)]
print(huge() - before)
"""
OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not OFFERED.exists() or "[madvise]" not in OFFERED.read_text(), reason="huge pages are not to be had by asking here")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems' heap is not told what to be made of")
@pytest.mark.parametrize(("kept", "share"), [("kept", (0.8, 1.1)), ("as it is", (0.0, 0.2))])
def test_tensors_lie_in_huge_pages(kept, share):
    """256 tensors of 1 MiB: too small for pages of their own, so it is the heap that must have been told."""
    out = subprocess.run([sys.executable, "-c", HUGE, kept], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    least, most = share
    assert least <= int(out) / (256 * 1024) <= most
