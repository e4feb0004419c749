"""Asking a registered policy: load it by its alias or version as anybody would, and sample as training does."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.data.encoding import decode, encode_prompt
from tasks.data.records import user
from tasks.errors import PreflineError
from tasks.registry.champion import CHAMPION, by_alias, by_version, fetch
from tasks.registry.store import Store, talking_to
from tasks.training.sampling import Sampling, sample

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Reply:
    """version: of the policy that answered. stopped: it ended by itself, rather than at the length limit."""

    version: str
    text: str
    stopped: bool


def ask(store: Store, name: str, question: str, max_new_tokens: int, version: str = "") -> Reply:
    """The likeliest answer of the champion, or of the version given. Raises PreflineError where there is none."""
    with talking_to(store.uri):
        found = by_version(store, name, version) if version else by_alias(store, name, CHAMPION)
    if not found:
        raise PreflineError(
            f"{name} has no version {version}." if version else f"{name} has no champion yet.",
            "prefline champion lists what there is." if version else "prefline run trains a policy and promotes it if every gate holds.",
        )
    model, tokenizer = _load(store, found)
    prompt = encode_prompt(tokenizer, [user(question)])
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
    answer = sample(model, [prompt], sampling, tokenizer.eos_token_id, sampling.noise(1, 0))[0]
    return Reply(str(found.version), decode(tokenizer, answer.tokens), answer.stopped)


def _load(store: Store, version: ModelVersion) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The version as MLflow's transformers flavor loads it (by its place: a name would need MLflow's global address)."""
    with talking_to(store.uri):
        import mlflow.transformers

        logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)
        parts = mlflow.transformers.load_model(str(fetch(store, version)), return_type="components")
    return parts["model"].eval(), parts["tokenizer"]
