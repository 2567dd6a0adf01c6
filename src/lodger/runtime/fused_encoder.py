"""The fast path of encoders on a GPU: `DenseEncoder` with our kernels between its products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lodger.runtime.attention.base import AttentionPlan
from lodger.runtime.encoder import DenseEncoder, Layers, Norm, gelu
from lodger.runtime.encoder_graphs import EncoderGraphs, bucket_within, buckets
from lodger.runtime.kernels.arrivals import processors
from lodger.runtime.kernels.embeddings import embed
from lodger.runtime.kernels.encoder_attention import attend_texts
from lodger.runtime.kernels.layer_norm import layer_norm
from lodger.runtime.kernels.tiling import text_tiles
from lodger.runtime.layers import Placement, PlainLinear
from lodger.runtime.packed import PackedBatch
from lodger.runtime.partition import STEPS, Partition
from lodger.runtime.upload import upload

_MOST_HEAD_DIM = 128


class FusedEncoder(DenseEncoder):
    """Computes what `DenseEncoder` computes; in a half precision with an attention of its own."""

    def __init__(self, model: Any, placement: Placement) -> None:
        super().__init__(model, placement)
        self._device, self._captures = placement.device, placement.device.type == "cuda" and self.own_attention
        self._graphs: EncoderGraphs | None = None
        self._beside: EncoderGraphs | None = None

    def step_size(self, tokens: int) -> int:
        return 0 if self._graphs is None else min(bucket_within(tokens, self._graphs.buckets), tokens)

    def at_once(self, batch: PackedBatch, *, beside: bool = False) -> torch.Tensor | None:
        graphs = self._beside if beside else self._graphs
        if graphs is None or not graphs.serves(batch.lengths):
            return None
        return graphs.run(batch)

    def serves_beside(self, lengths: Sequence[int]) -> bool:
        return self._beside is not None and self._beside.serves(lengths)

    def warm_up(self, most: int, partition: Partition | None = None) -> None:
        if not self._captures:
            return
        if self._graphs is None:
            self._graphs = self._new_graphs(buckets(processors(self._device)))
        self._graphs.warm_up(most)
        if partition is not None and self._beside is None:
            self._beside = self._new_graphs(STEPS, partition)
        if self._beside is not None:
            self._beside.warm_up(most)

    def _new_graphs(self, sizes: tuple[int, ...], partition: Partition | None = None) -> EncoderGraphs:
        width, dtype = len(self.norm.weight), self.words.compute
        return EncoderGraphs(self.forward, width, dtype, self._device, sizes, partition)

    def forget(self) -> None:
        for graphs in (self._graphs, self._beside):
            if graphs is not None:
                graphs.forget()

    def by_layer(self, batch: PackedBatch, plan: AttentionPlan) -> Layers:
        if not self.own_attention:
            return super().by_layer(batch, plan)
        assert batch.stacked is not None
        tiles = upload(text_tiles(batch.lengths), torch.int32, batch.tokens.device)
        return self.forward(batch.stacked, tiles)

    @property
    def own_attention(self) -> bool:
        """Whether our kernel attends; else the plan of the forward does."""
        return self.words.compute in (torch.float16, torch.bfloat16) and self.head_dim <= _MOST_HEAD_DIM

    def forward(self, inputs: torch.Tensor, tiles: torch.Tensor) -> Layers:
        """
        Args:
            inputs: [3, T]: tokens, positions, types.
            tiles: see `attend_texts`.
        """
        norm = (self.norm.weight, self.norm.bias, self.norm.epsilon)
        hidden = embed(inputs, (self.words.weight, self.positions.weight, self.types.weight), norm)
        for layer in self.layers:
            found = attend_texts(layer.qkv(hidden), self.head_dim, tiles, self.scale)
            hidden = self.add(layer.out, found, hidden, layer.after_attention)
            del found
            hidden = self.add(layer.down, _gelu(layer.up, hidden), hidden, layer.after_mlp)
            yield
        return hidden

    def add(self, linear: torch.nn.Module, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        return layer_norm(linear(x), residual, norm.weight, norm.bias, norm.epsilon)


def _gelu(linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """GELU(linear(x)), taken by the product itself where the library can: its approximation by tanh (arXiv 1606.08415).

    It is off by 4.7e-4 at most, half of float16's step at 1. With it vectors of XLM-RoBERTa-large's shape turn by
    1 - cos = 1.1e-6 (random weights, H100), and a tenth of the time is saved.
    """
    if isinstance(linear, PlainLinear) and linear.bias is not None:
        return torch._addmm_activation(linear.bias, x, linear.weight.t(), use_gelu=True)
    return gelu(linear, x)
