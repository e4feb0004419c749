"""Two answers side by side and which is better: summaries, HelpSteer, Vertex, PandaLM, fine-grained feedback, LLMBar."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from tasks.data.formats.reading import Found, Reading, Row, Unusable
from tasks.data.formats.sides import system, task
from tasks.data.formats.transcripts import prompt_of
from tasks.data.formats.values import (
    demonstration,
    held_out,
    kind_of,
    labels,
    language,
    name,
    number,
    present,
    question,
    reply,
    said,
    verdict,
    whole,
)
from tasks.data.records import Comparison, Message, assistant, user


def read_summarize(row: Row, reading: Reading) -> list[Comparison]:
    """Summaries of posts and articles, as in summarize-from-feedback (Stiennon et al. 2020); the prompt is theirs."""
    info, summaries = present(row, "info"), present(row, "summaries")
    if not isinstance(info, dict):
        raise Unusable(f'"info" is {kind_of(info)}, expected an object')
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
        raise Unusable('"summaries" is not a list of two objects')
    body = "post" if info.get("post") is not None else "article"
    parts = [f"SUBREDDIT: r/{info['subreddit']}"] if isinstance(info.get("subreddit"), str) else []
    parts += [f"TITLE: {info['title']}"] if isinstance(info.get("title"), str) else []
    parts += [f"{body.upper()}: {said(info.get(body), f'info.{body}')}", "TL;DR:"]
    extra = row.get("extra")
    confidence = extra.get("confidence") if isinstance(extra, dict) else None
    first, second = ([assistant(said(summary.get("text"), "summaries.text"))] for summary in summaries)
    return [
        verdict(
            [user("\n\n".join(parts))],
            first,
            second,
            1 if whole(present(row, "choice"), "choice", range(2)) else -1,
            annotator=None if row.get("worker") is None else name(row["worker"], "worker"),
            strength=None if confidence is None else number(confidence, "extra.confidence"),
            labels_by="people",
            split=held_out(row.get("split")),
            tags=[*labels(info, "subreddit"), *labels(row, "batch")],
        )
    ]


def read_helpsteer2_preference(row: Row, reading: Reading) -> list[Comparison]:
    """HelpSteer2-Preference (Wang et al. 2024): strength from -3 to 3, above 0 where the second answer is better."""
    return [_by_strength(row, "response_1", "response_2", "preference_strength", prompt_of(present(row, "prompt")))]


def read_helpsteer3(row: Row, reading: Reading) -> list[Comparison]:
    """HelpSteer3 (Wang et al. 2025): preference from -3 to 3, below 0 where the first answer is better."""
    return [_by_strength(row, "response1", "response2", "overall_preference", question(present(row, "context"), "context"))]


def _by_strength(row: Row, first: str, second: str, field: str, prompt: list[Message]) -> Comparison:
    preference = number(present(row, field), field)
    if abs(preference) > 3:
        raise Unusable(f'"{field}" is not from -3 to 3 ({preference:g})')
    answers = reply(present(row, first), first), reply(present(row, second), second)
    return verdict(
        prompt,
        *answers,
        preference,
        strength=abs(preference) or None,
        annotator=None if row.get("annotator") is None else name(row["annotator"], "annotator"),
        labels_by="people",
        language=language(row),
        split=held_out(row.get("split")),
        tags=labels(row, "domain"),
    )


def read_vertex(row: Row, reading: Reading) -> list[Comparison]:
    """The shape of Vertex AI's RLHF pipelines on Kubeflow: two candidates, and which was chosen."""
    prompt = [*system(row), *prompt_of(present(row, "input_text"))]
    first, second = (reply(present(row, field), field) for field in ("candidate_0", "candidate_1"))
    return [verdict(prompt, first, second, 1 if whole(present(row, "choice"), "choice", range(2)) else -1)]


def read_llmbar(row: Row, reading: Reading) -> list[Comparison]:
    """LLMBar (Zeng et al. 2024): two outputs to one input; the label is the number of the better one."""
    first, second = ([assistant(said(present(row, field), field))] for field in ("output_1", "output_2"))
    better = 1 if whole(present(row, "label"), "label", range(1, 3)) == 2 else -1
    return [verdict([user(said(present(row, "input"), "input"))], first, second, better, labels_by="people")]


PANDALM_ANNOTATORS = ("annotator1", "annotator2", "annotator3")


def read_pandalm(row: Row, reading: Reading) -> Iterator[Found]:
    """PandaLM's test set (Wang et al. 2024): three people judged each pair; 1 and 2 name the better answer, 0 neither.

    The authors' table made truth values of the answers "True" and "False"; they are text again here.
    """
    prompt = task(row)
    first, second = ([assistant(said(_unspoilt(present(row, field)), field))] for field in ("response1", "response2"))
    for annotator in PANDALM_ANNOTATORS:
        try:
            label = whole(present(row, annotator), annotator, range(3))
        except Unusable as fault:
            yield fault
            continue
        better = {0: 0, 1: -1, 2: 1}[label]
        yield verdict(prompt, first, second, better, annotator=annotator, labels_by="people", tags=labels(row, "motivation_app"))


def _unspoilt(value: Any) -> Any:
    return str(value) if isinstance(value, bool | int | float) else value


def read_fine_grained(row: Row, reading: Reading) -> Iterator[Found]:
    """Fine-grained RLHF's long answers (Wu et al. 2023): four predictions, all six pairs judged, and one corrected by hand."""
    prompt = [user("\n\n".join([said(present(row, "question"), "question"), *_passages(row.get("passages"))]))]
    answers = [[assistant(said(present(row, field), field))] for field in (f"prediction {place}" for place in range(1, 5))]
    preference = present(row, "preference")
    if not isinstance(preference, list) or len(preference) != 6:
        raise Unusable('"preference" is not a list of six labels')
    for label, (first, second) in zip(preference, combinations(answers, 2), strict=True):
        try:
            better = {0: 0, 1: -1, 2: 1}[whole(label, "preference", range(3))]
            yield verdict(prompt, first, second, better, labels_by="people")
        except Unusable as fault:
            yield fault
    feedback = row.get("feedback")
    corrected = feedback.get("corrected-prediction") if isinstance(feedback, dict) else None
    if isinstance(corrected, str) and corrected.strip():
        yield demonstration(prompt, [assistant(corrected.strip())])


def _passages(value: Any) -> list[str]:
    """Each passage as a paragraph; a passage is a title and sentences, the first of which may repeat it."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(part, list) and all(isinstance(s, str) for s in part) for part in value):
        raise Unusable('"passages" is not a list of lists of sentences')
    return [f"{title}: " + " ".join(sentences).removeprefix(f"{title}\n\n") for title, *sentences in filter(None, value)]
