"""A model of the line as an MLflow model folder: the transformers flavor, and for language models answers to chat requests."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from mlflow.models import Model

Task = Literal["llm/v1/chat", "text-classification"]
"""MLflow's words for a model that is asked in OpenAI's form, and for one that scores."""

CHAT_CODE = Path(__file__).with_name("chat.py")
CHAT_MODULE = "prefline_chat"
"""What it is called in a version's folder: a name that no other module has."""

REQUIREMENTS = ("transformers", "torch")
"""What loading a version takes, beside MLflow, which adds itself."""


@dataclass(frozen=True)
class ChatDefaults:
    """What holds of a request that does not say: that of the evaluation. max_tokens: of an answer."""

    max_tokens: int
    temperature: float


def save_flavor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    task: Task,
    name: str,
    logged: Model,
    defaults: ChatDefaults | None = None,
) -> None:
    """Write the folder. name: what MLflow, and answers to requests, call the model; with a space in it, as no name on a hub.

    logged: MLflow's metadata of the model. defaults: for a model that is asked. Of requirements, name and task nothing is left
    for MLflow to find out: it would load the model once more and ask the network. A path would be of this machine only.
    """
    import mlflow.transformers
    from mlflow import pyfunc
    from transformers import pipeline

    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)  # no model card on any hub: of course not
    model.name_or_path = name
    with tempfile.TemporaryDirectory() as code:
        shutil.copy(CHAT_CODE, Path(code) / f"{CHAT_MODULE}.py")
        mlflow.transformers.save_model(
            pipeline("text-generation" if defaults else task, model=model, tokenizer=tokenizer),
            str(folder),
            task=task,
            mlflow_model=logged,
            pip_requirements=[f"{part}=={importlib.metadata.version(part).partition('+')[0]}" for part in REQUIREMENTS],
            code_paths=[str(Path(code) / f"{CHAT_MODULE}.py")] if defaults else None,
        )
    (folder / "LICENSE.txt").unlink()  # advice to look the name up on the hub
    if defaults:
        ours = logged.flavors[pyfunc.FLAVOR_NAME] | {pyfunc.MAIN: CHAT_MODULE, pyfunc.MODEL_CONFIG: asdict(defaults)}
        logged.add_flavor(pyfunc.FLAVOR_NAME, **ours)
        logged.save(str(folder / "MLmodel"))
