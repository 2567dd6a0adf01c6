"""The limits by arithmetic: bytes that must move over bandwidth, operations that must be done over rate.

Both rates are what a plain copy and a plain matrix product reached on the same card in the same run, so that 100 % is
what this card does, not what its data sheet says.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Of one card: bytes moved a second (read and written), and operations a second of a 16-bit matrix product."""

    move: float
    product: float


@dataclass(frozen=True)
class Shape:
    """What decides a model's limits. A chat model's head is used once for each sequence of a step, never in prefill."""

    layer_parameters: int
    head_parameters: int = 0
    key_bytes: int = 0  # of one token's keys and values in all layers, in two bytes each
    score_width: int = 0  # layers x heads x head_dim: 4 operations for each of these, query and key


def _decoder(layers: int, hidden: int, heads: int, kv_heads: int, dim: int, inner: int, vocabulary: int) -> Shape:
    attention = hidden * dim * (heads + 2 * kv_heads) + heads * dim * hidden
    return Shape(
        layers * (attention + 3 * hidden * inner),
        hidden * vocabulary,
        layers * 2 * kv_heads * dim * 2,
        layers * heads * dim,
    )


QWEN3_4B = _decoder(36, 2560, 32, 8, 128, 9728, 151_936)
XLM_R_LARGE = Shape(24 * (4 * 1024 * 1024 + 2 * 1024 * 4096), score_width=24 * 1024)


def decode_step_s(rates: Rates, shape: Shape, sequences: int, context: float, weight_bytes: float = 2) -> float:
    """One token for each sequence: the slower of reading weights, keys and values once, and of doing the products."""
    read = shape.layer_parameters * weight_bytes + shape.head_parameters * 2 + sequences * context * shape.key_bytes
    done = 2 * sequences * (shape.layer_parameters + shape.head_parameters + 2 * context * shape.score_width)
    return max(read / rates.move, done / rates.product)


def prefill_s(rates: Rates, shape: Shape, tokens: int, *, causal: bool = True) -> float:
    """One text of `tokens`: 2 operations a parameter and token, 4 a score and dimension."""
    pairs = tokens * (tokens + 1) / 2 if causal else tokens * tokens
    return (2 * tokens * shape.layer_parameters + 4 * pairs * shape.score_width) / rates.product


def chats_s(rates: Rates, shape: Shape, chats: int, prompt: int, made: int, weight_bytes: float = 2) -> float:
    """`chats` at once, prefill and `made` tokens each: the first token comes out of the prefill."""
    steps = (made - 1) * decode_step_s(rates, shape, chats, prompt + made / 2, weight_bytes)
    return chats * prefill_s(rates, shape, prompt) + steps


def encoded_tok_s(rates: Rates, shape: Shape, lengths: list[int]) -> float:
    """Tokens a second of texts that see themselves whole, without one token of padding."""
    return sum(lengths) / sum(prefill_s(rates, shape, length, causal=False) for length in lengths)
