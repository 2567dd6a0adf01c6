"""Waiting for models and for long work: a progress bar for each on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lodger.cli.render import say, talk
from lodger.units import gib

if TYPE_CHECKING:
    from lodger.client import Client
    from lodger.hub.base import Report, Work
    from lodger.service import ModelStatus

QUIET = 5.0  # seconds without a line, at least
SETTLED = ("ready", "asleep", "failed")

Show = Callable[["ModelStatus"], None]


def wait_settled(client: Client, uids: Sequence[str]) -> list[ModelStatus]:
    """Return when each of these models serves or has failed."""
    with _bars(uids) if talk().is_terminal else _lines() as show:
        while True:
            models = [model for model in client.models() if model.uid in uids]
            for model in models:
                show(model)
            if all(model.state in SETTLED for model in models):
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
            done = model.state in SETTLED
            progress.update(tasks[model.uid], completed=1.0 if done else model.progress, state=model.state)
            if done:
                progress.stop_task(tasks[model.uid])

        yield show


@contextmanager
def _lines() -> Iterator[Show]:
    started = time.monotonic()
    told: set[str] = set()

    def show(model: ModelStatus) -> None:
        if model.state in SETTLED and model.uid not in told:
            told.add(model.uid)
            say(f"{model.uid}: {model.state} after {time.monotonic() - started:.1f} s")

    yield show


@contextmanager
def reporting() -> Iterator[Report]:
    """Shows long work: a bar for each title on a terminal, elsewhere a line now and then.

    "a/b" is a part of "a": it has a bar as long as it is under way, and no lines.
    """
    with _work_bars() if talk().is_interactive else _work_lines() as report:
        yield report


def _whole(title: str, titles: Container[str]) -> str | None:
    """Of which of `titles` this is a part."""
    parts = title.split("/")
    found = ("/".join(parts[:count]) for count in range(1, len(parts)))
    return next((whole for whole in found if whole in titles), None)


@contextmanager
def _work_bars() -> Iterator[Report]:
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = f"  {gib(int(task.speed))}/s" if task.speed and not task.finished else ""
            return Text(f"{gib(int(task.completed))} of {gib(int(task.total or 0))}{speed}", style="progress.download")

    description = TextColumn("{task.description}", markup=False)
    remaining = TimeRemainingColumn(compact=True, elapsed_when_finished=True)
    progress = Progress(description, BarColumn(), Amount(), remaining, console=talk())
    tasks: dict[str, TaskID] = {}

    def report(work: Work) -> None:
        progress.start()  # with the first work, so that none leaves no empty line
        whole = _whole(work.title, tasks)
        if whole and work.done == work.total:
            if work.title in tasks:
                progress.remove_task(tasks.pop(work.title))
        elif work.title in tasks:
            progress.update(tasks[work.title], completed=work.done, total=work.total)
        else:
            shown = f"  {work.title.removeprefix(f'{whole}/')}" if whole else work.title
            tasks[work.title] = progress.add_task(shown, completed=work.done, total=work.total)

    try:
        yield report
    finally:
        progress.stop()


class _Lines:
    """What is said of one title: after a while, then at each twentieth of it, and at its end."""

    def __init__(self, work: Work) -> None:
        self.began, self.first = time.monotonic(), work.done
        self.said, self.last = self.began, -work.total

    def line(self, work: Work) -> str | None:
        now = time.monotonic()
        taken, came = now - self.began, work.done - self.first
        if work.done == work.total:
            return f"{work.title}: {gib(work.total)} in {taken:.0f} s" if came else None
        if now - self.said < QUIET or work.done - self.last < work.total / 20:
            return None
        self.said, self.last = now, work.done
        left = f", {taken * (work.total - work.done) / came:.0f} s left" if came > 0 else ""
        speed = f", {gib(int(came / taken))}/s" if came > 0 else ""
        return f"{work.title}: {work.done / work.total:.0%} of {gib(work.total)}{speed}{left}"


@contextmanager
def _work_lines() -> Iterator[Report]:
    lines: dict[str, _Lines] = {}

    def report(work: Work) -> None:
        if _whole(work.title, lines) is None:
            line = lines.setdefault(work.title, _Lines(work)).line(work)
            if line:
                say(line)

    yield report
