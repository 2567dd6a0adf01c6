"""What an encoder's first layer reads: three embeddings, their sum's layer norm (arXiv 1607.06450), in one launch."""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lodger.runtime.kernels.layer_norm import normed


def embed(
    inputs: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    norm: tuple[torch.Tensor, torch.Tensor, float],
) -> torch.Tensor:
    """norm(words[token] + positions[position] + types[type]), computed in float32.

    Args:
        inputs: [3, T] of one integer dtype: tokens, positions, types.
        tables: of words, positions and types, [rows, width] each, contiguous.
        norm: weight, bias, epsilon.

    Returns:
        [T, width] in the tables' dtype.
    """
    words, positions, types = tables
    weight, bias, epsilon = norm
    tokens, width = inputs.shape[1], words.shape[1]
    out = words.new_empty(tokens, width)
    padded = triton.next_power_of_2(width)
    _embed[(tokens,)](
        inputs,
        inputs.stride(0),
        words,
        positions,
        types,
        weight,
        bias,
        out,
        width,
        epsilon,
        PADDED=padded,
        num_warps=min(max(padded // 512, 1), 16),
    )
    return out


@triton.jit(do_not_specialize=["field"])  # else a step of an odd number of tokens would compile it again
def _embed(inputs, field, words, positions, types, weight, bias, out, width, epsilon, PADDED: tl.constexpr):
    token = tl.program_id(0)
    at = tl.arange(0, PADDED)
    inside = at < width
    word = tl.load(inputs + token).to(tl.int64) * width
    position = tl.load(inputs + field + token).to(tl.int64) * width
    kind = tl.load(inputs + 2 * field + token).to(tl.int64) * width
    value = tl.load(words + word + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(positions + position + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(types + kind + at, mask=inside, other=0.0).to(tl.float32)
    value = normed(value, weight, bias, at, inside, width, epsilon)
    tl.store(out + token.to(tl.int64) * width + at, value.to(out.dtype.element_ty), mask=inside)
