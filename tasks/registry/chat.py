"""Chat requests in OpenAI's form, answered by a registered model: what `mlflow models serve` loads.

A copy of this file lies in every version's folder, so it uses nothing else of Prefline. MLflow's own answer to such a
request would take the temperature and a stop text for what they are not: it always takes the likeliest token, and looks
for a stop text as tokens, with a tokenizer from a place that only the machine that trained has.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

if TYPE_CHECKING:
    from pandas import DataFrame

ROLES = ("system", "user", "assistant")
NOT_HERE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "tools": (),
}
"""Parts of a request that can't be had here, but for these values."""


@dataclass(frozen=True)
class Request:
    """What is asked for, in OpenAI's words. top_k: 0 for all tokens. temperature: 0 takes the likeliest token."""

    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises MlflowException, which the server answers with status 400."""
        if not self.messages or any(m.get("role") not in ROLES or not isinstance(m.get("content"), str) for m in self.messages):
            raise _refused(f"messages: give one or more, each with a role ({', '.join(ROLES)}) and a content of text")
        if self.max_tokens < 1:
            raise _refused(f"max_tokens is {self.max_tokens}: give at least 1")
        if self.temperature < 0:
            raise _refused(f"temperature is {self.temperature}: give 0 for the likeliest answer, or more")
        if not 0 < self.top_p <= 1:
            raise _refused(f"top_p is {self.top_p}: give a share above 0, at most 1")
        if self.top_k < 0:
            raise _refused(f"top_k is {self.top_k}: give a number of tokens, or 0 for all")
        if "" in self.stop:
            raise _refused("stop: an empty text is everywhere")

    @classmethod
    def read(cls, row: dict[str, Any], defaults: dict[str, Any]) -> Request:
        """A request from its fields; those left out have their default."""
        given = {name: value for name, value in row.items() if not _absent(value)}
        for name, allowed in NOT_HERE.items():
            if name in given and given[name] not in allowed:
                raise _refused(f"{name} can't be had here: leave it out")
        fields = defaults | {name: given[name] for name in ("max_tokens", "temperature", "top_p", "top_k") if name in given}
        messages = [{key: value for key, value in message.items() if not _absent(value)} for message in given.get("messages", [])]
        return cls(messages=messages, stop=tuple(given.get("stop", ())), **fields)


class Chat:
    """A causal language model with its tokenizer, and what holds of requests that do not say."""

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, defaults: dict[str, Any]) -> None:
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.defaults = defaults
        # The base model's own wishes, a repetition penalty say, had no part in training and evaluation
        self.model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)

    def predict(self, data: DataFrame, params: dict[str, Any] | None = None) -> dict[str, Any] | list[dict[str, Any]]:
        """A completion for a request, or a list of them for several rows."""
        rows: Any = data.to_dict(orient="records")
        said = [self.answer(Request.read(row, self.defaults)) for row in rows]
        return said[0] if len(said) == 1 else said

    def answer(self, request: Request) -> dict[str, Any]:
        """One completion. Raises MlflowException where the conversation leaves no room for an answer."""
        prompt = self._encode(request.messages)
        config = self.model.config
        context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        room = context - len(prompt) if context else request.max_tokens
        if room < 1:
            raise _refused(f"the messages take {len(prompt)} tokens, and the model reads {context} in all: shorten them")
        stop = _Stop(self.tokenizer, len(prompt), request.stop)
        sampling = {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k} if request.temperature else {}
        read = torch.tensor([prompt], device=self.model.device)
        written = self.model.generate(
            input_ids=read,
            attention_mask=torch.ones_like(read),
            do_sample=bool(sampling),
            max_new_tokens=min(request.max_tokens, room),
            stopping_criteria=[stop] if request.stop else None,
            **sampling,
        )
        tokens = written[0, len(prompt) :].tolist()
        text = stop.text_of(tokens)
        end = stop.place(text)
        stopped = end is not None or tokens[-1] == self.tokenizer.eos_token_id
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text[:end].strip()},
                    "finish_reason": "stop" if stopped else "length",
                }
            ],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(tokens), "total_tokens": len(prompt) + len(tokens)},
        }

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        """As in training: the template alone adds BOS."""
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # whatever the template raises, for instance of roles that do not take turns
            raise _refused(f"messages: the model's chat template refuses them ({error})") from error
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


class _Stop(StoppingCriteria):
    """Ends an answer once one of the texts stands in it. first: where the answer begins."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, first: int, texts: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self.first = first
        self.texts = texts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        found = [self.place(self.text_of(row[self.first :].tolist())) is not None for row in input_ids]
        return torch.tensor(found, device=input_ids.device)

    def text_of(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def place(self, text: str) -> int | None:
        """Where the first of the texts begins."""
        places = [text.index(stop) for stop in self.texts if stop in text]
        return min(places, default=None)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Chat:
    """MLflow calls this. path: the version's folder. model_config: what holds of requests that do not say."""
    import mlflow.transformers

    parts = mlflow.transformers.load_model(path, return_type="components")
    name = Model.load(str(Path(path) / "MLmodel")).flavors["transformers"]["source_model_name"]
    return Chat(name, parts["model"], parts["tokenizer"], model_config or {})


def _absent(value: Any) -> bool:
    """What a table has where a request said nothing."""
    return value is None or (isinstance(value, float) and np.isnan(value))


def _refused(why: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(f"{why}.")
