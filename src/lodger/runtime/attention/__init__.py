"""How packed tokens attend. One table: backend name -> "module:Class", loaded when asked for."""

from __future__ import annotations

from importlib import import_module

import torch

from lodger.runtime.attention.base import AttentionBackend

TABLE: dict[str, str] = {
    "paged": "lodger.runtime.attention.paged:PagedAttention",
    "varlen": "lodger.runtime.attention.varlen:VarlenAttention",
    "sdpa": "lodger.runtime.attention.sdpa:SdpaAttention",
}


def choose(device: torch.device) -> AttentionBackend:
    """The fastest backend for `device`. SDPA runs everywhere and is what the others are compared with."""
    return open_backend("sdpa", device)


def open_backend(name: str, device: torch.device) -> AttentionBackend:
    module, _, cls = TABLE[name].partition(":")
    backend: AttentionBackend = getattr(import_module(module), cls)(device)
    return backend
