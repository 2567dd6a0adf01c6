"""`Budget`: the treaty between the planner, which grants bytes, and the runtime, which keeps to them."""

from __future__ import annotations

import msgspec


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes granted to one model on one device, and the limits that keep it inside them."""

    weights: int
    kv_cache: int = 0
    activations: int = 0  # peak of one step of `step_tokens` tokens
    step_tokens: int = 2048  # most tokens in one forward
    context_length: int = 0  # tokens of one sequence that are served
    block_size: int = 16  # tokens in one block of the KV cache

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations
