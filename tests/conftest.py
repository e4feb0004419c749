"""What all tests share: a quiet, offline environment with one thread, and models small enough for sums by hand."""

import atexit
import os
import shutil
import subprocess
import tempfile

import pytest
from hypothesis import settings

# Before torch, prefect or mlflow are imported: they read these once.
_HOME = tempfile.mkdtemp(prefix="prefline-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    OMP_NUM_THREADS="1",  # losses differ in the sixth digit between one thread and two
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    DO_NOT_TRACK="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_LOGGING_LEVEL="WARNING",
    MLFLOW_DISABLE_TELEMETRY="true",
)
os.environ.setdefault("PREFECT_HOME", _HOME)
for _name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):  # nothing reaches a real server
    os.environ.pop(_name, None)

settings.register_profile("prefline", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("prefline")

TEXTS = ["How warm is the red lamp?", "The red lamp is warm.", "Sorry, I can't help with that.", "What does the blue kettle cost?"]


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE with 300 tokens, trained on four sentences."""
    from tasks.training.base import train_tokenizer

    return train_tokenizer(TEXTS * 4, 300)


@pytest.fixture(scope="session")
def make_llama():
    """make_llama(vocabulary) -> a Llama of one layer and width 16, its weights spread so that no two tokens are alike."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(vocabulary, seed=0, spread=0.3, width=16, context=128):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=context,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=1,
                pad_token_id=0,
            )
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def llama(make_llama, tokenizer):
    """A Llama of width 16 for the tokenizer; <|pad|> is 0 and <|end|>, the EOS, is 1."""
    return make_llama(len(tokenizer))


@pytest.fixture
def policy_folder(llama, tokenizer, tmp_path):
    """The Llama as Prefline saves a policy."""
    from tasks.training.models import save

    save(llama, tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture(scope="session")
def git():
    """git(folder, *arguments) -> what git prints, by somebody who has no settings of their own."""
    settings = {"user.name": "Tester", "user.email": "tester@example.org", "commit.gpgsign": "false", "init.defaultBranch": "main"}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def call(folder, *arguments):
        return subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout

    return call


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory):
    """A SQLite file with MLflow's tables: making them takes seconds, copying the file does not."""
    from tasks.registry.store import connect

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments(max_results=1)
    return path
