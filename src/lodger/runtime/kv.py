"""`KVCache`: keys and values of every layer in blocks, so that sequences of any length share one allocation."""

from __future__ import annotations

import torch

from lodger.budget import Budget
from lodger.catalogue.facts import ModelFacts
from lodger.errors import OutOfMemory
from lodger.runtime.arena import for_cache
from lodger.units import gib


class KVCache:
    """Paged keys and values, shape [layers, 2, blocks, block_size, kv_heads, head_dim].

    Which block belongs to whom is decided elsewhere (`lodger.sched`); here are only the tensors.
    """

    def __init__(
        self, facts: ModelFacts, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = torch.Size((facts.layers, 2, blocks, block_size, facts.kv_heads, facts.head_dim))
        self.arena = for_cache(device, shape.numel() * dtype.itemsize)
        # Zeros and not merely empty: masked keys still enter a product with 0, and 0 x NaN is NaN.
        self.tensor = self.arena.zeros(shape, dtype)
        self.block_size = block_size
        self.blocks = blocks
        by_slot = [layer.flatten(1, 2) for layer in self.tensor]
        self._keys = [layer[0] for layer in by_slot]  # each [slots, kv_heads, head_dim]
        self._values = [layer[1] for layer in by_slot]

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self.tensor.numel() * self.tensor.element_size() if self.arena.nbytes else 0

    def sleep(self) -> None:
        """Give the memory back. What was stored is lost."""
        self.arena.sleep(keep=False)

    def wake(self) -> None:
        """Zeros again.

        Raises:
            MemoryError, torch.OutOfMemoryError: it sleeps on.
        """
        self.arena.wake()

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store [T, kv_heads, head_dim] of each at `slots` [T]."""
        self._keys[layer].index_copy_(0, slots, keys)
        self._values[layer].index_copy_(0, slots, values)

    def gather(self, layer: int, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `table` [N, B], each [N, B * block_size, kv_heads, head_dim]."""
        found = self.tensor[layer].index_select(1, table.flatten()).view(2, len(table), -1, *self.tensor.shape[-2:])
        return found[0], found[1]

    def span(self, layer: int, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of neighbouring slots in place, each [end - start, kv_heads, head_dim]."""
        return self._keys[layer][start:end], self._values[layer][start:end]


def block_bytes(facts: ModelFacts, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block in all layers: 2 (keys, values) x layers x kv_heads x head_dim x block_size x itemsize."""
    return 2 * facts.layers * facts.kv_heads * facts.head_dim * block_size * dtype.itemsize


def allocate(facts: ModelFacts, budget: Budget, dtype: torch.dtype, device: torch.device) -> KVCache:
    """As many blocks as the budget's `kv_cache` bytes hold.

    Raises:
        OutOfMemory: not even one block fits.
    """
    size = block_bytes(facts, budget.block_size, dtype)
    blocks = budget.kv_cache // size
    if not blocks:
        raise OutOfMemory(
            f"the KV cache has {gib(budget.kv_cache)}, and one block of {budget.block_size} tokens needs {gib(size)}.",
            hint="Give this model more memory.",
        )
    return KVCache(facts, blocks, budget.block_size, dtype, device)
