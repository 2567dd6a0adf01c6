"""The contract of an attention backend.

`plan` is called once a forward and `attend` once a layer, so whatever depends only on lengths (masks, tables, groups)
belongs into `plan`.
"""

from __future__ import annotations

from typing import Protocol

import torch

from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch


class AttentionPlan(Protocol):
    """Attention of one packed forward."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attend within each sequence, never across.

        With a KV cache, `key` and `value` are stored first, and the sequence's older ones are read from it.

        Args:
            query: [T, heads, head_dim].
            key, value: [T, kv_heads, head_dim]; heads is a multiple of kv_heads.
            scale: factor on the scores.
            window: keys that a query sees, counting its own; None is all.

        Returns:
            [T, heads, head_dim].
        """
        ...


class AttentionBackend(Protocol):
    def __init__(self, device: torch.device) -> None: ...

    def plan(self, batch: PackedBatch, cache: KVCache | None, *, causal: bool) -> AttentionPlan: ...
