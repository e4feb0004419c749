"""`prefline data ...`: versions of the data. Keep them, send and fetch them, compare them, and say what was trained on which."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.settings import load_config, project_root
from tasks.errors import EnvironmentRefused, PreflineError

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.config import NamesConfig
    from tasks.data.dvc_store import Kept
    from tasks.data.snapshot import Snapshot

DATASET = "prefline.dataset_md5"
"""The tag of a registered model that names its data."""

version_app = typer.Typer()


@version_app.command()
def snapshot(push: Annotated[bool, typer.Option("--push", help="Then send them to DVC's remote.")] = False) -> None:
    """Have DVC keep the data that params.yaml describes, and the batches; say what to commit."""
    from rich.console import Console

    from tasks.data.snapshot import read_snapshot
    from tasks.data.snapshot import snapshot as stage
    from tasks.data.versions import require_batches
    from tasks.stage import Context

    root, console = project_root(), Console()
    require_batches(root)
    with console.status("Preparing the data ..."):
        result = stage.run(load_config(root), {}, Context(root, root / "runs"))
        batches = keep_batches(root)
    tell(root, read_snapshot(result), batches, console)
    if push:
        _push(root)


def keep_batches(root: Path) -> Kept | None:
    """Put the batches under DVC; None where there are none."""
    from tasks.data.batches import BATCHES
    from tasks.data.dvc_store import keep

    has_some = (root / BATCHES).is_dir() and any((root / BATCHES).iterdir())
    return keep(root, root / BATCHES) if has_some else None


def tell(root: Path, seen: Snapshot, batches: Kept | None, console: Console) -> None:
    """What is kept, and what to commit so that others find it by its hash."""
    from rich.table import Table

    from tasks.data.batches import BATCHES
    from tasks.data.versions import to_commit

    table = Table()
    for heading in ("folder", "DVC hash", "holds"):
        table.add_column(heading, overflow="fold")
    holds = f"{seen.comparisons:,} comparisons, {seen.demonstrations:,} demonstrations, {seen.rejects:,} rejects"
    table.add_row(str(seen.folder), seen.md5, holds)
    if batches:
        number = sum(1 for _ in (root / BATCHES).glob("*.jsonl"))
        table.add_row(str(BATCHES), batches.md5, f"{number:,} {'batch' if number == 1 else 'batches'}")
    console.print(table)
    new = to_commit(root)
    said = f'To commit: git add {" ".join(new)} && git commit -m "Data"' if new else "Nothing to commit: git knows these versions."
    console.print(said, highlight=False, markup=False, soft_wrap=True)


@version_app.command()
def push() -> None:
    """Send the snapshots and batches to DVC's default remote, a folder or a bucket."""
    _push(project_root())


def _push(root: Path) -> None:
    from tasks.data import dvc_store
    from tasks.data.versions import current, pointers

    named = pointers(root)
    if not named:
        raise PreflineError("There is nothing to send: DVC keeps no data of this project yet.", "Take a snapshot: prefline data snapshot.")
    cached = dvc_store.in_cache(root, named.values())
    older = [folder for folder, md5 in named.items() if md5 in cached]  # some may never have been on this machine
    sent = dvc_store.push(root, [root / folder for folder in dict.fromkeys([*current(root, load_config(root).data), *older])])
    typer.echo(f"Sent {sent:,} files." if sent else "Nothing to send: the remote has them all.")


@version_app.command()
def pull(
    revision: Annotated[
        str, typer.Argument(metavar="REV", help="A revision or a version to fetch, to compare with; none: what is here.")
    ] = "",
) -> None:
    """Lay the data out that this commit names; with REV, only fetch the version that is meant."""
    from tasks.data import dvc_store
    from tasks.data.batches import BATCHES
    from tasks.data.versions import current, fetch, pointers

    root = project_root()
    data = load_config(root).data
    if revision:
        version = fetch(root, data, revision)
        typer.echo(
            f"{version.md5} is in DVC's cache. prefline data diff {revision} compares it; to lay it out, check its commit out in git."
        )
        return
    batches = [BATCHES] if BATCHES in pointers(root) else []
    kept = dvc_store.pull(root, [root / folder for folder in batches])  # first: they decide which snapshot is the current one
    others = [folder for folder in current(root, data) if folder != BATCHES]
    kept += dvc_store.pull(root, [root / folder for folder in others])
    if not kept:
        raise PreflineError("This commit names no data that DVC keeps.", "Take a snapshot (prefline data snapshot), or git pull first.")
    for folder, one in zip([*batches, *others], kept, strict=True):
        typer.echo(f"{folder}  {one.md5}  {'laid out and checked' if one.ran else 'there already'}")


@version_app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="REV1", help="A git revision, or the name or hash of a version.")],
    after: Annotated[str, typer.Argument(metavar="REV2", help="The same; by default what is here now.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="All of it, for programs.")] = False,
) -> None:
    """Rows added, removed, judged otherwise or moved to another split, and how the figures moved."""
    from rich.console import Console

    from tasks.data.changes import changes
    from tasks.data.versions import find, read

    root = project_root()
    data = load_config(root).data
    versions = [find(root, data, text) for text in (before, after)]
    found = changes(*(read(root, version) for version in versions))
    if as_json:
        body = {"before": versions[0].md5, "after": versions[1].md5} | asdict(found)
        typer.echo(json.dumps(body, ensure_ascii=False, indent=1))
        return
    from flows.data_tables import changes_tables

    console = Console()
    console.print(f"{versions[0].name} ({versions[0].folder}) to {versions[1].name} ({versions[1].folder})", highlight=False, markup=False)
    if found.none:
        console.print("No difference.")
        return
    for table in changes_tables(found):
        console.print(table)


@version_app.command()
def log() -> None:
    """Versions of the data, newest first, and the models that were trained on each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tasks.data.dvc_store import in_cache
    from tasks.data.versions import counts, pointers, versions

    root = project_root()
    found = versions(root)
    if not found:
        typer.echo("No version of the data yet. Take one: prefline data snapshot.")
        return
    models, cached = _models(root, load_config(root).names), in_cache(root, [version.md5 for version in found])
    pointed = pointers(root)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("version", "date", "commit", "rows", "where"):
        table.add_column(heading, no_wrap=True)
    table.add_column("models trained on it", overflow="fold")
    for version in found:
        figures = counts(cached[version.md5]) if version.md5 in cached else {}
        rows = " + ".join(f"{figures[kind]['rows']:,}" for kind in ("comparisons", "demonstrations")) if figures else ""
        where = "elsewhere" if not figures else "here" if pointed.get(version.folder) == version.md5 else "cache"
        table.add_row(
            version.name, f"{version.made:%Y-%m-%d}", version.commit[:10] or "none yet", rows, where, "\n".join(models[version.md5])
        )
    Console().print(table)
    typer.echo("Rows are comparisons + demonstrations. A version that lies elsewhere comes with: prefline data pull COMMIT")


def _models(root: Path, names: NamesConfig) -> dict[str, list[str]]:
    """Registered models by the hash of their data; none, with a note, where MLflow does not answer."""
    from tasks.registry.store import open_store, talking_to, tracking_uri

    found: dict[str, list[str]] = defaultdict(list)
    try:
        uri = tracking_uri(root)
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///").partition("?")[0]).exists():
            return found  # no run yet; opening the store would make it
        store = open_store(root, names.experiment)
        with talking_to(uri):
            for name in (names.policy, names.reward_model, names.sft):
                for model in store.client.search_registered_models(f"name = '{name}'"):
                    aliases = {str(version): alias for alias, version in model.aliases.items()}
                    for version in store.client.search_model_versions(f"name = '{name}'", max_results=10_000):
                        alias = aliases.get(str(version.version))
                        found[version.tags.get(DATASET, "")].append(f"{name} {version.version}{f' ({alias})' if alias else ''}")
    except EnvironmentRefused as error:
        typer.echo(f"prefline: which models were trained on them is not known. {error}", err=True)
    return found
