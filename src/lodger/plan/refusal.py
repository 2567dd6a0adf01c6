"""Why it does not fit, with every number. Pure."""

from __future__ import annotations

from lodger.device.view import DeviceView, Neighbour
from lodger.errors import DoesNotFit
from lodger.plan.demand import Demand, available, demands, needed, process
from lodger.plan.remedies import join_names, remedy
from lodger.plan.values import Candidate
from lodger.units import gib


def refusal(device: DeviceView, candidates: tuple[Candidate, ...], reserve: int) -> DoesNotFit:
    """The error that says so."""
    return DoesNotFit(
        _message(device, demands(device, candidates), reserve), hint=remedy(device, candidates, reserve).text
    )


def _message(device: DeviceView, wants: tuple[Demand, ...], reserve: int) -> str:
    return f"{' '.join(shortage(device, wants, reserve))} {grants(device, wants)}"


def shortage(device: DeviceView, wants: tuple[Demand, ...], reserve: int) -> list[str]:
    """What is too little, in sentences; none where all of them fit."""
    least, usable = needed(device, wants), available(device, reserve)
    parts, need = [], "needs" if len(wants) == 1 else "need"
    if least > usable:
        parts.append(
            f"{join_names([want.uid for want in wants])} {need} at least {gib(least)}, {gib(least - usable)} more than"
            f" there are: {_room(device, reserve)}."
        )
    parts += [
        f"{want.uid} needs at least {gib(want.cost(0))}, over its memory limit of {gib(limit)}."
        for want in wants
        if want.too_small and (limit := want.candidate.spec.memory) is not None
    ]
    return parts


def grants(device: DeviceView, wants: tuple[Demand, ...]) -> str:
    """The smallest of each model, part by part."""
    smallest = "; ".join(f"{want.uid} {_parts(want)}" for want in wants)
    return f"Smallest grants: {smallest}; worker process {gib(process(device, wants))}."


def _room(device: DeviceView, reserve: int) -> str:
    text = f"{device.name} has {gib(device.total)}, {gib(device.free)} free"
    if device.ours:
        text += f", {gib(device.ours)} held by Lodger"
    if (others := device.total - device.free - device.ours) > 0:
        text += f", {gib(others)} held by others"
    if device.neighbours and not device.simulated:
        text += f" ({', '.join(_neighbour(neighbour) for neighbour in device.neighbours)})"
    return f"{text}, {gib(reserve)} kept as reserve"


def _neighbour(neighbour: Neighbour) -> str:
    """``'pid 4211 (alice, python) 60.00 GiB'``; what the driver does not tell is left out."""
    who = ", ".join(fact for fact in (neighbour.user, neighbour.command) if fact)
    size = gib(neighbour.used) if neighbour.used is not None else "size unknown"
    return f"pid {neighbour.pid}{f' ({who})' if who else ''} {size}"


def _parts(want: Demand) -> str:
    budget = want.smallest
    weights = f"weights of {want.shares}" if want.shares else f"weights {gib(budget.weights)}"
    cache = f", KV cache {gib(budget.kv_cache)} ({want.kv_tokens(0):,} tokens)" if budget.kv_cache else ""
    captured = f", captured steps {gib(budget.captured)}" if budget.captured else ""
    steps = f"activations {gib(budget.total - budget.kept)} (steps of {budget.step_tokens:,} tokens)"
    return f"{gib(want.cost(0))} ({weights}{cache}{captured}, {steps})"
