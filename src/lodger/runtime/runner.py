"""`Runner`: one model on the device. Tokens go in; hidden states, vectors or scores come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby

import torch

from lodger.catalogue.facts import ModelFacts
from lodger.runtime.arena import Arena
from lodger.runtime.attention.base import AttentionBackend, AttentionPlan
from lodger.runtime.backbone import Backbone
from lodger.runtime.context import attending
from lodger.runtime.decoder import DenseDecoder
from lodger.runtime.encoder import DenseEncoder, Layers
from lodger.runtime.heads import Head
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch, pack_items
from lodger.runtime.partition import Partition
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
        hidden = self.hidden(replace(batch, wanted=tuple(wanted)), cache)
        if len(wanted) == len(hidden):
            return hidden
        last = [batch.offsets[n + 1] - 1 for n in wanted]
        return hidden.index_select(0, upload(last, torch.int64, self.device))

    def encode(self, items: Sequence[Item], heads: Sequence[Heads]) -> list[Rows]:
        """One forward, whatever is made of it, and one copy back.

        Args:
            items: texts, none of them empty.
            heads: of each item its own.

        Returns:
            For each item what its heads made.
        """
        return self.start(items, heads).rows()

    def start(
        self, items: Sequence[Item], heads: Sequence[Heads], *, whole: bool = False, beside: bool = False
    ) -> TextForward:
        """`encode`, to be launched piece by piece, or as a `whole`; `beside` other work where `serves_beside`."""
        return TextForward(self, items, heads, whole=whole, beside=beside)

    def step_size(self, tokens: int) -> int:
        """See `DenseEncoder.step_size`."""
        return self.backbone.step_size(tokens) if isinstance(self.backbone, DenseEncoder) else 0

    def serves_beside(self, items: Sequence[Item]) -> bool:
        """See `DenseEncoder.serves_beside`."""
        lengths = [len(item.tokens) for item in items]
        return isinstance(self.backbone, DenseEncoder) and self.backbone.serves_beside(lengths)

    def shortened(self) -> Runner:
        """With few of its layers, if the backbone knows them: such a step launches what a whole one does."""
        if not isinstance(self.backbone, DenseDecoder):
            return self
        return replace(self, backbone=self.backbone.shortened())

    def warm_up(self, most: int, partition: Partition | None = None) -> None:
        """What steps of up to `most` tokens need is built and loaded, and what steps on this part of the device do."""
        if isinstance(self.backbone, DenseEncoder):
            self.backbone.warm_up(most, partition)

    def forget(self) -> None:
        """Before the weights sleep: give back what was made for faster steps."""
        if isinstance(self.backbone, DenseEncoder):
            self.backbone.forget()

    def by_layer(self, batch: PackedBatch, *, whole: bool = False, beside: bool = False) -> Layers:
        """The forward of whole texts, with a pause after each layer where the backbone knows its layers."""
        plan = self.attention.plan(batch, None, causal=self.facts.causal)
        if not isinstance(self.backbone, DenseEncoder):
            return self._without_pause(batch, plan)
        if whole or beside:
            return _at_once(self.backbone, batch, plan, beside=beside)
        return self.backbone.by_layer(batch, plan)

    def _without_pause(self, batch: PackedBatch, plan: AttentionPlan) -> Layers:
        yield from ()
        with attending(plan):
            return self.backbone(batch)


def _at_once(encoder: DenseEncoder, batch: PackedBatch, plan: AttentionPlan, *, beside: bool) -> Layers:
    """Nothing is launched before it is run, so that no other forward overwrites what this one found."""
    hidden = encoder.at_once(batch, beside=beside)
    if hidden is None:
        hidden = yield from encoder.by_layer(batch, plan)
    return hidden


class TextForward:
    """One forward of packed texts and what their heads make of it. On a GPU only `rows` waits for the device."""

    @torch.inference_mode()
    def __init__(
        self, runner: Runner, items: Sequence[Item], heads: Sequence[Heads], *, whole: bool, beside: bool
    ) -> None:
        wanted = [tuple(map(id, own)) for own in heads]
        order = sorted(range(len(items)), key=wanted.__getitem__)  # texts that want the same lie side by side
        self._groups = [list(group) for _, group in groupby(order, key=wanted.__getitem__)]
        self._items, self._heads = items, heads
        self._batch = pack_items([items[n] for n in order], runner.facts.position_offset, runner.device)
        self._forward = runner.by_layer(self._batch, whole=whole, beside=beside)
        self.layers = self.left = runner.facts.layers  # in all, and not launched yet
        self._made: list[tuple[list[int], Head]] = []  # texts, and the head whose output for them is in `_outputs`
        self._outputs: list[torch.Tensor] | None = None  # in RAM, once `_done`
        self._done: torch.cuda.Event | None = None

    @torch.inference_mode()
    def launch(self, layers: int | None = None) -> bool:
        """Launch so many more layers, or all that are left; whether all of it is launched now."""
        if self._outputs is None:
            some = layers is not None and layers < self.left
            try:
                for _ in range(layers or 0) if some else count():
                    next(self._forward)
                    self.left -= 1
            except StopIteration as end:
                self.left = 0
                self._finish(end.value)
        return self._outputs is not None

    @property
    def overlaps(self) -> bool:
        """It is computed while the host prepares what comes next."""
        return self._done is not None

    @property
    def ready(self) -> bool:
        """`rows` would not wait."""
        return self._outputs is not None and (self._done is None or bool(self._done.query()))  # type: ignore[no-untyped-call]

    def rows(self) -> list[Rows]:
        """For each item what its heads made."""
        self.launch()
        if self._done is not None:
            self._done.synchronize()
        assert self._outputs is not None
        found: list[Rows] = [[] for _ in self._items]
        for (own, head), output in zip(self._made, self._outputs, strict=True):
            parts = output.split_with_sizes([head.rows(len(self._items[n].tokens)) for n in own])
            for n, rows in zip(own, parts, strict=True):
                found[n].append(rows)
        return found

    def _finish(self, hidden: torch.Tensor) -> None:
        made, first = [], 0
        for own in self._groups:
            offsets = self._batch.offsets[first : first + len(own) + 1]
            part, inner = hidden[offsets[0] : offsets[-1]], tuple(offset - offsets[0] for offset in offsets)
            for head in self._heads[own[0]]:
                self._made.append((own, head))
                made.append(head(part, inner))
            first += len(own)
        self._outputs = _to_ram(made)
        if hidden.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()


def _to_ram(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """By one copy from the device, into page-locked RAM; it is not waited for."""
    if not tensors[0].is_cuda:
        return tensors
    whole = torch.cat([tensor.flatten() for tensor in tensors]).to("cpu", non_blocking=True)
    parts = whole.split_with_sizes([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
