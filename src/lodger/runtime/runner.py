"""`Runner`: one model on the device. A step goes in; logits, vectors or scores come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lodger.catalogue.facts import ModelFacts
from lodger.runtime.attention.base import AttentionBackend
from lodger.runtime.backbone import Backbone
from lodger.runtime.context import attending
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch, pack_items, pack_rows
from lodger.runtime.precision import Precision
from lodger.sched.step import EncodeStep, GenerateStep

Head = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]  # hidden [T, H], offsets -> [N, ...] float32


@dataclass(frozen=True)
class Runner:
    """Everything that a forward needs, and nothing that changes. Models of one folder may share it."""

    facts: ModelFacts
    device: torch.device
    precision: Precision
    attention: AttentionBackend
    backbone: Backbone
    weight_bytes: int
    lm_head: torch.nn.Module | None = None  # of a generating model
    head: Head | None = None  # of an encoder

    @torch.inference_mode()
    def hidden(self, batch: PackedBatch, cache: KVCache | None = None) -> torch.Tensor:
        """Final hidden states [T, hidden_size] of a packed batch."""
        plan = self.attention.plan(batch, cache, causal=self.facts.causal)
        with attending(plan):
            return self.backbone(batch)

    @torch.inference_mode()
    def logits(self, step: GenerateStep, cache: KVCache) -> torch.Tensor:
        """Compute the step's tokens, their keys and values into `cache`.

        Returns:
            [rows with `sample`, vocab_size] float32: logits of the next token, in the order of the rows.
        """
        assert self.lm_head is not None
        batch = pack_rows(step.rows, cache.block_size, self.device)
        hidden = self.hidden(batch, cache)
        last = [end - 1 for row, end in zip(step.rows, batch.offsets[1:], strict=True) if row.sample]
        if len(last) < len(hidden):
            hidden = hidden.index_select(0, torch.tensor(last, device=self.device, dtype=torch.int64))
        logits: torch.Tensor = self.lm_head(hidden)
        return logits.float()

    @torch.inference_mode()
    def encode(self, step: EncodeStep) -> torch.Tensor:
        """[items, dimensions] vectors or [items, 1] logits, float32 in RAM, in the order of the items."""
        assert self.head is not None
        batch = pack_items(step.items, self.facts.position_offset, self.device)
        return self.head(self.hidden(batch), batch.offsets).cpu()
