"""`Runner`: one model on the device. Tokens go in; hidden states, vectors or scores come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from lodger.catalogue.facts import ModelFacts
from lodger.runtime.arena import Arena
from lodger.runtime.attention.base import AttentionBackend
from lodger.runtime.backbone import Backbone
from lodger.runtime.context import attending
from lodger.runtime.heads import Head
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch, pack_items
from lodger.runtime.precision import Precision
from lodger.runtime.upload import upload
from lodger.sched.step import Item

Heads = tuple[Head, ...]  # all that one text wants made of its hidden states
Rows = list[torch.Tensor]  # what its heads made, in their order: [rows, width] float32 in RAM each


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
    heads: Mapping[str, Head] = field(default_factory=dict)  # of an encoder: "dense", "sparse", "colbert", "score"
    arena: Arena | None = None  # where its weights are, on a GPU

    @torch.inference_mode()
    def hidden(self, batch: PackedBatch, cache: KVCache | None = None) -> torch.Tensor:
        """Final hidden states [T, hidden_size] of a packed batch."""
        plan = self.attention.plan(batch, cache, causal=self.facts.causal)
        with attending(plan):
            return self.backbone(batch)

    @torch.inference_mode()
    def ends(self, batch: PackedBatch, wanted: Sequence[int], cache: KVCache) -> torch.Tensor:
        """Compute the batch's tokens, their keys and values into `cache`.

        Args:
            wanted: some of the batch's sequences.

        Returns:
            [wanted, hidden_size]: the hidden states of their last tokens, which `lm_head` makes logits of.
        """
        hidden = self.hidden(batch, cache)
        if len(wanted) == len(hidden):
            return hidden
        last = [batch.offsets[n + 1] - 1 for n in wanted]
        return hidden.index_select(0, upload(last, torch.int64, self.device))

    @torch.inference_mode()
    def encode(self, items: Sequence[Item], heads: Sequence[Heads]) -> list[Rows]:
        """One forward, whatever is made of it, and one copy back.

        Args:
            items: texts, none of them empty.
            heads: of each item its own.

        Returns:
            For each item what its heads made.
        """
        wanted = [tuple(map(id, own)) for own in heads]
        order = sorted(range(len(items)), key=wanted.__getitem__)  # texts that want the same lie side by side
        batch = pack_items([items[n] for n in order], self.facts.position_offset, self.device)
        hidden = self.hidden(batch)
        made: list[tuple[list[int], Head, torch.Tensor]] = []
        first = 0
        for _, group in groupby(order, key=wanted.__getitem__):
            own = list(group)
            offsets = batch.offsets[first : first + len(own) + 1]
            part, inner = hidden[offsets[0] : offsets[-1]], tuple(offset - offsets[0] for offset in offsets)
            made.extend((own, head, head(part, inner)) for head in heads[own[0]])
            first += len(own)
        found: list[Rows] = [[] for _ in items]
        for (own, head, _), output in zip(made, _to_ram([output for *_, output in made]), strict=True):
            parts = output.split_with_sizes([head.rows(len(items[n].tokens)) for n in own])
            for n, rows in zip(own, parts, strict=True):
                found[n].append(rows)
        return found


def _to_ram(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """By one copy from the device."""
    if len(tensors) == 1 or tensors[0].device.type == "cpu":
        return [tensor.cpu() for tensor in tensors]
    whole = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = whole.split_with_sizes([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
