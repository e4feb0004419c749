"""A person's word in Prefect: the run pauses, shows the evidence on its page, and asks until an answer counts.

Nothing is locked meanwhile. Whoever decides on the command line ends the wait, and so does the time that the promotion
policy allows; the version then goes on waiting without the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from itertools import count
from typing import Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.input import RunInput, keyset_from_paused_state
from prefect.states import Paused, Running, State
from pydantic import Field
from rich.console import Console

from flows.clock import waiting
from flows.prefect_side import LARGEST_MARKDOWN
from flows.record import RunRecord
from flows.run import PipelineRun
from flows.summary import markdown
from tasks.errors import EnvironmentRefused, PreflineError
from tasks.registry import by_hand
from tasks.registry.decision import Decision
from tasks.registry.gates import PromotionPolicy, read_policy
from tasks.registry.store import Store

POLL_SECONDS = 5.0
DAY = 86_400.0
GRACE = 3600
"""Seconds after which Prefect gives up a paused run that nobody waits for any more: its process was killed."""


class Answer(RunInput):
    """The form on Prefect's page."""

    name: str = Field(description="Who decides. It stands in the ledger.")
    answer: Literal["approve", "refuse"]
    reason: str = Field(default="", description="For the ledger. To refuse, it is needed.")


def ask_person(line: PipelineRun, asked: Decision) -> Decision:
    """Wait for somebody's word on a version that awaits approval. asked: the decision so far, and what is left of it if nobody speaks."""
    policy = read_policy(line.context.root / line.config.promotion)
    if policy.approval_days == 0:
        return asked
    until = time.time() + policy.approval_days * DAY
    record, console = line.recorder.record, Console()
    _say(console, _where(record, asked, until))
    with waiting():
        decided = _wait(record, asked, policy, until, line.tracked.store, console)
    if decided is None:
        _say(console, "Nobody has decided; the run ends, the version goes on waiting.")
    return decided or asked


def _wait(record: RunRecord, asked: Decision, policy: PromotionPolicy, until: float, store: Store, console: Console) -> Decision | None:
    """Ask until somebody has decided, here or elsewhere; None where nobody did in time."""
    complaint = ""
    for turn in count(1):
        answer = _pause(
            UUID(record.prefect_run), f"approval-{turn}", _form(record, policy, until, complaint), until, lambda: _over(store, asked)
        )
        decided = by_hand.word_on(store, asked)
        if decided or answer is None:
            return decided
        decide = by_hand.approve if answer.answer == "approve" else by_hand.refuse
        try:
            decide(store, asked.model, asked.version, answer.name.strip(), answer.reason, policy)
        except by_hand.EvidenceOutdated as error:
            return by_hand.lapse(store, asked, error.what)
        except PreflineError as error:
            complaint = str(error)
            _say(console, f"An answer in Prefect does not count: {error}")
        else:
            return by_hand.word_on(store, asked)
    raise AssertionError("count never ends")


def _pause(run: UUID, key: str, form: type[Answer], until: float, over: Callable[[], bool]) -> Answer | None:
    """Pause the flow run until somebody resumes it with an answer; None once it is over, too late, or ended in Prefect.

    As prefect's pause_flow_run, but that looks at nothing except the flow run, and fails the run when time is up.
    """
    state: State[None] = Paused(timeout_seconds=int(until - time.time()) + GRACE, pause_key=key)
    keys = keyset_from_paused_state(state)
    state.state_details.run_input_keyset = {str(what): name for what, name in keys.items()}
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, state)
        form.save(keys, run)
        while time.time() < until and not over():
            time.sleep(max(0.0, min(POLL_SECONDS, until - time.time())))
            with suppress(httpx.HTTPError):  # a server that is away for a while
                found = client.read_flow_run(run).state
                if found and found.is_running():
                    return Answer.model_validate_json(client.read_flow_run_input(run, keys["response"]))
                if not found or not found.is_paused():  # cancelled, say
                    return None
        client.set_flow_run_state(run, Running())
    return None


def _over(store: Store, asked: Decision) -> bool:
    """Has somebody decided elsewhere? A store that does not answer is asked again."""
    with suppress(EnvironmentRefused):
        return by_hand.word_on(store, asked) is not None
    return False


def _form(record: RunRecord, policy: PromotionPolicy, until: float, complaint: str) -> type[Answer]:
    """The form with the evidence above it."""
    lines = [f"**That answer does not count.** {complaint}", ""] if complaint else []
    may = ", ".join(policy.approvers) or "anybody who gives a name"
    lines += [markdown(record)[:LARGEST_MARKDOWN], f"- who may answer: {may}; until {_moment(until)}"]
    lines.append(f"- the evidence: `runs/{record.run}/report.html`, which is also a file of the run in MLflow")
    return Answer.with_initial_data(description="\n".join(lines))


def _where(record: RunRecord, asked: Decision, until: float) -> str:
    local = " (prefline ui serves that page)" if "127.0.0.1" in record.prefect_url else ""
    return (
        f"{asked.model} version {asked.version} has passed every gate. The run waits for a person until {_moment(until)}:\n"
        f"  Resume, on {record.prefect_url}{local}\n"
        f"  or in another terminal: prefline promote {asked.version} --approve NAME, or --refuse NAME --why REASON"
    )


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M}"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
