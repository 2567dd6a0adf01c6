"""torch's variable-length FlashAttention: texts of any lengths in one launch, on cards of compute capability 8.0 on."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from lodger.runtime.attention.base import AttentionPlan
from lodger.runtime.attention.sdpa import SdpaAttention
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch
from lodger.runtime.upload import upload

# Since torch 2.12 key heads may be fewer than query heads only when this is said; 2.11 never asked.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def serves(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether FlashAttention computes this; what it does not, SDPA does."""
    return dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 256


class VarlenAttention:
    """Sequences without a past in one launch; SDPA for all else."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._sdpa = device, SdpaAttention(device)

    def plan(self, batch: PackedBatch, cache: KVCache | None, *, causal: bool) -> AttentionPlan:
        if any(batch.past):
            return self._sdpa.plan(batch, cache, causal=causal)
        return VarlenPlan(batch, cache, causal, self._device)


class VarlenPlan:
    """Whole sequences. What they are made of is seen when the first layer attends."""

    def __init__(self, batch: PackedBatch, cache: KVCache | None, causal: bool, device: torch.device) -> None:
        self._batch, self._cache, self._causal, self._device = batch, cache, causal, device
        self._fresh: Fresh | None = None
        self._other: AttentionPlan | None = None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        if not serves(query.dtype, query.shape[2]):
            if self._other is None:
                self._other = SdpaAttention(self._device).plan(self._batch, self._cache, causal=self._causal)
            return self._other.attend(layer, query, key, value, scale, window)
        if self._cache is not None and self._batch.slots is not None:
            self._cache.write(layer, self._batch.slots, key, value)
        if self._fresh is None:
            self._fresh = Fresh(self._batch.offsets, self._causal, self._device)
        return self._fresh.attend(query, key, value, scale, window)


class Fresh:
    """Neighbouring sequences whose keys are the packed keys."""

    def __init__(self, offsets: tuple[int, ...], causal: bool, device: torch.device) -> None:
        self.start, self.end = offsets[0], offsets[-1]
        self._causal = causal
        self._longest = max(end - start for start, end in zip(offsets, offsets[1:], strict=False))
        self._offsets = upload([at - self.start for at in offsets], torch.int32, device)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        """[T, heads, head_dim] of exactly these sequences' tokens."""
        before = -1 if window is None else window - 1  # FlashAttention does not count the query's own key
        found = varlen_attn(
            query,
            key,
            value,
            self._offsets,
            self._offsets,
            self._longest,
            self._longest,
            scale=scale,
            window_size=(before, 0) if self._causal else (-1, -1),
            **_GROUPED,
        )
        assert isinstance(found, torch.Tensor)  # without its logarithms of sums, which were not asked for
        return found
