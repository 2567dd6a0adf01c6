"""The first launch of a captured decode step: what the host sent becomes what the other kernels read."""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl


def spread(
    inputs: torch.Tensor,
    latest: torch.Tensor,
    tokens: torch.Tensor,
    records: torch.Tensor,
    table: torch.Tensor,
    block_size: int,
) -> None:
    """One row is the newest token of one sequence.

    Args:
        inputs: [5, rows] int32: the token; where in `latest` to take it from instead, or negative; its position;
            its slot in the KV cache, negative in a row that stands for no sequence; its sequence's line of `table`.
        latest: [any] int64, tokens that the host need not know yet.
        tokens: [rows] int64, written.
        records: [rows, 4] int32 as in `paged_attention.Tiles`, written.
        table: [lines, blocks] int32, of which the entry of the token's own block is written.
    """
    rows = len(tokens)
    _spread[(rows,)](inputs, latest, tokens, records, table, rows, table.stride(0), BLOCK_SIZE=block_size, num_warps=1)


@triton.jit(do_not_specialize=["rows", "width"])
def _spread(inputs, latest, tokens, records, table, rows, width, BLOCK_SIZE: tl.constexpr):
    row = tl.program_id(0)
    token = tl.load(inputs + row).to(tl.int64)
    source = tl.load(inputs + rows + row)
    position = tl.load(inputs + 2 * rows + row)
    slot = tl.load(inputs + 3 * rows + row)
    line = tl.load(inputs + 4 * rows + row)
    if source >= 0:
        token = tl.load(latest + source)
    tl.store(tokens + row, token)
    record = records + row * 4
    tl.store(record, row)
    tl.store(record + 1, tl.where(slot >= 0, 1, 0))
    tl.store(record + 2, position)
    tl.store(record + 3, line)
    if slot >= 0:
        tl.store(table + line.to(tl.int64) * width + position // BLOCK_SIZE, slot // BLOCK_SIZE)
