"""The command line. Thin: it reads what was asked, calls one function, and says what came of it.

What takes long to import is imported by the command that needs it.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

import flows.clock  # noqa: F401  (the clock of the run begins with its import, before all that is slow to import)
from flows.data_commands import data_app
from flows.registry_commands import registry_app
from flows.settings import load_config, project_root, with_method
from tasks.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NOT_PROMOTED, PreflineError
from tasks.training_config import Method

if TYPE_CHECKING:
    from flows.prefect_side import PrefectAPI
    from flows.run import Outcome

app = typer.Typer(
    name="prefline",
    help="From human comparisons to a promoted language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data_app, name="data")
app.add_typer(registry_app)

Configs = Annotated[list[Path] | None, typer.Option("--config", metavar="FILE", help="Laid over params.yaml. May be repeated.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One key, as in sft.epochs=3. May be repeated.")]


@app.command()
def run(
    config: Configs = None,
    overrides: Overrides = None,
    again_from: Annotated[str, typer.Option("--from", metavar="STAGE", help="Run this stage and all later ones again.")] = "",
) -> None:
    """Run the whole line; what has not changed is skipped."""
    root = project_root()
    settings = load_config(root, config or (), overrides or ())
    from flows.prefect_side import prefect_api
    from tasks.registry.lineage import lineage

    lineage(root, settings)  # refused at once where there is no git, not after seconds of importing
    with prefect_api(root) as api:
        with quick_imports():
            from flows.pipeline import LINE, rlhf
            from flows.run import named

        if again_from:
            named(LINE, again_from)
        with reporting_to(api):
            outcome = rlhf(config=settings, again_from=again_from)
    _report(root, outcome)


@app.command()
def compare(
    methods: Annotated[
        list[str] | None, typer.Argument(metavar="[METHOD]...", help="ppo, rloo, grpo, dpo, rejection; all by default.")
    ] = None,
    config: Configs = None,
    overrides: Overrides = None,
) -> None:
    """Optimise the policy by several methods and show what each reached. Nothing is registered or promoted.

    Data, SFT, reward model and judge are made once, or taken from earlier runs; so is a method that has been run with these
    settings. For two runs that are over: prefline compare-runs.
    """
    root = project_root()
    settings = load_config(root, config or (), overrides or ())
    wanted = list(dict.fromkeys(methods or get_args(Method)))
    for method in wanted:
        with_method(settings, method)  # refused at once where it does not exist
    from flows.prefect_side import prefect_api
    from tasks.registry.lineage import lineage

    lineage(root, settings)
    with prefect_api(root) as api:
        with quick_imports():
            from flows.methods import compare as compare_flow
        with reporting_to(api):
            outcome = compare_flow(root=root, config=settings, methods=wanted)
    _report(root, outcome)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="snapshot, base, validate, sft, ...")],
    config: Configs = None,
    overrides: Overrides = None,
) -> None:
    """Run one stage, without Prefect, on the finished results of those before it."""
    root = project_root()
    settings = load_config(root, config or (), overrides or ())
    with quick_imports():
        from flows.pipeline import LINE
        from flows.record import new_run_id
        from flows.run import run_stage

    _report(root, run_stage(LINE, name, root, settings, run=new_run_id()))


def _report(root: Path, outcome: Outcome) -> None:
    """Print the summary and end with the exit code that the decision deserves."""
    from rich.console import Console

    from flows.record import read_record
    from flows.summary import print_summary

    record = read_record(root, outcome.run)
    record.take_times()
    record.save(root)
    print_summary(record, root, Console())
    if any(stage.state == "failed" for stage in record.stages):  # a method's, while others went on
        raise typer.Exit(EXIT_FAILED)
    refused = outcome.decision is not None and outcome.decision.decision in ("not promoted", "awaiting approval")
    raise typer.Exit(EXIT_NOT_PROMOTED if refused else EXIT_DONE)


@app.command()
def status(run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning; the newest by default.")] = "") -> None:
    """Show what a run did, or is doing."""
    from rich.console import Console

    from flows.record import read_record
    from flows.summary import print_summary

    root = project_root()
    print_summary(read_record(root, run), root, Console())


@app.command()
def report(run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning; the newest by default.")] = "") -> None:
    """Write the page of a run that is over, and the same as Markdown; say where they are."""
    root = project_root()
    with quick_imports():
        from flows.page import write_page
        from flows.record import read_record
        from tasks.evaluation.result import MARKDOWN

    page = write_page(read_record(root, run), root)
    for file in (page, page.with_name(MARKDOWN)):
        print(file.relative_to(root))


@app.command()
def compare_runs(
    first: Annotated[str, typer.Argument(metavar="A", help="A run's id or its beginning.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another's; the newest by default.")] = "",
) -> None:
    """Show two runs that are over side by side: settings that differ, figures, decisions. Trains nothing; see compare."""
    from rich.console import Console

    from flows.compare import comparison_table
    from flows.record import read_record

    root = project_root()
    Console().print(comparison_table(read_record(root, first), read_record(root, second)))


@app.command()
def ui(
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535)] = 4200,
) -> None:
    """Start the MLflow and Prefect servers on this machine, over the project's stores, until Ctrl-C."""
    root = project_root()
    from flows.servers import both_servers

    print("Starting MLflow and Prefect ...", flush=True)
    with both_servers(root, mlflow_port, prefect_port) as servers:
        for server in servers:
            print(f"{server.name:<8} {server.page}", flush=True)
        print("Ctrl-C ends both.", flush=True)
        while all(server.process.poll() is None for server in servers):
            time.sleep(0.5)
    raise PreflineError("A server has ended by itself.", f"What it said is in {root / 'runs'}/*-server.log")


@app.command()
def serve(
    cron: Annotated[str, typer.Option(help="When to run, as five fields of cron; by default as prefect.yaml says.")] = "",
    timezone: Annotated[str, typer.Option(help="Of the schedule, as in Europe/Berlin; by default as prefect.yaml says.")] = "",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the Prefect server that is started if none is named.")] = 4200,
) -> None:
    """Run the line on a schedule, in this terminal, without a work pool, until Ctrl-C."""
    root = project_root()
    from flows.schedule import serve_schedule

    serve_schedule(root, cron, timezone, port)


@contextmanager
def reporting_to(api: PrefectAPI) -> Iterator[None]:
    """The block's flows report to the API; SIGTERM ends them as Ctrl-C does."""
    from prefect.exceptions import TerminationSignal

    try:
        with api.ready():
            yield
    except TerminationSignal:  # what Prefect makes of SIGTERM
        raise KeyboardInterrupt from None


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without looking for garbage, which there is none of: a fifth faster."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main() -> None:
    """The `prefline` command: an error that the user can mend is a few lines, and an exit code that says which kind."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # both end a command in order, runs and servers closed
    try:
        app()
    except PreflineError as error:
        print(f"prefline: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # what typer makes of Ctrl-C
            print("prefline: interrupted. Finished stages are kept; the same command goes on from there.", file=sys.stderr)
        raise
    finally:
        gc.freeze()  # or the interpreter looks through all of torch for garbage before it ends: two seconds
