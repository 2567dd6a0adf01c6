"""The fast path: one lean forward for every decoder that is built like Llama (Llama, Qwen2, Qwen3).

It reads transformers' module tree and keeps none of it. What makes it faster than the generic forward: one product for
q, k and v and one for gate and up, one kernel for each norm, and no bookkeeping between the kernels, which is what a
step of a few tokens mostly consists of. At load its hidden states are compared with the generic forward's (`selftest`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any, NamedTuple

import torch
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm, silu

from lodger.runtime.attention.base import AttentionPlan
from lodger.runtime.context import current_plan
from lodger.runtime.layers import Placement
from lodger.runtime.packed import PackedBatch

_STATIC_ROPES = {"default", "linear", "llama3", "yarn"}  # an angle depends on its position and on nothing else


Linear = Callable[[torch.Tensor], torch.Tensor]


class Norm:
    """Root mean square norm: x / sqrt(mean(x^2) + epsilon) * weight (arXiv 1910.07467)."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self.weight, self.epsilon = weight, epsilon
        self._epsilon = weight.new_full((1,), epsilon)
        self._pieced = weight.device.type == "cpu" and weight.dtype == torch.float32

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._pieced:
            return rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        # torch's own is seven operations on a CPU; these are five, and half of its time for one row.
        norm = vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(self._epsilon, norm, norm, value=1 / x.shape[-1]).rsqrt_()).mul_(self.weight)


class Layer(NamedTuple):
    """One decoder layer."""

    number: int
    before_attention: Norm
    qkv: Linear  # [hidden] -> q heads, k heads, v heads
    query_norm: Norm | None
    key_norm: Norm | None
    out: Linear
    before_mlp: Norm
    gate_up: Linear  # [hidden] -> gate, up
    down: Linear
    window: int | None


def is_dense(model: Any) -> bool:
    """Whether the fast path computes what this model computes."""
    config = model.config
    first = model.layers[0]
    parts = {name for name, _ in first.named_children()}
    ropes = config.rope_parameters or {}
    return (
        parts == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and {name for name, _ in first.mlp.named_children()} == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and config.hidden_act == "silu"
        and ropes.get("rope_type", "default") in _STATIC_ROPES
    )


class DenseDecoder:
    """A backbone made of plain tensors, from a base model with its stored tensors assigned."""

    def __init__(self, model: Any, placement: Placement) -> None:
        config = model.config
        attention = model.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.scale: float = attention.scaling
        self.embed = placement.lookup(model.embed_tokens.weight)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing a weight takes one core
            self.layers = list(pool.map(lambda at: _layer(at, model.layers[at], placement), range(len(model.layers))))
        self.norm = _norm(model.norm, placement)
        self.rotary = model.rotary_emb.to(placement.device)

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        hidden = self.embed(batch.tokens)
        cos, sin = (x[0][:, None] for x in self.rotary(hidden, batch.positions[None]))  # [T, 1, head_dim]
        sin[..., : self.head_dim // 2].neg_()
        plan = current_plan()
        for layer in self.layers:
            hidden = layer.out(self._attend(layer, layer.before_attention(hidden), cos, sin, plan)).add_(hidden)
            hidden = _feed_forward(layer, layer.before_mlp(hidden)).add_(hidden)
        return self.norm(hidden)

    def shortened(self) -> DenseDecoder:
        """With its last layer and one of each kind before it."""
        short = copy(self)
        short.layers = [*{layer.window: layer for layer in self.layers[:-1]}.values(), self.layers[-1]]
        return short

    def _attend(
        self, layer: Layer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        qkv = layer.qkv(x).view(len(x), -1, self.head_dim)  # [T, heads + 2 * kv_heads, head_dim]
        turned, value = qkv.split_with_sizes((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if layer.query_norm and layer.key_norm:
            query, key = turned.split_with_sizes((self.heads, self.kv_heads), dim=1)
            turned = torch.cat((layer.query_norm(query), layer.key_norm(key)), dim=1)
        # Rotary embedding (arXiv 2104.09864): x cos + rotate_half(x) sin; the minus of rotate_half is in the sin table.
        turned = torch.addcmul(turned * cos, turned.roll(self.head_dim // 2, -1), sin)
        query, key = turned.split_with_sizes((self.heads, self.kv_heads), dim=1)
        return plan.attend(layer.number, query, key, value, self.scale, layer.window).flatten(1)


def _feed_forward(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """A function of its own, so that its gates are given back before the next layer's attention."""
    gate, up = layer.gate_up(x).chunk(2, dim=-1)
    return layer.down(silu(gate).mul_(up))


def _layer(number: int, layer: Any, placement: Placement) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    gate, up = mlp.gate_proj, mlp.up_proj
    return Layer(
        number=number,
        before_attention=_norm(layer.input_layernorm, placement),
        qkv=placement.linear([q.weight, k.weight, v.weight], [q.bias, k.bias, v.bias]).forward,
        query_norm=_norm(attention.q_norm, placement) if hasattr(attention, "q_norm") else None,
        key_norm=_norm(attention.k_norm, placement) if hasattr(attention, "k_norm") else None,
        out=placement.linear([attention.o_proj.weight], [attention.o_proj.bias]).forward,
        before_mlp=_norm(layer.post_attention_layernorm, placement),
        gate_up=placement.linear([gate.weight, up.weight], [gate.bias, up.bias]).forward,
        down=placement.linear([mlp.down_proj.weight], [mlp.down_proj.bias]).forward,
        window=getattr(attention, "sliding_window", None),
    )


def _norm(module: Any, placement: Placement) -> Norm:
    return Norm(placement.tensor(module.weight), module.variance_epsilon)
