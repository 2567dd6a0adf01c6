"""Layer norm of a sum, as encoders take it after each half of a layer (arXiv 1607.06450)."""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl


def layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """norm(x + residual) * weight + bias, computed in float32.

    Args:
        x: [T, width], contiguous; becomes the result.
        residual: [T, width], contiguous.

    Returns:
        x.
    """
    tokens, width = x.shape
    padded = triton.next_power_of_2(width)
    _norm[(tokens,)](x, residual, weight, bias, width, epsilon, PADDED=padded, num_warps=min(max(padded // 512, 1), 16))
    return x


@triton.jit
def _norm(x, residual, weight, bias, width, epsilon, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, PADDED)
    inside = at < width
    value = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(residual + row + at, mask=inside, other=0.0).to(tl.float32)
    value = normed(value, weight, bias, at, inside, width, epsilon)
    tl.store(x + row + at, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def normed(value, weight, bias, at, inside, width, epsilon):
    """Of one row in float32; 0 where it is not `inside`."""
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    # Rounded division, unlike `/`: what is left of equal numbers would be multiplied by 1 / sqrt(epsilon).
    value = tl.where(inside, value - tl.div_rn(tl.sum(value, 0), width.to(tl.float32)), 0.0)
    return value * tl.rsqrt(tl.sum(value * value, 0) / width + epsilon) * scale + shift
