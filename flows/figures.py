"""Which of a stage's metrics people see in a line, and how a number is written."""

from __future__ import annotations

from tasks.stage import Metrics

MAIN = {
    "snapshot": ("comparisons", "demonstrations", "rejects"),
    "base": ("parameters", "vocabulary", "context"),
    "validate": ("comparisons", "demonstrations", "rules", "warnings"),
    "plan": ("prompts", "needed", "detectable"),
    "sft": ("perplexity", "loss"),
    "reward_model": ("accuracy", "accuracy_low", "calibration_error", "loss"),
    "judge": ("accuracy", "accuracy_low", "calibration_error", "loss"),
    "policy": ("own_reward", "own", "judge", "gold", "kl", "chosen_round"),
    "best_of_n": ("n", "judge_sft", "judge", "gold", "kl"),
    "evaluate": ("win_rate", "win_rate_gold", "kl"),
    "register": ("version", "new_versions"),
    "promote": ("gates_passed", "gates"),
}
"""By stage; a stage that has none of these shows the first three of its metrics."""

SHOWN = 3
NOTHING = "–"
"""Where there is no figure."""


def main_figures(stage: str, metrics: Metrics) -> str:
    """The few figures of a stage that matter most, as one line. stage: its name, with what it was done for behind it."""
    names = [name for name in MAIN.get(stage.partition(" ")[0], ()) if name in metrics] or list(metrics)[:SHOWN]
    return " · ".join(f"{name.replace('_', ' ')} {number(metrics[name])}" for name in names)


def number(value: float) -> str:
    """Whole numbers with thousands separated, others with three significant digits."""
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(size: int) -> str:
    """Bytes as people buy them; 0 are unknown."""
    return f"{size / 2**30:.2f} GiB" if size else NOTHING


def money(seconds: float, price_per_hour: float) -> str:
    """What a machine cost for so long; a dash where nobody said what an hour costs."""
    return f"{seconds / 3600 * price_per_hour:.2f}" if price_per_hour else NOTHING
