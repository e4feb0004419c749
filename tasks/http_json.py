"""JSON to a server that the user named, and what it replies.

With a key from the environment, patience where waiting may help, and no detours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

WAITS = (1.0, 2.0, 4.0)
"""Seconds before a request that failed is sent again: a server that is starting or overloaded gets that long."""
LONGEST_WAIT = 60.0
"""Seconds that a server may ask to be left alone (Retry-After) before it is given up."""
LONGEST_REPLY = 64 * 2**20
"""Bytes of a reply; what goes on for longer is no answer."""


class Refused(Exception):
    """The server will not do it, however often it is asked. said: the beginning of what it said."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(status, said)
        self.status = status
        self.said = said


class Unanswered(Exception):
    """No reply, though it was asked more than once. problem: the last one, as the end of a sentence that begins with the path."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True)
class JsonServer:
    """url: to which paths are appended. key: the environment variable that holds its key, if it wants one."""

    url: str
    key: str
    timeout_seconds: float

    def post(self, path: str, body: dict[str, Any], waits: Sequence[float], before: Callable[[], None] = lambda: None) -> str:
        """The text of the reply. waits: seconds before each new try. before: called before each try.

        Raises Refused and Unanswered, which never hold the key.
        """
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {os.environ[self.key]}"
        request = Request(f"{self.url.rstrip('/')}{path}", json.dumps(body).encode(), headers)
        for wait in (*waits, None):
            asked = 0.0
            before()
            try:
                with build_opener(_NoRedirect).open(request, timeout=self.timeout_seconds) as response:
                    text = response.read(LONGEST_REPLY + 1)
            except HTTPError as error:
                said = error.read(300).decode("utf-8", "replace").strip()
                if error.code < 500 and error.code != 429:
                    raise Refused(error.code, said) from None
                problem = f"failed with status {error.code}: {said}"
                asked = _asked_to_wait(error.headers)
            except (OSError, HTTPException) as error:  # refused, reset, unknown host, timed out, cut short
                problem = f"can't be reached: {getattr(error, 'reason', None) or error or type(error).__name__}."
            else:
                if len(text) > LONGEST_REPLY:
                    raise Refused(200, "a reply without end")
                return text.decode("utf-8", "replace")
            if asked > LONGEST_WAIT:
                raise Unanswered(f"{problem} It asks to be left alone for {asked:.0f} seconds.")
            if wait is not None:
                time.sleep(max(wait, asked))
        raise Unanswered(problem)


def _asked_to_wait(headers: Message) -> float:
    """Seconds in Retry-After, a number or a date; 0 where there is none."""
    text = headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


class _NoRedirect(HTTPRedirectHandler):
    """The key goes to the server that was named and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None
