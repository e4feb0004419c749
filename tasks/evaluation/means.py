"""What one model's answers are like on average."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.evaluation.answers import Reply
from tasks.evaluation.forgetting import Recital
from tasks.evaluation.result import Means
from tasks.evaluation.text_measures import distinct, repetition, self_bleu


def means(replies: Sequence[Reply], refuse: Sequence[bool | None], recital: Recital | None = None) -> Means:
    """Means over one model's answers. refuse: should each prompt be refused? None where nobody says."""
    known = [reply for reply in replies if reply.gold is not None]
    texts = [reply.text for reply in replies]
    return Means(
        own=mean([reply.own for reply in replies]),
        judge=mean([reply.judge for reply in replies]),
        gold=mean([reply.gold for reply in known]) if known else None,
        right=mean([reply.right for reply in known]) if known else None,
        length=mean([reply.length for reply in replies]),
        stopped=mean([reply.stopped for reply in replies]),
        distinct=len(set(texts)) / len(texts),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        self_bleu=self_bleu(texts),
        repetition=mean([repetition(text) for text in texts]),
        refused=mean([reply.refused for reply in replies]),
        refused_rightly=_refused(replies, refuse, True),
        refused_wrongly=_refused(replies, refuse, False),
        perplexity=recital.perplexity if recital else None,
        bits_per_byte=recital.bits_per_byte if recital else None,
    )


def _refused(replies: Sequence[Reply], refuse: Sequence[bool | None], should: bool) -> float | None:
    asked = [reply.refused for reply, wanted in zip(replies, refuse, strict=True) if wanted is should]
    return mean(asked) if asked else None


def mean(values: Sequence[float | bool | None]) -> float:
    return float(np.mean(np.array(values, dtype=float)))
