"""Out of memory, with a real limit on a real process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.config import PipelineConfig
from tasks.errors import EnvironmentRefused
from tasks.stage import Settings
from tasks.training.memory import memory_errors

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
