"""Packed batches with random contents, and what float32 SDPA makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from lodger.runtime.attention.sdpa import SdpaAttention
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch

# Relative error of a whole result, ||found - expected|| / ||expected||: rounding of inputs' dtype, a few times over.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAYERS, LAYER = 3, 1


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error; infinite where something was not computed."""
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    return error.item() if torch.isfinite(found).all() else float("inf")


@dataclass
class Case:
    """Sequences of `lengths` new tokens after `past` older ones."""

    lengths: tuple[int, ...]
    past: tuple[int, ...] = ()
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    causal: bool = True

    def build(self, device: torch.device, dtype: torch.dtype) -> Built:
        heads = self.heads + 2 * self.kv_heads
        qkv = torch.randn(sum(self.lengths), heads, self.head_dim, device=device).to(dtype)
        query, key, value = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)  # strided, as models make them
        batch, cache = self._batch(device), None
        if self.past:
            blocks = sum(map(len, batch.blocks)) + 2
            cache = self._cache(blocks, device, dtype)
            cache.tensor.normal_()
        return Built(self, batch, cache, query, key, value)

    def _cache(self, blocks: int, device: torch.device, dtype: torch.dtype) -> KVCache:
        facts: Any = SimpleNamespace(layers=LAYERS, kv_heads=self.kv_heads, head_dim=self.head_dim)
        return KVCache(facts, blocks, self.block_size, dtype, device)

    def _batch(self, device: torch.device) -> PackedBatch:
        offsets = [0]
        for length in self.lengths:
            offsets.append(offsets[-1] + length)
        counts = [-(-(n + p) // self.block_size) for n, p in zip(self.lengths, self.past, strict=False)]
        free = (torch.randperm(sum(counts) + 1) + 1).tolist()  # block 0, which pads tables, is nobody's
        tables = [tuple(free.pop() for _ in range(count)) for count in counts]
        slots = [
            table[at // self.block_size] * self.block_size + at % self.block_size
            for table, length, past in zip(tables, self.lengths, self.past, strict=False)
            for at in range(past, past + length)
        ]
        none = torch.zeros(offsets[-1], dtype=torch.int64)
        return PackedBatch(
            tokens=none,
            positions=none,
            offsets=tuple(offsets),
            past=self.past,
            blocks=tuple(tables),
            slots=torch.tensor(slots, device=device) if self.past else None,
        )


@dataclass
class Built:
    case: Case
    batch: PackedBatch
    cache: KVCache | None
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    @property
    def packed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float, int | None]:
        return self.query, self.key, self.value, self.case.head_dim**-0.5, self.case.window

    def expected(self) -> torch.Tensor:
        """In float32, from the same rounded inputs, with a copy of the cache. [T, heads, head_dim]."""
        cache = None
        if self.cache is not None:
            cache = self.case._cache(self.cache.blocks, self.query.device, torch.float32)
            cache.tensor.copy_(self.cache.tensor)
        plan = SdpaAttention(self.query.device).plan(self.batch, cache, causal=self.case.causal)
        query, key, value, scale, window = self.packed
        return plan.attend(LAYER, query.float(), key.float(), value.float(), scale, window)

    def forget_what_no_sequence_owns(self) -> None:
        """NaN in every slot that holds no key of these sequences, and in the other layers."""
        assert self.cache is not None
        size = self.cache.block_size
        owned = torch.zeros(self.cache.blocks * size, dtype=torch.bool)
        for table, length, past in zip(self.batch.blocks, self.case.lengths, self.case.past, strict=True):
            for at in range(past + length):
                owned[table[at // size] * size + at % size] = True
        by_slot = self.cache.tensor.flatten(2, 3)
        by_slot[:, :, ~owned.to(by_slot.device)] = torch.nan
        self.cache.tensor[[n for n in range(LAYERS) if n != LAYER]] = torch.nan
