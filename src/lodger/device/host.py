"""RAM as the CPU worker may use it: what the machine has available, inside what our cgroup allows."""

from __future__ import annotations

import platform
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lodger.device.view import DeviceView
from lodger.units import KIB


class Limit(NamedTuple):
    """A cgroup's memory limit and how much is left of it, in bytes."""

    total: int
    free: int


def probe_host(our_pids: Collection[int] = (), *, root: Path = Path("/")) -> DeviceView:
    """The device "cpu".

    Free is the smallest of psutil's available memory and what is left in each cgroup above us. The kernel does not say
    which of the other processes hold the rest in a way that adds up, so there are no neighbours here.
    """
    import psutil

    memory = psutil.virtual_memory()
    limits = cgroup_limits(root)
    return DeviceView(
        id="cpu",
        kind="cpu",
        name=_cpu_name(root),
        total=min([memory.total, *(limit.total for limit in limits)]),
        free=min([memory.available, *(limit.free for limit in limits)]),
        ours=sum(_held(root, pid) for pid in our_pids),
    )


def _held(root: Path, pid: int) -> int:
    """Memory of a process that nobody else could have: its resident set without pages of files, which the kernel counts
    as available already. 0 when the process is gone."""
    with suppress(OSError):
        pairs = (line.split(":", 1) for line in (root / f"proc/{pid}/status").read_text().splitlines())
        kib = {name: int(value.split()[0]) for name, value in pairs if name in ("VmRSS", "RssFile")}
        return (kib.get("VmRSS", 0) - kib.get("RssFile", 0)) * KIB
    return 0


def cgroup_limits(root: Path = Path("/")) -> list[Limit]:
    """Limits of our cgroup and of those above it, versions 2 and 1; empty where nothing is limited.

    In a container the path in /proc/self/cgroup may be the host's, while only our own part is mounted: then the mount's
    top is our cgroup.
    """
    found: list[Limit | None] = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found += [_limit_v2(folder) for folder in _upwards(root / "sys/fs/cgroup", path)]
            elif "memory" in controllers.split(","):
                found += [_limit_v1(folder) for folder in _upwards(root / "sys/fs/cgroup/memory", path)]
    return [limit for limit in found if limit]


def _upwards(top: Path, path: str) -> list[Path]:
    folder = top / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent == top or top in parent.parents)]


def _limit_v2(folder: Path) -> Limit | None:
    """memory.current counts cached files too; those not in use (inactive_file) are given back on demand."""
    return _limit(folder, "memory.max", "memory.current", "inactive_file")


def _limit_v1(folder: Path) -> Limit | None:
    return _limit(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _limit(folder: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> Limit | None:
    try:
        total = int((folder / limit_name).read_text())  # "max" in version 2 means none
        used = int((folder / usage_name).read_text())
        stat = (folder / "memory.stat").read_text()
    except (OSError, ValueError):
        return None
    reclaimable = dict(line.split(" ", 1) for line in stat.splitlines()).get(reclaimable_name, "0")
    return Limit(total, max(0, total - used + min(used, int(reclaimable))))


def _cpu_name(root: Path) -> str:
    with suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return f"RAM of {' '.join(line.partition(':')[2].split())}"
    return f"RAM of {platform.machine()}"
