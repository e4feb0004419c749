"""`prefline data ...`: the commands of dvc.yaml, and a look at the data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from filelock import FileLock

from flows.settings import load_config, project_root
from tasks.errors import PreflineError

RAW, IMPORTED, PREPARED = Path("data/raw"), Path("data/imported"), Path("data/prepared")
CONTRACT = Path("data/contract.json")

data_app = typer.Typer(help="Prepare preference data and look at them.", no_args_is_help=True)


@data_app.callback()
def _into_log() -> None:
    """What a command prints goes into a file where the snapshot stage asks for it: it shows that only if the command fails."""
    from tasks.data.dvc_store import LOG

    log = os.environ.get(LOG)
    if log:
        with Path(log).open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)


@contextmanager
def _project() -> Iterator[Path]:
    """The project's folder, for this command alone: one that outlived a killed run may still be writing."""
    root = project_root()
    with FileLock(root / "data" / ".lock"):
        yield root


@data_app.command()
def make() -> None:
    """Make the built-in set: data/shop.yaml -> data/raw (a stage of dvc.yaml)."""
    from tasks.data.prepare import make_builtin

    with _project() as root:
        make_builtin(load_config(root).data.builtin, root / "data" / "shop.yaml", root / RAW)


@data_app.command()
def normalise() -> None:
    """Import all sources as records: data/raw and your files -> data/imported (a stage of dvc.yaml)."""
    from tasks.data.prepare import normalise

    with _project() as root:
        normalise(load_config(root).data, root / RAW, root, root / IMPORTED)


@data_app.command()
def split() -> None:
    """Divide the records into splits: data/imported -> data/prepared (a stage of dvc.yaml)."""
    from tasks.data.prepare import split

    with _project() as root:
        split(load_config(root).data.split, root / IMPORTED, root / PREPARED)


@data_app.command()
def show(folder: Annotated[Path, typer.Argument(help="A folder with prepared data.")] = PREPARED) -> None:
    """What the prepared data are like, in figures."""
    from rich.console import Console

    path = project_root() / folder / "statistics.json"
    try:
        statistics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PreflineError(f"{path}: no statistics there.", "Have the data made first: prefline stage snapshot, or dvc repro.") from error
    Console().print(_table(statistics))


@data_app.command()
def contract(write: Annotated[bool, typer.Option("--write", help=f"Write it to {CONTRACT}.")] = False) -> None:
    """The data contract in writing."""
    from tasks.data.contract import contract_json

    if write:
        (project_root() / CONTRACT).write_text(contract_json(), encoding="utf-8")
    else:
        typer.echo(contract_json(), nl=False)


def _table(statistics: dict[str, Any]) -> Any:
    """A table of what statistics.json holds; names that come from the data are taken literally."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "comparisons", "demonstrations")
    kinds = statistics["comparisons"], statistics["demonstrations"]
    for name in ("rows", "groups"):
        table.add_row(name, *(f"{kind[name]:,}" for kind in kinds))
    for name, title in (("splits", "split"), ("sources", "from"), ("tags", "tag"), ("annotators", "annotator")):
        table.add_section()
        entries = dict.fromkeys(entry for kind in kinds for entry in kind.get(name, {}))
        for entry in list(entries)[:20]:
            table.add_row(f"{title} {escape(entry)}", *(f"{kind[name][entry]:,}" if entry in kind.get(name, {}) else "" for kind in kinds))
        if len(entries) > 20:
            table.add_row(f"... {len(entries) - 20:,} more", "", "")
    table.add_section()
    for text in ("prompt", "chosen", "rejected", "answer"):
        cells = [f"{k['words'][text]['mean']:.1f} (at most {k['words'][text]['longest']:,})" if text in k["words"] else "" for k in kinds]
        table.add_row(f"words, {text}", *cells)
    table.add_section()
    longer = kinds[0]["longer_chosen"]
    table.add_row("longer answer chosen", "" if longer is None else f"{100 * longer:.1f} %", "")
    table.add_row("ties", f"{kinds[0]['ties']:,}", "")
    table.add_row("rows that could not be used", f"{statistics['rejects']['rows']:,} in all", "")
    for reason, count in list(statistics["rejects"]["reasons"].items())[:20]:
        table.add_row(f"  {escape(reason)}", f"{count:,}", "")
    table.add_row("rows repeated by another source", f"{statistics['repeated']:,} in all", "")
    return table
