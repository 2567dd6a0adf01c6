"""GPUs as NVML tells of them. The only user of NVML: it makes no CUDA context and signals nobody.

NVML counts devices in PCI bus order. Ours are numbered as torch numbers them under CUDA_VISIBLE_DEVICES with
CUDA_DEVICE_ORDER=PCI_BUS_ID, which is what our workers are started with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from ctypes import CDLL
from importlib import import_module
from typing import Any

from lodger.device.view import DeviceView, Neighbour

Who = Callable[[int], tuple[str | None, str | None]]  # pid -> user, command

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO: the inode of the host's own namespace, the same on every Linux
_PROCESS_LISTS = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")


def probe_gpus(
    our_pids: Collection[int] = (), *, visible: Sequence[str] | None = None, nvml: Any = None, who: Who | None = None
) -> tuple[DeviceView, ...]:
    """Every GPU that a worker of ours would see, in its order; none without a driver, which is no error.

    Args:
        our_pids: processes whose memory counts as ours.
        visible: the entries of CUDA_VISIBLE_DEVICES; None: every GPU.
        nvml: the module pynvml, or one that behaves like it.
        who: user and command of a pid; None asks this machine.
    """
    if nvml is None and not _driver_installed():
        return ()
    nvml = nvml or import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        handles = _visible_handles(nvml, visible)
        driver = _text(_ask(nvml, nvml.nvmlSystemGetDriverVersion))
        views = (
            _view(nvml, handle, index, driver, our_pids, who or local_process) for index, handle in enumerate(handles)
        )
        return tuple(view for view in views if view)
    finally:
        nvml.nvmlShutdown()


def _driver_installed() -> bool:
    """Asked before pynvml is imported, which alone takes 50 ms."""
    with suppress(OSError):
        return bool(CDLL("libnvidia-ml.so.1"))
    return False


def local_process(pid: int) -> tuple[str | None, str | None]:
    """User and command of `pid`; (None, None) when it is gone, and in a container, where NVML's pids are the host's."""
    if not _in_host_namespace():
        return None, None
    import psutil

    user, command = None, None
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        user = process.username()
        command = process.name()
    return user, command


def _in_host_namespace() -> bool:
    with suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE
    return False


def _visible_handles(nvml: Any, visible: Sequence[str] | None) -> list[Any]:
    """As CUDA reads the variable: indices or the beginnings of UUIDs, up to the first entry that names no GPU."""
    count = _ask(nvml, nvml.nvmlDeviceGetCount) or 0
    handles = [_ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    if visible is None:
        return [handle for handle in handles if handle is not None]
    chosen = []
    for entry in visible:
        handle = next((handles[n] for n in range(count) if _named(nvml, entry, n, handles[n])), None)
        if handle is None:
            break
        chosen.append(handle)
    return chosen


def _named(nvml: Any, entry: str, index: int, handle: Any) -> bool:
    if entry.isdecimal():
        return int(entry) == index
    return entry.startswith("GPU-") and (_text(_ask(nvml, nvml.nvmlDeviceGetUUID, handle)) or "").startswith(entry)


def _view(
    nvml: Any, handle: Any, index: int, driver: str | None, our_pids: Collection[int], who: Who
) -> DeviceView | None:
    """None where the driver does not tell how much is free (a card cut into MIG slices, a lost card)."""
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None:
        return None
    processes = _processes(nvml, handle)
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return DeviceView(
        id=f"cuda:{index}",
        kind="cuda",
        name=_text(_ask(nvml, nvml.nvmlDeviceGetName, handle)) or "GPU",
        total=memory.total,
        free=memory.free,
        ours=sum(used or 0 for pid, used in processes.items() if pid in our_pids),
        neighbours=tuple(Neighbour(pid, used, *who(pid)) for pid, used in processes.items() if pid not in our_pids),
        driver=driver,
        compute_capability=None if capability is None else (capability[0], capability[1]),
    )


def _processes(nvml: Any, handle: Any) -> dict[int, int | None]:
    """Bytes of each process on the card, largest first; None where the driver does not say."""
    found: dict[int, int | None] = {}
    for name in _PROCESS_LISTS:
        for process in _ask(nvml, getattr(nvml, name), handle) or ():
            used = process.usedGpuMemory
            found[process.pid] = found.get(process.pid) if used is None else used
    return dict(sorted(found.items(), key=lambda item: (-(item[1] or 0), item[0])))


def _ask(nvml: Any, function: Any, *args: Any) -> Any:
    """What NVML answers; None for what this driver or card does not tell."""
    try:
        return function(*args)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
