"""A new batch of annotations in one command: what the import says, and keeping it only if all data together hold the contract."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.config import DataConfig, PipelineConfig
from tasks.data.batches import BATCHES, Imported, Reason, take_out
from tasks.errors import DataRefused

HOW_TO_READ = f"Set in params.yaml, section data: comparisons: [{BATCHES}] and demonstrations: [{BATCHES}]"
SHOWN = 20


def table(found: Imported) -> Table:
    """What came of an import. Reasons hold what the rows hold, and are taken literally."""
    shown = Table("")
    shown.add_column("rows", justify="right")
    shown.add_column(overflow="fold")  # paths are whole, so that they can be copied
    shown.add_row("read", f"{found.rows:,}", "")
    shown.add_section()
    shown.add_row("new comparisons", f"{found.comparisons:,}", f"{found.ties:,} ties" if found.ties else "")
    shown.add_row("new demonstrations", f"{found.demonstrations:,}", "")
    shown.add_row("already there", f"{found.known:,}", "" if found.batch or not found.usable else "nothing new")
    for title, reasons in (("skipped", found.skipped), ("can't be used", found.rejected)):
        if reasons:
            shown.add_section()
        for kind, reason in _most_first(reasons)[:SHOWN]:
            shown.add_row(f"{title}: {escape(kind)}", f"{reason.rows:,}", f"first: {escape(reason.first)}")
        rest = _most_first(reasons)[SHOWN:]
        if rest:
            shown.add_row(f"{title}: {len(rest):,} other reasons", f"{sum(reason.rows for _, reason in rest):,}", "")
    if found.batch or found.rejects:
        shown.add_section()
    if found.batch:
        shown.add_row("batch", "", str(found.batch))
    if found.rejects:
        shown.add_row("rejects", "", f"{found.rejects}: mend its rows and import it")
    return shown


def _most_first(reasons: dict[str, Reason]) -> list[tuple[str, Reason]]:
    return sorted(reasons.items(), key=lambda item: (-item[1].rows, item[0]))


def is_read(data: DataConfig) -> bool:
    """Does the configuration take its comparisons or demonstrations from the batches?"""
    return any(Path(source) == BATCHES for source in (*data.comparisons, *data.demonstrations))


def next_steps(found: Imported, data: DataConfig) -> list[str]:
    if not found.batch:
        return []
    if not is_read(data):
        return [f"{HOW_TO_READ}", "Then: prefline data snapshot"]
    return ["Next: prefline data snapshot"]


def keep_if_good(root: Path, config: PipelineConfig, batch: Path | None, console: Console) -> None:
    """Check all data with the contract, and have DVC keep them and the batches. Raises DataRefused, the batch taken out again."""
    from flows.progress import progress_display
    from flows.version_commands import keep_batches, tell
    from tasks.data.report import PAGE
    from tasks.data.snapshot import read_snapshot, snapshot
    from tasks.data.validate import validate
    from tasks.stage import Context
    from tasks.training.stages import base_model

    try:
        with progress_display(console) as display, _as_before(root, config):
            context = Context(root, root / "runs", [display])
            data = snapshot.run(config, {}, context)
            base = base_model.run(config, {"data": data}, context)
            checked = validate.run(config, {"data": data, "base": base}, context)
    except DataRefused as refusal:
        if batch is None:
            raise
        undone = f"The batch was taken out again, and all is as before: mend {take_out(root, batch)} and import it."
        raise DataRefused(refusal.what, f"{refusal.advice}\n  {undone}") from refusal
    tell(root, read_snapshot(data), keep_batches(root), console)
    if checked.metrics["warnings"]:
        page = (checked.path / PAGE).relative_to(root)
        console.print(f"The contract holds, with {checked.metrics['warnings']:.0f} warnings: {page}", soft_wrap=True)


@contextmanager
def _as_before(root: Path, config: PipelineConfig) -> Iterator[None]:
    """If the data are refused, the snapshot that was taken of them goes, and the one before is the current one again."""
    from tasks.data.snapshot import snapshot, standing
    from tasks.stage import Context

    folder = root / standing(config.data, root)
    pointer = folder.with_name(f"{folder.name}.dvc")
    there = pointer.exists()
    result = snapshot.folder(Context(root, root / "runs"), snapshot.key(config, {}, root))
    with tempfile.TemporaryDirectory(prefix="prefline-") as place:
        kept = Path(place) / "result"
        if result.exists():
            shutil.copytree(result, kept)
        try:
            yield
        except DataRefused:
            shutil.rmtree(result, ignore_errors=True)
            if kept.exists():
                shutil.copytree(kept, result)
            if not there:
                pointer.unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
            raise
