"""Language models that can be asked: on a server that speaks OpenAI's chat completions, or read from files and run here."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import torch

from tasks.config import BudgetConfig, LanguageModelConfig
from tasks.data.encoding import decode, encode_prompt
from tasks.data.records import user
from tasks.errors import PreflineError
from tasks.http_json import WAITS, JsonServer, Refused, Unanswered
from tasks.stage import content_of
from tasks.training.base import pretrained
from tasks.training.logprobs import TOKENS_AT_ONCE
from tasks.training.sampling import Sampling, sample

KEY = "PREFLINE_JUDGE_KEY"
"""Environment variable with the server's key, if it wants one."""
SECTION = "evaluation.language_model"


class Budget:
    """Counts what is spent, from any thread, and says when it is enough."""

    def __init__(self, limits: BudgetConfig) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self.calls = 0
        self.tokens = 0

    def refuse(self, calls: int) -> None:
        """Raise PreflineError where so many more calls are too many: before the first one is paid for."""
        limit = self._limits.calls
        if limit is not None and self.calls + calls > limit:
            raise PreflineError(
                f"{SECTION}: {calls:,} replies are missing, and {SECTION}.budget.calls is {limit:,}.",
                "Raise it, or lower evaluation.prompts or human_pairs. Replies that are known already cost nothing.",
            )

    def call(self) -> None:
        """A request is about to be sent. Raises PreflineError where nothing is left for it."""
        with self._lock:
            for name, spent, limit in (("calls", self.calls, self._limits.calls), ("tokens", self.tokens, self._limits.tokens)):
                if limit is not None and spent >= limit:
                    raise PreflineError(
                        f"{SECTION}.budget.{name}: {spent:,} {name} are spent, of {limit:,}; the judge is asked no more.",
                        "Raise it and run again: what was replied so far is kept, and costs nothing then.",
                    )
            self.calls += 1

    def receive(self, tokens: int | None) -> None:
        """A reply came, of so many tokens with what was asked, or None where nobody says. Raises PreflineError if that matters."""
        if tokens is None and self._limits.tokens is not None:
            raise PreflineError(
                f"{SECTION}: the server does not say how many tokens its replies take (usage.total_tokens).",
                f"Set {SECTION}.budget.tokens to null, and budget.calls to what you can afford.",
            )
        with self._lock:
            self.tokens += tokens or 0


class LanguageModel(Protocol):
    """identity: what a reply depends on besides what was asked. about: for people."""

    @property
    def identity(self) -> str: ...
    @property
    def about(self) -> str: ...

    def replies(self, asked: Sequence[str], budget: Budget) -> Iterator[tuple[str, str]]:
        """Each text with the reply to it, as they come, in any order. Raises PreflineError after those that came."""


def language_model(config: LanguageModelConfig, root: Path) -> LanguageModel:
    """The one that is configured. A model that is a path is looked for in root."""
    if config.url:
        return OnServer(config)
    return Here(config, root)


class _Pace:
    """No more than so many a minute, evenly: each waits for its turn."""

    def __init__(self, a_minute: float) -> None:
        self._gap = 60 / a_minute
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(turn - now)


class OnServer:
    """Asked over HTTP, several requests at a time."""

    def __init__(self, config: LanguageModelConfig) -> None:
        self._config = config
        self._server = JsonServer(config.url or "", KEY, config.timeout_seconds)
        self._pace = _Pace(config.requests_a_minute)
        self.identity = config.model or ""
        self.about = f"{config.model} at {urlsplit(config.url or '').netloc}"

    def replies(self, asked: Sequence[str], budget: Budget) -> Iterator[tuple[str, str]]:
        failed: list[PreflineError] = []

        def reply(text: str) -> str | None:
            """None for what is not asked any more. What is under way when another one fails may still come: it is paid for."""
            if failed:
                return None
            try:
                return self._reply(text, budget)
            except PreflineError as error:
                failed.append(error)
                return None

        pool = ThreadPoolExecutor(self._config.at_once)
        try:
            texts = {pool.submit(reply, text): text for text in asked}
            for future in as_completed(texts):
                said = future.result()
                if said is not None:
                    yield texts[future], said
            if failed:
                raise failed[0]
        finally:
            pool.shutdown(cancel_futures=True)

    def _reply(self, text: str, budget: Budget) -> str:
        body = {
            "model": self._config.model,
            "messages": [user(text)],
            "temperature": 0,
            "max_tokens": self._config.reply_tokens,
        }

        def before() -> None:
            self._pace.wait()
            budget.call()

        try:
            received = self._server.post("/chat/completions", body, WAITS, before)
        except Refused as refusal:
            raise self._refused(refusal) from None
        except Unanswered as silence:
            raise self._error(
                f"/chat/completions {silence.problem}",
                f"Asked {len(WAITS) + 1} times at most. Run again when it answers: what was replied so far is kept. "
                f"Or raise {SECTION}.timeout_seconds, or lower requests_a_minute and at_once.",
            ) from None
        return self._read(received, budget)

    def _read(self, received: str, budget: Budget) -> str:
        """The text of a completion; "" where the model said nothing."""
        try:
            body = json.loads(received)
            said = body["choices"][0]["message"].get("content")
            usage = body.get("usage")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise self._error(
                f"it answers with something else than a chat completion: {received[:100]!r}",
                f"Is {SECTION}.url the server's, up to what stands before /chat/completions?",
            ) from None
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        budget.receive(total if type(total) is int and total >= 0 else None)
        return said if isinstance(said, str) else ""

    def _refused(self, refusal: Refused) -> PreflineError:
        if refusal.status in (401, 403):
            return self._error(
                f"the request is refused with status {refusal.status}.", f"Set the environment variable {KEY} to the server's key."
            )
        if 300 <= refusal.status < 400:
            return self._error(
                f"it sends us elsewhere (status {refusal.status}), where the key must not go.", f"Give the right address as {SECTION}.url."
            )
        return self._error(
            f"the request is refused with status {refusal.status}: {self._without_key(refusal.said)}",
            f"{SECTION}.model must be a name that the server knows, and prompt, answers and reply_tokens fit its context.",
        )

    def _without_key(self, said: str) -> str:
        """Some servers repeat the key that they do not know."""
        key = os.environ.get(KEY)
        return said.replace(key, "***") if key else said

    def _error(self, what: str, advice: str) -> PreflineError:
        return PreflineError(f"{SECTION}, {self._config.url}: {self._without_key(what)}", advice)


class Here:
    """Read from a Hugging Face name, a folder or a .gguf file, and asked in batches; greedy."""

    def __init__(self, config: LanguageModelConfig, root: Path) -> None:
        self._config = config
        name = config.model or ""
        local = root / Path(name).expanduser()
        self._source = str(local) if local.exists() else name
        self.identity = json.dumps([name, content_of(local)]) if local.exists() else name
        self.about = name

    def replies(self, asked: Sequence[str], budget: Budget) -> Iterator[tuple[str, str]]:
        if not asked:
            return
        model, tokenizer = pretrained(self._source, f"{SECTION}.model")
        model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        questions = sorted(((encode_prompt(tokenizer, [user(text)]), text) for text in asked), key=lambda one: len(one[0]))
        longest = len(questions[-1][0]) + self._config.reply_tokens
        context = getattr(model.config, "max_position_embeddings", None)
        if context and longest > context:
            raise PreflineError(
                f"{SECTION}.model: {self.about} reads {context:,} tokens; a question with its reply takes {longest:,}.",
                f"Choose another model, a shorter template, or lower {SECTION}.reply_tokens.",
            )
        sampling = Sampling(self._config.reply_tokens, temperature=0)
        at_once = max(1, TOKENS_AT_ONCE // longest)
        for first in range(0, len(questions), at_once):
            batch = questions[first : first + at_once]
            for _ in batch:
                budget.call()
            answers = sample(model, [tokens for tokens, _ in batch], sampling, tokenizer.eos_token_id, sampling.noise(len(batch), 0))
            for (tokens, text), answer in zip(batch, answers, strict=True):
                budget.receive(len(tokens) + len(answer.tokens))
                yield text, decode(tokenizer, answer.tokens)
