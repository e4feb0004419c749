"""Answers from a server in place of our own decoder: vLLM, SGLang, or what else speaks OpenAI's completions and returns token ids.

Off unless policy.server.url is set, and then for the rounds of ppo, rloo and grpo only. The server is given the policy's
weights each time it is asked. Log-probabilities are our own, of the policy that is trained: the server's arithmetic
differs from ours, and the ratio of new to old policy must be 1 on the first pass.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.errors import ConfigError, PreflineError
from tasks.http_json import WAITS, JsonServer, Refused, Unanswered
from tasks.training.adapters import has_adapters, merged
from tasks.training.logprobs import given_logprobs
from tasks.training.processes import Processes
from tasks.training.sampling import Answer, Sampler, Sampling, sample
from tasks.training_config import ServerConfig

KEY = "PREFLINE_SERVER_KEY"
"""Environment variable with the server's API key, if it wants one."""

AT_ONCE = 64
"""Requests under way at a time; the server makes batches of them itself."""


def sampler_for(config: ServerConfig, folder: Path, here: Processes) -> Sampler:
    """Our own decoder, or the server's that is configured. folder: where the server reads the weights from."""
    return Server(config, folder.resolve(), here) if config.url else sample


class Server:
    """Samples as `sample` does. All processes must call it together: the main one hands over the weights."""

    def __init__(self, config: ServerConfig, folder: Path, here: Processes) -> None:
        self.config = config
        self.folder = folder
        self.here = here
        self.served = ""  # name of the weights that the server has now

    def __call__(self, model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling, eos: int, noise: Tensor) -> list[Answer]:
        """One answer to each prompt. A row of noise is made its request's seed; the server decides what it does with it.

        Raises PreflineError where the server fails, or says what the policy can't have said.
        """
        name = self.here.from_main(lambda: self._hand_over(model))
        asked = [self._request(name, prompt, sampling, eos, row) for prompt, row in zip(prompts, noise, strict=True)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replies = list(pool.map(partial(self._post, "/v1/completions"), asked))
        answers = [self._tokens(reply, sampling, eos, model.config.vocab_size) for reply in replies]
        logprobs = given_logprobs(model, prompts, [tokens for tokens, _ in answers], sampling.temperature or 1.0)
        self._refuse_strangers(logprobs, model.config.vocab_size)
        return [Answer(tokens, own, stopped) for (tokens, stopped), own in zip(answers, logprobs, strict=True)]

    def _request(self, name: str, prompt: list[int], sampling: Sampling, eos: int, noise: Tensor) -> dict[str, Any]:
        return {
            "model": name,
            "prompt": prompt,
            "n": 1,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": zlib.crc32(noise.cpu().numpy().tobytes()) >> 1,
            "stop_token_ids": [eos],
            "return_token_ids": True,
            # A server may have other defaults, of the model's generation_config.json
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }

    def _tokens(self, reply: Any, sampling: Sampling, eos: int, vocabulary: int) -> tuple[list[int], bool]:
        """The answer's tokens, cut at its EOS, and whether it has one; some servers leave that out of the tokens."""
        try:
            choice = reply["choices"][0]
            tokens, why = choice["token_ids"], choice["finish_reason"]
        except (KeyError, IndexError, TypeError):
            tokens, why = None, None
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise self._error("its answer has no token ids.", "It must know return_token_ids, as vLLM and newer versions of SGLang do.")
        beyond = [token for token in tokens if not 0 <= token < vocabulary]
        if beyond:
            raise self._error(
                f"it answers with token {beyond[0]}, and the policy has {vocabulary}.",
                "It serves another model: start it with the SFT model.",
            )
        if eos in tokens:
            return tokens[: tokens.index(eos) + 1], True
        if why == "stop" and len(tokens) < sampling.max_new_tokens:
            return [*tokens, eos], True
        if why not in ("stop", "length") or not 0 < len(tokens) <= sampling.max_new_tokens:
            raise self._error(
                f"an answer of {len(tokens)} tokens ended with {why!r}; at most {sampling.max_new_tokens} were asked for.",
                "Look into the server's log.",
            )
        return tokens, False

    def _refuse_strangers(self, logprobs: list[list[float]], vocabulary: int) -> None:
        """Raise PreflineError where the policy finds the answers less likely than tokens drawn by lot: they are not its own.

        Of its own answers the mean is its entropy, at most ln(vocabulary); a nat more is for chance.
        """
        surprise = -sum(map(sum, logprobs)) / sum(map(len, logprobs))
        if not surprise < math.log(vocabulary) + 1:
            by_lot = f"drawn by lot they would have {math.log(vocabulary):.1f}"
            raise self._error(
                f"the policy finds its answers unlikely: {surprise:.1f} nats a token, and {by_lot}.",
                "It serves another model: start it with the SFT model, and look in its log for weights that could not be loaded.",
            )

    # Weights ------------------------------------------------------------------------------------------------------------

    def _hand_over(self, model: PreTrainedModel) -> str:
        """Write the policy's weights, have the server load them and forget the last ones; returns the name to ask for."""
        name = f"prefline-{uuid.uuid4().hex[:12]}"  # a new one each time: the server keeps what it read for an old name
        folder = self.folder / name
        if self.config.reload == "lora":
            save_adapters(model, folder)
            self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
            if self.served:
                self._post("/v1/unload_lora_adapter", {"lora_name": self.served})
        else:
            whole = merged(copy.deepcopy(model)) if has_adapters(model) else model
            whole.save_pretrained(folder)
            loaded = self._post("/update_weights_from_disk", {"model_path": str(folder)})
            if not isinstance(loaded, dict) or loaded.get("success") is not True:
                raise self._error(f"it did not load {folder}: {str(loaded)[:300]}", "Both must see the folder under this path.")
        if self.served:
            shutil.rmtree(self.folder / self.served, ignore_errors=True)
        self.served = name
        return name if self.config.reload == "lora" else self.config.model

    # HTTP ---------------------------------------------------------------------------------------------------------------

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """What the server replies to JSON: its JSON, or its text where it has none. Tries again where waiting may help.

        Raises PreflineError, which never holds the key.
        """
        server = JsonServer(self.config.url or "", KEY, self.config.timeout_seconds)
        try:
            return self._read(path, server.post(path, body, WAITS))
        except Refused as refusal:
            raise self._refused(path, refusal.status, refusal.said) from None
        except Unanswered as silence:
            raise self._error(
                f"{path} {silence.problem}",
                f"Asked {len(WAITS) + 1} times. Start the server, or raise policy.server.timeout_seconds.",
            ) from None

    def _read(self, path: str, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            if path.endswith("_lora_adapter"):  # vLLM says in words that it is done
                return text
            raise self._error(
                f"{path} answers with something else than JSON: {text[:100]!r}", "Is policy.server.url the server's?"
            ) from None

    def _refused(self, path: str, status: int, said: str) -> PreflineError:
        if status in (401, 403):
            return self._error(f"{path} is refused with status {status}.", f"Set the environment variable {KEY} to the server's key.")
        if status == 404 and path == "/v1/load_lora_adapter":
            advice = "vLLM takes adapters when started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
        elif path == "/v1/completions":
            advice = "policy.server.model must be the name that the server knows, and max_tokens fit its context."
        else:
            advice = "Both must see the run's folder under one path. policy.server.reload: lora is for vLLM, path for SGLang."
        return self._error(f"{path} is refused with status {status}: {said}", advice)

    def _error(self, what: str, advice: str) -> PreflineError:
        return PreflineError(f"policy.server, {self.config.url}: {what}", advice)


def save_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Write a model's adapters as peft does, for a server that has the rest. Raises ConfigError where it has none."""
    if not has_adapters(model):
        raise ConfigError(
            "policy.server.reload: lora, but the policy has no adapters.",
            "Set adapter.rank to at least 1, or policy.server.reload to path.",
        )
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    model.base_model.peft_config["default"].save_pretrained(folder)
    weights = {name: value for name, value in model.state_dict().items() if ".lora_" in name}
    names = {name: f"base_model.model.{name.replace('.default.', '.')}" for name in weights}
    tensors = {names[name]: value.detach().to("cpu", torch.float32).contiguous() for name, value in weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
