"""The fast path of encoders: one lean forward for every encoder that is built like BERT (BERT, RoBERTa, XLM-RoBERTa).

It reads transformers' module tree and keeps none of it. A layer is one product for q, k and v, attention, and three
more products, each with what follows it: the residual is added, or GELU taken, by the product itself where the library
that multiplies can do so. At load its hidden states are compared with the generic forward's (`selftest`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch.nn.functional import layer_norm

from lodger.runtime.attention.base import AttentionPlan
from lodger.runtime.context import current_plan
from lodger.runtime.layers import OneDnnLinear, Placement
from lodger.runtime.packed import PackedBatch
from lodger.runtime.partition import Partition


class Norm(NamedTuple):
    """Layer norm: (x - mean) / sqrt(variance + epsilon) * weight + bias (arXiv 1607.06450)."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Layer(NamedTuple):
    """One encoder layer; its norms come after the residual is added (post-norm)."""

    number: int
    qkv: torch.nn.Module  # [hidden] -> q heads, k heads, v heads
    out: torch.nn.Module
    after_attention: Norm
    up: torch.nn.Module
    down: torch.nn.Module
    after_mlp: Norm


Layers = Generator[None, None, torch.Tensor]  # a forward that stops after each layer; hidden states [T, hidden_size]


def finish(layers: Layers) -> torch.Tensor:
    """Run what is left of a forward."""
    try:
        while True:
            next(layers)
    except StopIteration as end:
        hidden: torch.Tensor = end.value
        return hidden


def is_bert_like(model: Any) -> bool:
    """Whether the fast path computes what this base model computes."""
    if not {"embeddings", "encoder"} <= _parts(model) or "layer" not in _parts(model.encoder):
        return False
    layer = model.encoder.layer[0]
    return (
        _parts(model.embeddings) == {"word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"}
        and _parts(layer) == {"attention", "intermediate", "output"}
        and _parts(layer.attention) == {"self", "output"}
        and _parts(layer.attention.self) == {"query", "key", "value"}
        and _parts(layer.attention.output) == _parts(layer.output) == {"dense", "LayerNorm"}
        and model.config.hidden_act == "gelu"
        and not model.config.is_decoder
    )


def _parts(module: torch.nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()} - {"dropout"}


class DenseEncoder:
    """A backbone made of plain tensors, from a base model with its stored tensors assigned."""

    def __init__(self, model: Any, placement: Placement) -> None:
        embeddings, layers = model.embeddings, model.encoder.layer
        self.head_dim: int = layers[0].attention.self.attention_head_size
        self.scale: float = layers[0].attention.self.scaling
        self.words = placement.lookup(embeddings.word_embeddings.weight)
        self.positions = placement.lookup(embeddings.position_embeddings.weight)
        self.types = placement.lookup(embeddings.token_type_embeddings.weight)
        self.norm = _norm(embeddings.LayerNorm, placement)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing a weight takes one core
            self.layers = list(pool.map(lambda at: _layer(at, layers[at], placement), range(len(layers))))

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """[T, hidden_size]."""
        return finish(self.by_layer(batch, current_plan()))

    def step_size(self, tokens: int) -> int:
        """At most `tokens`: of texts that `at_once` computes best; 0 where it is no faster than layer by layer."""
        return 0

    def at_once(self, batch: PackedBatch, *, beside: bool = False) -> torch.Tensor | None:
        """Hidden states that cost the host next to no time, until the next forward; None if that cannot be had.

        Args:
            beside: on the part of the device that `warm_up` was given, in memory of its own.
        """
        return None

    def serves_beside(self, lengths: Sequence[int]) -> bool:
        """Whether `at_once` computes texts of so many tokens beside other work."""
        return False

    def warm_up(self, most: int, partition: Partition | None = None) -> None:
        """Get ready for `at_once` of up to `most` tokens, and on this part of the device."""

    def forget(self) -> None:
        """Give back what `at_once` keeps: the weights move, or are to sleep."""

    def by_layer(self, batch: PackedBatch, plan: AttentionPlan) -> Layers:
        """The forward, with a pause after each layer in which whoever runs it may launch other work."""
        assert batch.token_types is not None
        hidden = self.words(batch.tokens).add_(self.types(batch.token_types)).add_(self.positions(batch.positions))
        hidden = self.norm(hidden)
        for layer in self.layers:
            query, key, value = layer.qkv(hidden).view(len(hidden), 3, -1, self.head_dim).unbind(1)
            found = plan.attend(layer.number, query, key, value, self.scale, None).flatten(1)
            del query, key, value
            hidden = self.add(layer.out, found, hidden, layer.after_attention)
            del found
            hidden = self.add(layer.down, gelu(layer.up, hidden), hidden, layer.after_mlp)
            yield
        return hidden

    def add(self, linear: torch.nn.Module, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """norm(linear(x) + residual)."""
        if isinstance(linear, OneDnnLinear):
            return norm(linear.added(x, residual))
        return norm(linear(x).add_(residual))


def gelu(linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """GELU(linear(x)) with the error function, not its approximation by tanh (arXiv 1606.08415)."""
    if isinstance(linear, OneDnnLinear):
        return linear.gelu(x)
    found: torch.Tensor = torch.ops.aten.gelu_(linear(x))
    return found


def _layer(number: int, layer: Any, placement: Placement) -> Layer:
    attention, output = layer.attention.self, layer.attention.output
    q, k, v = attention.query, attention.key, attention.value
    return Layer(
        number=number,
        qkv=placement.linear([q.weight, k.weight, v.weight], [q.bias, k.bias, v.bias]),
        out=placement.linear([output.dense.weight], [output.dense.bias]),
        after_attention=_norm(output.LayerNorm, placement),
        up=placement.linear([layer.intermediate.dense.weight], [layer.intermediate.dense.bias]),
        down=placement.linear([layer.output.dense.weight], [layer.output.dense.bias]),
        after_mlp=_norm(layer.output.LayerNorm, placement),
    )


def _norm(module: Any, placement: Placement) -> Norm:
    return Norm(placement.tensor(module.weight), placement.tensor(module.bias), module.eps)
