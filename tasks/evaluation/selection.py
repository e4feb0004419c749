"""Best of n in an evaluation: what selection by the reward model gains without training, beside the rounds of the policy.

On the validation prompts, as the rounds are, so that both lie on one picture. In Gao et al. 2022 best-of-n reaches a given gain at
a fraction of RL's KL; where its judged gain turns down as n grows, the reward model itself can't be climbed further.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.data.snapshot import Dataset, Prompt
from tasks.evaluation.answers import Vocabulary
from tasks.evaluation.overoptimisation import Scores
from tasks.evaluation.result import Selection
from tasks.evaluation.statistics import gain, spread
from tasks.stage import Settings
from tasks.training.best_of_n import BestOfN, best_of_n_curve
from tasks.training.intervals import Bootstrap, Interval
from tasks.training.onlooker import Onlooker
from tasks.training.sampling import Sampling

PROMPTS = 64
"""At most, drawn by the seed: answers to more prompts would cost more than the rest of an evaluation."""


def up_to(n: int) -> list[int]:
    """1, 2, 4, ... and n itself; none for 0."""
    return [2**power for power in range(n.bit_length()) if 2**power < n] + [n] * (n > 0)


def best_of_n(config: Settings, held: Dataset, vocabulary: Vocabulary, *, sft: Path, reward_model: Path, judge: Path) -> list[BestOfN]:
    """Scores of the best of 1, 2, 4, ... up to evaluation.best_of_n answers of the SFT model, a prompt each.

    As many answers as the largest n are sampled to a prompt: each n is estimated without bias from them, and more prompts narrow an
    interval more than more answers would. None at temperature 0, where all answers to a prompt are the same, and none without a
    validation prompt.
    """
    ns, prompts = up_to(config.evaluation.best_of_n), held.prompts("validation")
    if not ns or not prompts or config.evaluation.temperature == 0:
        return []
    drawn = np.random.default_rng(config.seed).permutation(len(prompts))[:PROMPTS]
    onlooker = onlooker_on(
        [prompts[place] for place in sorted(drawn)], config, held, vocabulary, sft=sft, reward_model=reward_model, judge=judge
    )
    return best_of_n_curve(onlooker, ns[-1], ns, config.seed)


def onlooker_on(
    prompts: list[Prompt], config: Settings, held: Dataset, vocabulary: Vocabulary, *, sft: Path, reward_model: Path, judge: Path
) -> Onlooker:
    """Reward model, judge and truth on answers to those prompts, sampled as an evaluation samples."""
    return Onlooker(
        held,
        vocabulary.tokenizer,
        config.max_tokens - config.max_new_tokens,
        Sampling(config.max_new_tokens, config.evaluation.temperature),
        config.seed,
        sft=sft,
        reward_model=reward_model,
        judge=judge,
        prompts=prompts,
    )


def selections(curve: list[BestOfN], start: Scores, bootstrap: Bootstrap) -> list[Selection]:
    """The curve's gains over n = 1, in the units of the rounds. start: the SFT model's scores on the validation prompts."""
    if not curve:
        return []
    one, prompts = curve[0], range(len(curve[0].own))

    def gained(after: list[float], before: list[float], scores: np.ndarray) -> Interval:
        return gain(np.array(after), np.array(before), prompts, bootstrap, spread(scores))

    return [
        Selection(
            n=best.n,
            kl=best.kl,
            own_gain=gained(best.own, one.own, start.own),
            judge_gain=gained(best.judge, one.judge, start.judge),
            gold_gain=gained(best.gold, one.gold, start.gold) if best.gold and one.gold and start.gold is not None else None,
        )
        for best in curve
    ]
