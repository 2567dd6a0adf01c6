"""A GPU's CUDA context, made by the driver alone: torch finds it there.

Making it and importing torch take about a second or more each, and neither waits for the other.
"""

from __future__ import annotations

from contextlib import suppress
from ctypes import CDLL, byref, c_int, c_void_p
from threading import Thread
from typing import Any


def begin(device: str) -> Thread | None:
    """In a thread of its own, for "cuda:0". What goes wrong there is said by whoever needs the context first."""
    if not device.startswith("cuda"):
        return None
    thread = Thread(target=_retain, args=(int(device.partition(":")[2] or 0),), name="CUDA context", daemon=True)
    thread.start()
    return thread


def _retain(index: int) -> None:
    """Of the primary context, which is the one that torch uses ("Primary Context Management" of the driver API)."""
    with suppress(OSError):
        cuda: Any = CDLL("libcuda.so.1")
        device, context = c_int(), c_void_p()
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGet(byref(device), index) == 0:
            cuda.cuDevicePrimaryCtxRetain(byref(context), device)
