"""Triton's own preparations, made while weights are read."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from threading import Thread

import torch

from lodger.runtime.attention import runs_kernels


def begin(device: torch.device) -> Thread | None:
    """In a thread of its own, where our kernels run.

    Triton finds what it has built under the hash of all its files, the largest of which has 500 MB; it is computed
    once in each process, by the first kernel, for a second and more.
    """
    if not runs_kernels(device):
        return None
    thread = Thread(target=_hash, name="triton", daemon=True)
    thread.start()
    return thread


def _hash() -> None:
    with suppress(ImportError, AttributeError, OSError):  # another Triton than ours: then the first kernel pays for it
        import_module("triton.runtime.cache").triton_key()
