"""Bytes of a weight as numbers of a half precision, or as float32."""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(pairs, half: tl.constexpr):
    """Two bytes in each of [ROWS, N] as [ROWS, 2 N] of half: bits are put behind an exponent, and what that added is
    taken away. Eight instructions for four weights; the compiler's own way has to take bytes apart first."""
    if half == tl.bfloat16:  # seven bits behind 128; the eighth makes 256 of 128, which is then taken away
        both = tl.inline_asm_elementwise(
            """{
            .reg .b32 p, low, high, minus;
            mov.b32 minus, 0xbf80bf80;
            prmt.b32 p, $1, 0x43, 0x4140;
            and.b32 low, p, 0xff7fff7f;
            and.b32 high, p, 0xff80ff80;
            fma.rn.bf16x2 $0, high, minus, low;
            }""",
            "=r,r",
            [pairs.to(tl.uint16, bitcast=True).to(tl.uint32)],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )
    elif half == tl.float16:  # the byte plus 128 behind 1024
        both = tl.inline_asm_elementwise(
            """{
            .reg .b32 p, middle;
            mov.b32 middle, 0x64806480;
            xor.b32 p, $1, 0x8080;
            prmt.b32 p, p, 0x64, 0x4140;
            sub.f16x2 $0, p, middle;
            }""",
            "=r,r",
            [pairs.to(tl.uint16, bitcast=True).to(tl.uint32)],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )
    if half == tl.float32:  # in the interpreter
        first, second = ((pairs << 8) >> 8).to(half), (pairs >> 8).to(half)
    else:
        first = both.to(tl.uint16).to(half, bitcast=True)
        second = (both >> 16).to(tl.uint16).to(half, bitcast=True)
    return tl.reshape(tl.join(first, second), [pairs.shape[0], 2 * pairs.shape[1]])


@triton.jit
def floats(words):
    """Four bytes in each of [ROWS, N] as [ROWS, 4 N] of float32. A byte comes to lie in the last bits of 2^23, which is
    then taken away: an A100 or H100 converts integers at an eighth of the speed at which it adds."""
    a, b, c, d = tl.inline_asm_elementwise(
        """{
        .reg .b32 four;
        xor.b32 four, $4, 0x80808080;
        prmt.b32 $0, four, 0x4b000000, 0x7440;
        prmt.b32 $1, four, 0x4b000000, 0x7441;
        prmt.b32 $2, four, 0x4b000000, 0x7442;
        prmt.b32 $3, four, 0x4b000000, 0x7443;
        }""",
        "=r,=r,=r,=r,r",
        [words],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )
    found = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(found, [words.shape[0], 4 * words.shape[1]]) - 8388736.0  # 2^23 + 128
