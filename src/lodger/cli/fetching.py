"""Missing models brought here before a command goes on, with progress bars; and said when there is nothing to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lodger.catalogue.repository import HubName
    from lodger.cli.wanted import Wanted
    from lodger.hub.base import Report, Work
    from lodger.paths import Home
    from lodger.spec import ModelSpec


def prepared(what: Wanted) -> Wanted:
    """The same with every model on this disk and ready to be loaded.

    Raises:
        ModelProblem, HubProblem, NotEnoughDisk, SetupProblem.
    """
    from lodger.cli.render import say
    from lodger.hub.prepare import prepare

    with _bars_when_needed("All models are on this disk; nothing is downloaded.") as report:
        specs = tuple(prepare(spec, what.home, report, say=say, hub=what.hub) for spec in what.specs)
    return replace(what, specs=specs)


def fetched(spec: ModelSpec, home: Home, hub: HubName | None) -> None:
    """Have a model by its name on this disk. What it needs beyond that is the server's to do."""
    from lodger.cli.render import say
    from lodger.hub.prepare import fetch

    with _bars_when_needed(f"{spec.name} is on this disk; nothing is downloaded.") as report:
        fetch(spec, home, report, say=say, hub=hub)


@contextmanager
def _bars_when_needed(idle: str) -> Iterator[Report]:
    """Shows work, or says `idle` when there was none."""
    from lodger.cli.progress import reporting
    from lodger.cli.render import say

    worked = False
    with reporting() as show:

        def report(work: Work) -> None:
            nonlocal worked
            worked = True
            show(work)

        yield report
    if not worked:
        say(idle)
