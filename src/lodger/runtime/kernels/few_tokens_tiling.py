"""How a product of few tokens is cut: decisions over numbers, without Triton."""

from __future__ import annotations

from typing import NamedTuple

from lodger.runtime.kernels.product_tiling import splits_for

MOST_FEW = 32  # tokens; beyond these other kernels win


class Tile(NamedTuple):
    """One program's share of a product."""

    tokens: int
    rows: int  # of the weight
    columns: int  # read at a time
    splits: int  # programs that share the columns
    warps: int
    stages: int  # of reads in flight


class _Cut(NamedTuple):
    tile: Tile
    programs: int  # for each processor, as many as share the columns of the tiles


# What an H100 measured for a captured step of Qwen3-4B.
_CUTS = {
    8: _Cut(Tile(8, 32, 128, 1, 2, 4), 2),
    16: _Cut(Tile(16, 32, 128, 1, 2, 4), 2),
    32: _Cut(Tile(32, 32, 128, 1, 2, 4), 2),
}
_CUTS_OF_BYTES = {
    8: _Cut(Tile(8, 32, 256, 1, 2, 4), 2),
    16: _Cut(Tile(16, 64, 128, 1, 2, 4), 4),
    32: _Cut(Tile(32, 64, 128, 1, 2, 3), 4),
}
_LEAST_STEPS = 2  # reads that a program is worth


def tile_for(tokens: int, rows: int, columns: int, processors: int, *, scaled: bool = False) -> Tile:
    """How up to MOST_FEW tokens times a weight [rows, columns] are cut for a card of `processors` multiprocessors.

    Args:
        scaled: the weight is of one byte.
    """
    cuts = _CUTS_OF_BYTES if scaled else _CUTS
    tile, programs = cuts[next(most for most in cuts if tokens <= most)]
    tiles = -(-rows // tile.rows)
    steps = -(-columns // tile.columns)
    return tile._replace(splits=splits_for(tiles, programs * processors, steps // _LEAST_STEPS))
