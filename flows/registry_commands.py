"""Commands about registered models: ask one, who is champion, who shall be, who was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.settings import load_config, project_root
from tasks.errors import ConfigError

if TYPE_CHECKING:
    from tasks.registry.ledger import LedgerLine

registry_app = typer.Typer()


@registry_app.command()
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    version: Annotated[str, typer.Option(help="Of the registered policy; the champion by default.")] = "",
) -> None:
    """Ask the champion."""
    root = project_root()
    settings = load_config(root)
    from tasks.registry.ask import ask as ask_policy
    from tasks.registry.store import open_store

    reply = ask_policy(open_store(root, settings.names.experiment), settings.names.policy, question, settings.max_new_tokens, version)
    print(reply.text + ("" if reply.stopped else " ..."))


@registry_app.command()
def champion() -> None:
    """Show who is champion, since when and why."""
    root = project_root()
    settings = load_config(root)
    from tasks.registry.store import open_store
    from tasks.registry.told import describe_champion

    print(describe_champion(open_store(root, settings.names.experiment), settings.names.policy))


@registry_app.command()
def promote(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Of the registered policy.")],
    approve: Annotated[str, typer.Option(metavar="NAME", help="Say yes, in this name, to a version that waits for approval.")] = "",
    refuse: Annotated[str, typer.Option(metavar="NAME", help="Say no to it; needs --why.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Make it champion whatever its gates said; needs --why.")] = False,
    why: Annotated[str, typer.Option(help="For the ledger.")] = "",
) -> None:
    """Approve or refuse a version that waits for a person, or force one on the champion's place; alone, say how it stands."""
    root = project_root()
    settings = load_config(root)
    if sum((bool(approve), bool(refuse), force)) > 1:
        raise ConfigError("--approve, --refuse and --force exclude each other.", "prefline promote --help tells more.")
    from tasks.registry import by_hand
    from tasks.registry.gates import read_policy
    from tasks.registry.store import open_store

    policy = read_policy(root / settings.promotion)
    name, store = settings.names.policy, open_store(root, settings.names.experiment)
    if refuse:
        by_hand.refuse(store, name, version, refuse, why, policy)
        print(f"{name} version {version} is refused and stays as it was.")
    elif force:
        print(_crowned(name, by_hand.force(store, name, version, "", why, policy)))
    elif approve:
        print(_crowned(name, by_hand.approve(store, name, version, approve, why, policy)))
    else:
        print(by_hand.standing(store, name, version))


def _crowned(name: str, line: LedgerLine) -> str:
    after = f", after version {line.previous}" if line.previous else ", the first"
    copied = f" It was copied to {', '.join(line.environments)}." if line.environments else ""
    return f"{name} version {line.version} is champion{after}.{copied}"


@registry_app.command()
def rollback(
    to: Annotated[str, typer.Option("--to", metavar="VERSION", help="An earlier champion; by default the one before today's.")] = "",
    why: Annotated[str, typer.Option(help="For the ledger.")] = "no reason given",
) -> None:
    """Make an earlier champion champion again, and say so in the ledger."""
    root = project_root()
    settings = load_config(root)
    from tasks.registry.gates import read_policy
    from tasks.registry.store import open_store
    from tasks.registry.succession import rollback as roll_back

    environments = read_policy(root / settings.promotion).environments
    name = settings.names.policy
    line = roll_back(open_store(root, settings.names.experiment), name, to, why, environments)
    instead = f", in place of version {line.previous}" if line.previous else ""
    print(f"{name} version {line.version} is champion again{instead}.")


@registry_app.command()
def history() -> None:
    """Show every change of champion, the newest first: what, when, by whom and why."""
    root = project_root()
    settings = load_config(root)
    from rich.console import Console

    from flows.summary import ledger_table
    from tasks.registry.store import open_store
    from tasks.registry.told import history as told

    name = settings.names.policy
    lines = told(open_store(root, settings.names.experiment), name)
    Console().print(ledger_table(name, lines) if lines else f"{name} has had no champion yet.", highlight=False)
