"""A launch that begins while the one before it still runs (programmatic dependent launch), from Hopper on.

Its programs come as soon as there is room for them, ask for what no other launch writes, such as weights, and then wait
until the launch before has ended with everything that it wrote. So neither the start of a launch nor the end of the one
before leaves the memory idle. Older cards run one launch after the other. Every program of such a launch must wait: the
next one relies on it.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_HOPPER = (9, 0)


@cache
def early(device: torch.device) -> dict[str, bool]:
    """What a launch on `device` is given for this, as keyword arguments; its kernel takes EARLY."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER:
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


@triton.jit
def let_next_begin(EARLY: tl.constexpr):
    """The next launch may begin as soon as every program of this one has called this."""
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def wait_for_last(EARLY: tl.constexpr):
    """To be called before anything is read that a launch writes, and before anything is written."""
    if EARLY:
        gdc_wait()


@triton.jit
def ask_for(place, bytes, PIECES: tl.constexpr):
    """Of what lies at each of PIECES addresses `bytes` come into L2; both are multiples of 16. From Hopper on.

    A thread asks for one piece after the other, so that a large piece comes sooner than many small ones.
    """
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [place.to(tl.int64), tl.zeros([PIECES], tl.int32) + bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
