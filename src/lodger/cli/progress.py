"""Waiting for models, with a progress bar for each on a terminal and a line for each elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lodger.cli.render import say, talk

if TYPE_CHECKING:
    from lodger.client import Client
    from lodger.hub.base import Report, Work
    from lodger.service import ModelStatus

Show = Callable[["ModelStatus"], None]


def wait_settled(client: Client, uids: Sequence[str]) -> list[ModelStatus]:
    """Return when each of these models is ready or has failed."""
    with _bars(uids) if talk().is_terminal else _lines() as show:
        while True:
            models = [model for model in client.models() if model.uid in uids]
            for model in models:
                show(model)
            if all(model.state in ("ready", "failed") for model in models):
                return models
            time.sleep(0.1)


def raise_failed(models: Sequence[ModelStatus]) -> None:
    """
    Raises:
        LodgerError: why the first of those that failed did; it stays listed with the last lines of its log.
    """
    from lodger.errors import ModelFailed, from_info

    for model in models:
        if model.state == "failed":
            for line in model.log_tail[-5:]:
                say(f"{model.uid}: {line}")
            raise from_info(model.error) if model.error else ModelFailed(f"{model.uid} did not load.")


@contextmanager
def _bars(uids: Sequence[str]) -> Iterator[Show]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=talk()) as progress:
        tasks = {uid: progress.add_task(uid, total=1.0, state="waiting") for uid in uids}

        def show(model: ModelStatus) -> None:
            done = model.state in ("ready", "failed")
            progress.update(tasks[model.uid], completed=1.0 if done else model.progress, state=model.state)
            if done:
                progress.stop_task(tasks[model.uid])

        yield show


@contextmanager
def _lines() -> Iterator[Show]:
    started = time.monotonic()
    told: set[str] = set()

    def show(model: ModelStatus) -> None:
        if model.state in ("ready", "failed") and model.uid not in told:
            told.add(model.uid)
            say(f"{model.uid}: {model.state} after {time.monotonic() - started:.1f} s")

    yield show


@contextmanager
def reporting() -> Iterator[Report]:
    """Shows work that tells its name and how much of it is done."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=talk()) as progress:
        tasks: dict[str, TaskID] = {}

        def report(work: Work) -> None:
            if work.title not in tasks:
                tasks[work.title] = progress.add_task(work.title)
            progress.update(tasks[work.title], completed=work.done, total=work.total)

        yield report
