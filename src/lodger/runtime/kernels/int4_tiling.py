"""How a product with a weight of half a byte is cut: decisions over numbers, without Triton.

The table is what an H200 measured for the four products of Qwen3-4B's layer, among some 60 cuts for each.
"""

from __future__ import annotations

from typing import NamedTuple

from lodger.runtime.kernels.product_tiling import splits_for

MOST_TOKENS = 128  # beyond these a dense product of the library wins, the weight's conversion included


class Tile(NamedTuple):
    """One program's share of a product."""

    tokens: int
    rows: int  # of the weight
    splits: int  # programs that share the columns
    warps: int
    stages: int  # of reads in flight


class _Cut(NamedTuple):
    tokens: int  # up to these
    rows: int  # from these
    tile: Tile
    programs: int  # for each processor, as many as share the columns of the tiles


_CUTS = (
    _Cut(8, 8192, Tile(8, 128, 1, 4, 4), 6),
    _Cut(8, 0, Tile(8, 128, 1, 4, 4), 2),
    _Cut(16, 8192, Tile(16, 128, 1, 4, 4), 6),
    _Cut(16, 0, Tile(16, 128, 1, 4, 4), 2),
    _Cut(32, 0, Tile(32, 64, 1, 4, 3), 5),
    _Cut(64, 0, Tile(64, 64, 1, 4, 3), 2),
    _Cut(MOST_TOKENS, 0, Tile(64, 128, 1, 4, 4), 2),
)
_LEAST_BLOCKS = 4  # that a program is worth


def tile_for(tokens: int, rows: int, blocks: int, processors: int) -> Tile:
    """How up to MOST_TOKENS times a weight of `blocks` blocks of columns are cut for a card of `processors`."""
    cut = next(cut for cut in _CUTS if tokens <= cut.tokens and rows >= cut.rows)
    tiles = -(-rows // cut.tile.rows) * -(-tokens // cut.tile.tokens)
    return cut.tile._replace(splits=splits_for(tiles, cut.programs * processors, blocks // _LEAST_BLOCKS))
