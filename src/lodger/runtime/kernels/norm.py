"""Root mean square norm, with the addition of the residual stream before it (arXiv 1910.07467)."""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """norm(x + residual) * weight, computed in float32.

    Args:
        x: [T, width], contiguous.
        residual: [T, width], contiguous; becomes x + residual, as the next layer's residual stream.

    Returns:
        [T, width] in x's dtype.
    """
    out = torch.empty_like(x)
    tokens, width = x.shape
    padded = triton.next_power_of_2(width)
    _norm[(tokens,)](
        x,
        x if residual is None else residual,
        weight,
        out,
        width,
        epsilon,
        PADDED=padded,
        ADDED=residual is not None,
        num_warps=min(max(padded // 512, 1), 16),
    )
    return out


@triton.jit
def _norm(x, residual, weight, out, width, epsilon, PADDED: tl.constexpr, ADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, PADDED)
    inside = at < width
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(residual + row + at, mask=inside, other=0.0).to(tl.float32)
        kept = value.to(residual.dtype.element_ty)
        tl.store(residual + row + at, kept, mask=inside)
        value = kept.to(tl.float32)  # what the next layer adds to is what this one sees
    value = value * tl.rsqrt(tl.sum(value * value, 0) / width + epsilon) * scale
    tl.store(out + row + at, value.to(out.dtype.element_ty), mask=inside)
