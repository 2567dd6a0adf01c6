"""How packed tokens attend. One table: backend name -> "module:Class", loaded when asked for."""

from __future__ import annotations

import logging
from importlib import import_module

import torch

from lodger import toolchain
from lodger.runtime.attention.base import AttentionBackend

_log = logging.getLogger("lodger.runtime")

TABLE: dict[str, str] = {
    "paged": "lodger.runtime.attention.paged:PagedAttention",
    "varlen": "lodger.runtime.attention.varlen:VarlenAttention",
    "sdpa": "lodger.runtime.attention.sdpa:SdpaAttention",
}


def choose(device: torch.device) -> AttentionBackend:
    """The fastest backend for `device`. SDPA runs everywhere and is what the others are compared with.

    FlashAttention needs compute capability 8.0, and so do our kernels' tile sizes.
    """
    if runs_kernels(device):
        return open_backend("paged", device)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return open_backend("sdpa", device)
    lacking = " and ".join(toolchain.missing())
    _log.warning("Decoding is slower than it could be: install %s for our GPU kernels.", lacking)
    return open_backend("varlen", device)


def runs_kernels(device: torch.device) -> bool:
    """Whether our kernels run on `device`: what `choose` takes "paged" for."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and not toolchain.missing()


def open_backend(name: str, device: torch.device) -> AttentionBackend:
    module, _, cls = TABLE[name].partition(":")
    backend: AttentionBackend = getattr(import_module(module), cls)(device)
    return backend
