"""What became of the probes: how many answers pass, file by file; and every answer, one line a probe (probes.jsonl)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.data.records import write_jsonl
from tasks.evaluation.answers import Judged, Outcome, Reply
from tasks.evaluation.judges.judge import verdict
from tasks.evaluation.means import mean
from tasks.evaluation.probes import Asked, Probe
from tasks.evaluation.rates import rate_of
from tasks.evaluation.result import ProbeFailure, ProbeReport
from tasks.training.intervals import Bootstrap, Interval, share_interval

PROBES = "probes.jsonl"
FAILURES = 3
"""Of a file's failures that the report shows; all are in probes.jsonl."""


@dataclass(frozen=True)
class Answered:
    """A line of probes.jsonl. faults: what is wrong with the policy's answer; nothing where it passes or nothing was checked."""

    file: str
    probe: dict[str, object]
    faults: list[str]
    answers: Judged


def probe_reports(asked: Sequence[Asked], rows: Sequence[Judged], bootstrap: Bootstrap) -> list[ProbeReport]:
    """rows: what the models answered to all probes, in their order."""
    left = iter(rows)
    return [_report(one, [next(left) for _ in one.probes], bootstrap) for one in asked]


def _report(asked: Asked, rows: Sequence[Judged], bootstrap: Bootstrap) -> ProbeReport:
    if not rows:
        return ProbeReport(name=asked.name, kind=asked.kind, prompts=0, too_long=asked.too_long)
    pairs = list(zip(asked.probes, rows, strict=True))
    with_baseline = rows[0].baseline is not None

    def passed(reply: Callable[[Judged], Reply]) -> Interval | None:
        points = [float(not faults(probe, reply(row))) for probe, row in pairs if probe.checked]
        return share_interval(np.array(points), range(len(points)), bootstrap) if points else None

    return ProbeReport(
        name=asked.name,
        kind=asked.kind,
        prompts=len(rows),
        too_long=asked.too_long,
        checked=sum(probe.checked for probe in asked.probes),
        passed=passed(lambda row: row.policy),
        passed_sft=passed(lambda row: row.sft),
        passed_baseline=passed(lambda row: row.rival) if with_baseline else None,
        refused=mean([row.policy.refused for row in rows]),
        refused_sft=mean([row.sft.refused for row in rows]),
        refused_baseline=mean([row.rival.refused for row in rows]) if with_baseline else None,
        win_rate=rate_of(rows, by_scores, bootstrap),
        failures=list(_failures(pairs))[:FAILURES],
    )


def by_scores(row: Judged) -> Outcome:
    """The independent reward model's verdict. A judge that is asked costs too much for prompts that decide nothing."""
    return verdict(row.policy, row.rival, row.policy.judge, row.rival.judge)


def _failures(pairs: Sequence[tuple[Probe, Judged]]) -> Iterator[ProbeFailure]:
    for probe, row in pairs:
        wrong = faults(probe, row.policy)
        if wrong:
            yield ProbeFailure(prompt=probe.messages[-1]["content"], answer=row.policy.text, why=", ".join(wrong))


def faults(probe: Probe, reply: Reply) -> list[str]:
    return probe.faults(reply.text, reply.refused)


def write_probes(folder: Path, asked: Sequence[Asked], rows: Sequence[Judged]) -> None:
    named = [(one.name, probe) for one in asked for probe in one.probes]
    write_jsonl(
        folder / PROBES,
        (
            Answered(name, probe.model_dump(mode="json"), faults(probe, row.policy), row)
            for (name, probe), row in zip(named, rows, strict=True)
        ),
    )
