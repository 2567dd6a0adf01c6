"""silu(gate) * up of a merged projection (arXiv 2002.05202)."""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

WIDTH = 1024  # columns of one program


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2 * width], contiguous, gate before up, to [T, width]; computed in float32."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, width)
    _swiglu[(triton.cdiv(width, WIDTH), tokens)](gate_up, out, width, WIDTH=WIDTH, num_warps=4)
    return out


@triton.jit
def _swiglu(gate_up, out, width, WIDTH: tl.constexpr):
    token = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = at < width
    gate = tl.load(gate_up + token * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)
