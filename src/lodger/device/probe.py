"""What is free on this machine now, device by device."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lodger.device.host import probe_host
from lodger.device.nvml import probe_gpus
from lodger.device.view import DeviceView
from lodger.errors import ConfigProblem
from lodger.settings import visible_gpus


def probe_devices(our_pids: Collection[int] = ()) -> tuple[DeviceView, ...]:
    """GPUs first, then "cpu". Takes milliseconds and makes no CUDA context.

    Args:
        our_pids: our own workers; what they hold is told apart from free and from neighbours.
    """
    return (*probe_gpus(our_pids, visible=visible_gpus()), probe_host(our_pids))


def probe(device_id: str, our_pids: Collection[int] = ()) -> DeviceView:
    """One device by its id, "cpu" or "cuda:0".

    Raises:
        ConfigProblem: this machine has no such device; names those there are.
    """
    return choose_device(probe_devices(our_pids), device_id)


def choose_device(views: Sequence[DeviceView], asked: str | None = None) -> DeviceView:
    """Of `usable_devices`, the one with the most free memory; the first of equals. Pure.

    What our own workers hold counts as free, so that a choice once made is made again.

    Raises:
        ConfigProblem: there is no such device; names those there are.
    """
    return max(usable_devices(views, asked), key=lambda view: view.free + view.ours)


def usable_devices(views: Sequence[DeviceView], asked: str | None = None) -> tuple[DeviceView, ...]:
    """Where models may go: on every GPU, else on the CPU. Pure.

    Args:
        asked: a device's id, or "cuda" for any GPU; None for the best there is.

    Raises:
        ConfigProblem: there is no such device; names those there are.
    """
    found = [view for view in views if asked in (None, view.id, view.kind)]
    if not found:
        there = ", ".join(view.id for view in views)
        raise ConfigProblem(f"There is no device {asked!r} on this machine.", hint=f"Devices: {there}.", param="device")
    return tuple(view for view in found if view.kind == "cuda") or tuple(found)
