"""The fast path on a GPU: `DenseDecoder`'s layers with everything between two products in one kernel.

A layer is nine launches: norm, queries with keys and values, rotation and store, attention, output, norm, gate and up,
activation, down. Each norm adds to the residual stream first. Where up to 32 chats decode it is seven: rotation and
store are parts of attention, and the activation of its product. Of a single one it is five: norms and additions are
parts of the products too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lodger.runtime.attention.base import AttentionPlan
from lodger.runtime.attention.paged import DecodePlan, PagedPlan
from lodger.runtime.context import current_plan
from lodger.runtime.decoder import DenseDecoder, Layer, Linear, Norm
from lodger.runtime.kernels import few_tokens, one_token
from lodger.runtime.kernels.few_tokens_tiling import MOST_FEW
from lodger.runtime.kernels.norm import rms_norm
from lodger.runtime.kernels.one_token import Matrix
from lodger.runtime.kernels.paged_attention import Turn
from lodger.runtime.kernels.rotary import angles, rotate_and_store
from lodger.runtime.kernels.swiglu import swiglu
from lodger.runtime.layers import Placement, PlainLinear
from lodger.runtime.packed import PackedBatch
from lodger.runtime.quantised import QuantisedLinear

Attend = Callable[[Layer, torch.Tensor], torch.Tensor]


class Matrices(NamedTuple):
    """Of one layer."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix


class FusedDecoder(DenseDecoder):
    """Computes what `DenseDecoder` computes."""

    def __init__(self, model: Any, placement: Placement) -> None:
        super().__init__(model, placement)
        self._matrices = _all_matrices(self.layers)

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states [T, hidden_size]; of large steps over a cache only those that the batch wants."""
        residual = self.embed(batch.tokens)
        cos, sin = angles(batch.positions, self.rotary.inv_freq, self.rotary.attention_scaling)
        plan = current_plan()
        attend = _attention(self, plan, cos, sin)
        ends = plan.ends if isinstance(plan, PagedPlan) else None
        if len(residual) <= MOST_FEW and self._matrices and ends is None:
            if len(residual) == 1:
                return self._one_token(residual, attend)
            # The library rounds between gates and activation: in bfloat16 short prompts are computed as long ones are.
            if isinstance(plan, DecodePlan) or self._matrices[0].qkv.scale is not None:
                return self._few_tokens(residual, attend)
        x = rms_norm(residual, self.layers[0].before_attention.weight, self.layers[0].before_attention.epsilon)
        for layer, following in zip(self.layers, [*self.layers[1:], None], strict=True):
            attended = attend(layer, layer.qkv(x)).flatten(1)
            if following is None and ends is not None:
                if not len(ends.tokens):
                    return attended.new_empty(0, residual.shape[1])
                residual = residual.index_select(0, ends.tokens)
            hidden = layer.out(attended)
            del attended  # whose memory the feed-forward takes
            hidden = _feed_forward(layer, _add(residual, hidden, layer.before_mlp))
            x = _add(residual, hidden, self.norm if following is None else following.before_attention)
        return x

    def shortened(self) -> FusedDecoder:
        short = super().shortened()
        assert isinstance(short, FusedDecoder)
        short._matrices = _all_matrices(short.layers)
        return short

    def _one_token(self, residual: torch.Tensor, attend: Attend) -> torch.Tensor:
        for layer, own in zip(self.layers, self._matrices, strict=True):
            attended = attend(layer, one_token.product(residual, own.qkv, _numbers(layer.before_attention)))
            one_token.product(attended.view(1, -1), own.out, residual=residual)
            active = one_token.product(residual, own.gate_up, _numbers(layer.before_mlp), gated=True)
            one_token.product(active, own.down, residual=residual)
        return rms_norm(residual, *_numbers(self.norm))

    def _few_tokens(self, residual: torch.Tensor, attend: Attend) -> torch.Tensor:
        norms = [*(layer.before_attention for layer in self.layers[1:]), self.norm]
        x = rms_norm(residual, *_numbers(self.layers[0].before_attention))
        for layer, own, following in zip(self.layers, self._matrices, norms, strict=True):
            attended = attend(layer, few_tokens.product(x, own.qkv)).flatten(1)
            x = _add(residual, few_tokens.product(attended, own.out), layer.before_mlp)
            active = few_tokens.product(x, own.gate_up, gated=True)
            x = _add(residual, few_tokens.product(active, own.down), following)
        return x


def product(x: torch.Tensor, linear: torch.nn.Module, out: torch.Tensor) -> None:
    """linear(x), written to `out` [T, rows]."""
    matrix = _matrix(linear.forward)
    if matrix is None:
        out.copy_(linear(x))
    elif len(x) == 1:
        one_token.product(x, matrix, out=out)
    elif len(x) <= MOST_FEW:
        few_tokens.product(x, matrix, out=out)
    elif matrix.scale is None and matrix.bias is None:
        torch.mm(x, matrix.values.t(), out=out)
    else:
        out.copy_(linear(x))


def _numbers(norm: Norm) -> tuple[torch.Tensor, float]:
    return norm.weight, norm.epsilon


def _all_matrices(layers: Sequence[Layer]) -> list[Matrices]:
    """Of each layer; none where our kernels for few tokens cannot read all of them."""
    found = [_matrices(layer) for layer in layers]
    own = [matrices for matrices in found if matrices is not None]
    return own if len(own) == len(found) else []


def _matrices(layer: Layer) -> Matrices | None:
    found = [_matrix(linear) for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    present = [matrix for matrix in found if matrix is not None]
    return Matrices(*present) if len(present) == len(found) else None


def _matrix(linear: Linear) -> Matrix | None:
    """What a layer's product multiplies with, where our kernels for few tokens can read it."""
    module = getattr(linear, "__self__", None)
    if isinstance(module, QuantisedLinear):
        return Matrix(module.weight, module.scale, module.bias)
    if isinstance(module, PlainLinear) and module.weight.dtype.itemsize == 2:
        return Matrix(module.weight, None, module.bias)
    return None


def _add(residual: torch.Tensor, hidden: torch.Tensor, norm: Norm) -> torch.Tensor:
    """residual += hidden, and its norm."""
    return rms_norm(hidden, norm.weight, norm.epsilon, residual)


def _feed_forward(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """A function of its own, so that its gates are given back before the next layer's attention."""
    return layer.down(swiglu(layer.gate_up(x)))


def _attention(decoder: DenseDecoder, plan: AttentionPlan, cos: torch.Tensor, sin: torch.Tensor) -> Attend:
    """From a layer's queries, keys and values [T, (heads + 2 * kv_heads) * head_dim] to [T, heads, head_dim].

    Keys and values go where the plan reads them: straight into the cache, or side by side where there is none.
    """

    def norms(layer: Layer) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, float]:
        if layer.query_norm and layer.key_norm:
            return (layer.query_norm.weight, layer.key_norm.weight), layer.query_norm.epsilon
        return None, 0.0

    def rotate(layer: Layer, qkv: torch.Tensor, cache: torch.Tensor, at: int, slots: torch.Tensor) -> torch.Tensor:
        return rotate_and_store(qkv, decoder.heads, cos, sin, *norms(layer), cache, at, slots)

    if isinstance(plan, DecodePlan) and plan.turns:
        turning = plan

        def at_once(layer: Layer, qkv: torch.Tensor) -> torch.Tensor:
            heads = qkv.view(len(qkv), -1, decoder.head_dim)
            turn = Turn(cos, sin, *norms(layer), turning.slots)
            return turning.attend_new(layer.number, heads, decoder.scale, layer.window, turn)

        return at_once

    if isinstance(plan, DecodePlan | PagedPlan):
        stored = plan

        def through_cache(layer: Layer, qkv: torch.Tensor) -> torch.Tensor:
            query = rotate(layer, qkv, stored.cache, layer.number, stored.slots)
            if layer is decoder.layers[-1] and isinstance(stored, PagedPlan) and stored.ends is not None:
                query = query.index_select(0, stored.ends.tokens)
                return stored.ends.plan.attend_stored(layer.number, query, decoder.scale, layer.window)
            return stored.attend_stored(layer.number, query, decoder.scale, layer.window)

        return through_cache

    tokens = len(cos)
    slots = torch.arange(tokens, device=cos.device)

    def packed(layer: Layer, qkv: torch.Tensor) -> torch.Tensor:
        keys_values = qkv.new_empty(1, 2, tokens, 1, decoder.kv_heads, decoder.head_dim)  # a cache in blocks of one
        query = rotate(layer, qkv, keys_values, 0, slots)
        key, value = keys_values[0, :, :, 0]
        return plan.attend(layer.number, query, key, value, decoder.scale, layer.window)

    return packed
