"""torch's variable-length FlashAttention: texts of any lengths in one launch, on cards of compute capability 8.0 on."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from itertools import accumulate
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
        offsets, longest = (self._offsets, self._offsets), (self._longest, self._longest)
        return _flash(query, key, value, offsets, longest, scale, _before(window) if self._causal else (-1, -1))


class EndToEnd:
    """Neighbouring sequences after any past, whose keys lie end to end in another tensor than their new tokens.

    Query n of the last ones sees all keys but those of the queries after it, as FlashAttention has it for fewer queries
    than keys since its version 2.1.
    """

    def __init__(self, token: int, key: int, lengths: Sequence[tuple[int, int]], device: torch.device) -> None:
        """`token` and `key` are the first of each, `lengths` the (new tokens, keys) of every sequence."""
        self.queries = slice(token, token + sum(new for new, _ in lengths))
        self._keys = slice(key, key + sum(keys for _, keys in lengths))
        self._longest = max(new for new, _ in lengths), max(keys for _, keys in lengths)
        new, keys = ([0, *accumulate(of)] for of in zip(*lengths, strict=True))
        self._offsets = upload(new, torch.int32, device), upload(keys, torch.int32, device)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        """Of the packed row's `queries`, which are these sequences' new tokens: [new tokens, heads, head_dim]."""
        own = query[self.queries], key[self._keys], value[self._keys]
        return _flash(*own, self._offsets, self._longest, scale, _before(window))


def _before(window: int | None) -> tuple[int, int]:
    """Keys before a query's own and after it; FlashAttention does not count the query's own."""
    return (-1 if window is None else window - 1, 0)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    scale: float,
    window: tuple[int, int],
) -> torch.Tensor:
    """`offsets` and `longest` are of queries and of keys."""
    found = varlen_attn(query, key, value, *offsets, *longest, scale=scale, window_size=window, **_GROUPED)
    assert isinstance(found, torch.Tensor)  # without its logarithms of sums, which were not asked for
    return found
