"""`lodger status`: the server, its processes, what each model was granted and what it holds."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from lodger.cli.options import ApiKey, Endpoint, HomeDir, Json, connect

if TYPE_CHECKING:
    from lodger.service import ModelStatus, ServerStatus


def run(endpoint: Endpoint = None, api_key: ApiKey = None, home: HomeDir = None, json: Json = False) -> None:
    """Show processes, models and memory.

    GRANTED is what the plan gave to a model, HOLDS is what was measured.
    """
    from lodger.cli.render import show_json

    status = connect(endpoint, api_key, home).status()
    if json:
        show_json(status)
    else:
        _show(status)


def _show(status: ServerStatus) -> None:
    from lodger.cli.render import show_table
    from lodger.units import gib

    uptime = _duration(time.time() - status.started)
    print(f"Lodger {status.version} at {status.address}, pid {status.pid}, up {uptime}, home {status.home}\n")
    show_table(
        ("DEVICE", "WORKER", "PID", "UPTIME", "HOLDS", "RESTARTS"),
        [(w.device, w.state, w.pid or "-", _duration(w.uptime), gib(w.used), w.restarts) for w in status.workers],
    )
    if not status.models:
        return
    granted = Counter[str]()
    for plan in status.plan:
        granted.update({model.uid: model.budget.total for model in plan.models})
    print()
    show_table(
        ("UID", "TYPE", "STATE", "DEVICE", "DTYPE", "CONTEXT", "GRANTED", "HOLDS", "REQUESTS"),
        [_row(model, granted[model.uid]) for model in status.models],
    )
    for model in status.models:
        several = len(model.replicas) > 1
        for one in model.replicas if several else (model,):
            if one.error:
                print(f"\n{model.uid}{f' on {one.device}' if several else ''}: {one.error.message}")
                for line in one.log_tail[-5:]:
                    print(f"  {line}")


def _row(model: ModelStatus, granted: int) -> tuple[object, ...]:
    from lodger.units import gib

    kind = model.facts.kind if model.facts else model.spec.kind or "-"
    state = f"{model.state} {model.progress:.0%}" if model.state == "loading" else model.state
    context = model.context_length or "-"
    return (
        model.uid,
        kind,
        state,
        ", ".join(model.devices) or "-",
        model.dtype or "-",
        context,
        gib(granted) if granted else "-",
        _held(model.memory),
        model.running,
    )


def _held(memory: dict[str, int]) -> str:
    """On the device, or what keeps the weights of one that sleeps."""
    from lodger.units import gib

    held = sum(size for part, size in memory.items() if part != "host")
    in_ram = f"{gib(memory['host'])} of RAM" if memory.get("host") else ""
    return ", ".join(filter(None, (gib(held) if held else "", in_ram))) or "-"


def _duration(seconds: float) -> str:
    """'42 s', '3 min', '5 h 12 min', '2 d 5 h'."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
