"""`lodger plan`: what would be loaded, into how much memory, before anything is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lodger.cli.options import File, HomeDir, Json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lodger.cli.wanted import Wanted
    from lodger.device.view import DeviceView
    from lodger.plan.values import Plan

Folders = Annotated[list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Model folders, instead of a file.")]
Card = Annotated[
    list[str] | None,
    typer.Option("--gpu", metavar="CARD", help="Plan for a card that is not here: '80GiB,free=14GiB'. Once for each."),
]


def run(folders: Folders = None, file: File = None, gpu: Card = None, home: HomeDir = None, json: Json = False) -> None:
    """Show what fits, in GiB, without loading anything.

    A refusal names every number and the smallest change that would fit.
    """
    from lodger.cli.render import show_json
    from lodger.cli.wanted import Flags, wanted
    from lodger.device.fake import parse_device
    from lodger.plan.explain import plan_json

    views = tuple(parse_device(card, index) for index, card in enumerate(gpu or ()))
    what = wanted(Flags(home=home, file=file), folders=folders or ())
    plans = local_plans(what, views)
    if json:
        found = [plan_json(plan) for plan in plans]
        show_json(found[0] if len(found) == 1 else found)
    else:
        show_plans(plans)


def local_plans(what: Wanted, views: tuple[DeviceView, ...] = ()) -> tuple[Plan, ...]:
    """The plans for all of it on `views`, or on this machine's devices as they are now.

    What a running server of the same home holds counts as free: the plan is for these models, not for them twice.

    Raises:
        ModelProblem, DoesNotFit, Unsupported.
    """
    from lodger.supervisor.placement import Placement

    placement = Placement(what.home, device=what.device, reserve=what.reserve)
    views = views or placement.usable(placement.devices(_our_pids(what)))
    return placement.plan(views, {}, [placement.candidate(spec) for spec in what.specs])


def show_plans(plans: Iterable[Plan]) -> None:
    """On stdout, one for each device: a table that fits the terminal, or plain lines elsewhere."""
    from rich.console import Console

    from lodger.plan.explain import plan_table, plan_text

    console = Console(highlight=False)
    for number, plan in enumerate(plans):
        if number:
            print()
        if console.is_terminal:
            console.print(plan_table(plan))
        else:
            print(plan_text(plan), flush=True)


def _our_pids(what: Wanted) -> list[int]:
    from lodger.client import Client, running_server
    from lodger.errors import LodgerError

    record = running_server(what.home)
    if record is None:
        return []
    try:
        workers = Client(record.address, api_key=record.api_key, timeout=2.0).status().workers
    except LodgerError:
        return []
    return [worker.pid for worker in workers if worker.pid is not None]
