"""`DeviceView`: one device's memory at one moment, as a value."""

from __future__ import annotations

from typing import Literal

import msgspec


class Neighbour(msgspec.Struct, frozen=True):
    """Another process that holds memory on the device. A fact the driver does not tell is None, never invented."""

    pid: int  # 0 for one that is only supposed
    used: int | None
    user: str | None = None
    command: str | None = None


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one GPU, or the RAM that a CPU worker may use."""

    id: str  # "cpu", "cuda:0"
    kind: Literal["cpu", "cuda"]
    name: str
    total: int
    free: int
    ours: int = 0  # held by our own workers; counted neither as free nor as a neighbour's
    neighbours: tuple[Neighbour, ...] = ()
    driver: str | None = None
    compute_capability: tuple[int, int] | None = None
    simulated: bool = False  # from `plan --gpu '80GiB,free=14GiB'`
