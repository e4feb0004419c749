"""`prefline data ...`: take data in, look at them, write them out, and the stages of dvc.yaml. Versions: version_commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from filelock import FileLock, Timeout

from flows.settings import load_config, project_root
from flows.version_commands import version_app
from tasks.config import DataConfig
from tasks.errors import ConfigError, DataRefused, PreflineError

if TYPE_CHECKING:
    from tasks.data.export import Exported
    from tasks.data.formats import Reading
    from tasks.data.snapshot import Dataset

IMPORTED, NORMALISED, PREPARED, REPORT = (Path("data") / name for name in ("imported", "normalised", "prepared", "report"))
CONTRACT = Path("data/contract.json")

StageName = Literal["import", "normalise", "split", "report"]
Kind = Literal["comparisons", "demonstrations"]

data_app = typer.Typer(help="Take preference data in, look at them, keep their versions.", no_args_is_help=True)
data_app.add_typer(version_app)


@data_app.callback()
def _into_log() -> None:
    """What a command prints goes into a file where the snapshot stage asks for it: it shows that only if the command fails."""
    from tasks.data.dvc_access import LOG

    log = os.environ.get(LOG)
    if log:
        with Path(log).open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)


@contextmanager
def _project() -> Iterator[Path]:
    """The project's folder, for this command alone: one that outlived a killed run may still be writing."""
    root = project_root()
    (root / "data").mkdir(exist_ok=True)
    lock = FileLock(root / "data" / ".lock")
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        typer.echo("prefline: another command is working on the data; waiting for it.")
        lock.acquire()
    try:
        yield root
    finally:
        lock.release()


# Taking in ----------------------------------------------------------------------------------------------------------


@data_app.command("import")
def import_(
    sources: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders, or hub:OWNER/NAME.")],
    format: Annotated[str, typer.Option(metavar="NAME", help="Of the rows; by default as data.format says, by their shape.")] = "",
    fields: Annotated[list[str] | None, typer.Option("--field", metavar="OURS=THEIRS", help="As in left=answer1. May be repeated.")] = None,
    rating: Annotated[list[str] | None, typer.Option(metavar="NAME=WEIGHT", help="As in helpfulness=1. May be repeated.")] = None,
    snapshot: Annotated[bool, typer.Option("--snapshot", help="Then check all data and keep them; a batch that is refused goes.")] = False,
) -> None:
    """Take in what is new as a batch: data/batches/DATE-HASH.jsonl; what can't be used goes to data/rejects."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from flows import new_batch
    from tasks.data.batches import import_batch
    from tasks.data.versions import require_batches

    console = Console()
    config = load_config(project_root())
    reading = _reading(config.data, format, fields or [], rating or [])
    if snapshot and not new_batch.is_read(config.data):
        raise ConfigError("params.yaml does not name data/batches, so a snapshot would not hold the batch.", new_batch.HOW_TO_READ)
    columns = SpinnerColumn(), TextColumn("{task.completed:,} rows read"), TimeElapsedColumn()
    require_batches(project_root())
    with _project() as root, Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        found = import_batch(root, sources, reading, lambda rows: progress.update(task, completed=rows))
    console.print(new_batch.table(found), highlight=False)
    if not found.usable:
        where = f" They are in {found.rejects}, to be mended and imported again." if found.rejects else ""
        raise DataRefused(f"None of the {found.rows:,} rows could be used.", f"Is the format the right one?{where}")
    if snapshot:
        new_batch.keep_if_good(root, config, found.batch, console)
    else:
        for line in new_batch.next_steps(found, config.data):
            console.print(line, highlight=False, markup=False)


def _reading(config: DataConfig, format: str, fields: list[str], rating: list[str]) -> Reading:
    """How to read rows: as params.yaml says, where the command line does not say otherwise."""
    from tasks.data.formats import FORMATS, Reading

    if format and format not in ("auto", *FORMATS):
        raise ConfigError(f"There is no format {format}.", f"Formats: auto, {', '.join(FORMATS)}.")
    weights = {}
    for name, weight in (_pair(text, "--rating") for text in rating):
        try:
            weights[name] = float(weight)
        except ValueError:
            raise ConfigError(f"--rating {name}={weight}: {weight} is no number.", "Give a weight, as in helpfulness=1.") from None
    return Reading(format or config.format, config.fields | dict(_pair(text, "--field") for text in fields), weights or config.rating)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{option} {text}: expected NAME=VALUE.", "As in --field left=answer1 or --rating helpfulness=1.")
    return name, value


# Looking, and writing out -------------------------------------------------------------------------------------------


@data_app.command()
def show(
    folder: Annotated[Path | None, typer.Argument(help="A folder with prepared data; by default those of params.yaml.")] = None,
) -> None:
    """What the data are like, in figures."""
    import json

    from rich.console import Console

    from flows.data_tables import statistics_table

    where = _report(folder)
    Console().print(statistics_table(json.loads((where / "statistics.json").read_text(encoding="utf-8"))))


@data_app.command()
def report(
    folder: Annotated[Path | None, typer.Argument(help="A folder with prepared data; by default those of params.yaml.")] = None,
) -> None:
    """Write the page about the data and their annotators, and say where it is."""
    typer.echo(_report(folder, again=True) / "data.html")


@data_app.command()
def export(
    path: Annotated[Path, typer.Argument(help="Where to: .jsonl, .jsonl.gz, .json, .csv or .parquet.")],
    format: Annotated[str, typer.Option(metavar="NAME", help="trl, hh-rlhf, argilla, ...")],
    splits: Annotated[list[str] | None, typer.Option("--split", help="Only these. May be repeated.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Only these; by default both, as far as the format holds them.")] = None,
    answers: Annotated[
        str | None, typer.Option(metavar="RUN", help="Not the data, but what a run's evaluation compared, for people to label blindly.")
    ] = None,
) -> None:
    """Write the data in another tool's format; what it can't hold is left out and counted."""
    if answers is not None:
        if splits or kind:
            raise ConfigError("--answers is of no split and no kind.", "Leave --split and --kind out.")
        _export_answers(answers, format, path)
        return
    from tasks.data.export import export
    from tasks.data.records import SPLITS, Comparison, Demonstration

    unknown = [name for name in splits or [] if name not in SPLITS]
    if unknown:
        raise ConfigError(f"There is no split {unknown[0]}.", f"Splits: {', '.join(SPLITS)}.")
    wanted = [name for name in SPLITS if name in (splits or SPLITS)]
    data = _prepared()
    comparisons = data.stream(Comparison, *wanted) if kind != "demonstrations" else iter(())
    demonstrations = data.stream(Demonstration, *wanted) if kind != "comparisons" else iter(())
    _tell(path, export(chain(comparisons, demonstrations), format, path))


def _export_answers(run: str, format: str, path: Path) -> None:
    from flows.record import read_record
    from tasks.data.export import export_questions
    from tasks.evaluation.answers import ANSWERS, read_answers
    from tasks.evaluation.judges.blind import questions

    record = read_record(project_root(), run)
    evaluated = next((Path(stage.path) for stage in record.stages if stage.name == "evaluate" and stage.path), None)
    if evaluated is None or not (evaluated / ANSWERS).is_file():
        raise PreflineError(f"Run {record.run} has no evaluated answers.", "Name one that came as far as evaluate: prefline status RUN.")
    _tell(path, export_questions(questions(read_answers(evaluated), int(record.config["seed"])), format, path))
    typer.echo("Have them labelled, then: prefline data import PATH, and evaluation.people in params.yaml.")


def _tell(path: Path, done: Exported) -> None:
    typer.echo(f"{path}: {done.written:,} rows")
    for reason, count in done.left_out.most_common():
        typer.echo(f"  left out: {count:,} ({reason})")


def _prepared(folder: Path | None = None) -> Dataset:
    """Prepared data in a folder, or those that params.yaml describes. Raises PreflineError where there are none."""
    from tasks.data.prepare import COUNTS
    from tasks.data.snapshot import Dataset, standing

    root = project_root()
    path = folder.absolute() if folder else root / standing(load_config(root).data, root)
    if not (path / COUNTS).is_file():
        raise PreflineError(f"{path}: no prepared data there.", "Have them made first: prefline data snapshot, or dvc repro.")
    return Dataset(path, "")


def _report(folder: Path | None, again: bool = False) -> Path:
    """The folder with the report on prepared data, made where there is none or an older one."""
    from tasks.data.prepare import COUNTS
    from tasks.data.report import report

    root, data = project_root(), _prepared(folder).folder
    where = root / (REPORT if data == root / PREPARED else Path("runs") / "reports" / data.name)
    made = where / "statistics.json"
    if again or not made.is_file() or made.stat().st_mtime < (data / COUNTS).stat().st_mtime:
        where.parent.mkdir(exist_ok=True)
        report(data, where)
    return where


@data_app.command()
def contract(write: Annotated[bool, typer.Option("--write", help=f"Write it to {CONTRACT}.")] = False) -> None:
    """The data contract in writing."""
    from tasks.data.contract import contract_json

    if write:
        (project_root() / CONTRACT).write_text(contract_json(), encoding="utf-8")
    else:
        typer.echo(contract_json(), nl=False)


# The stages of dvc.yaml ---------------------------------------------------------------------------------------------


@data_app.command()
def stage(name: Annotated[StageName, typer.Argument(metavar="NAME", help=f"{', '.join(get_args(StageName))}.")]) -> None:
    """One stage of dvc.yaml: from the files of the one before to its own."""
    from tasks.data import prepare

    with _project() as root:
        config = load_config(root).data
        if name == "import":
            prepare.import_sources(config, root / "data" / "shop.yaml", root, root / IMPORTED)
        elif name == "normalise":
            prepare.normalise(config, root / IMPORTED, root / NORMALISED)
        elif name == "split":
            prepare.split(config.split, root / NORMALISED, root / PREPARED)
        else:
            from tasks.data.report import report

            report(root / PREPARED, root / REPORT)
