"""How a product with a weight of one byte is cut: decisions over numbers, without Triton.

The table is what an H100 measured for the four products of Qwen3-4B's layer (`bench.gpu.w8a16`), among some 300 cuts.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_TILES = 4096  # tiles whose columns several programs share, at most
MOST_TOKENS = 256  # beyond these a dense product of the library wins, the weight's conversion included


class Tile(NamedTuple):
    """One program's share of a product."""

    tokens: int
    rows: int  # of the weight
    columns: int  # read at a time
    splits: int  # programs that share the columns
    warps: int
    stages: int  # of reads in flight
    weight_left: bool  # the weight is the product's left operand: for fewer tokens than a left operand must have rows


class _Cut(NamedTuple):
    tokens: int  # up to these
    rows: int  # from these
    tile: Tile
    programs: int  # for each processor, as many as share the columns of the tiles


_CUTS = (
    _Cut(8, 0, Tile(8, 64, 256, 1, 2, 3, True), 2),
    _Cut(16, 0, Tile(16, 32, 128, 1, 2, 4, True), 4),
    _Cut(32, 0, Tile(32, 64, 128, 1, 4, 3, False), 3),
    _Cut(64, 8192, Tile(64, 64, 64, 1, 4, 4, False), 2),
    _Cut(64, 0, Tile(32, 64, 128, 1, 2, 3, True), 4),
    _Cut(128, 8192, Tile(128, 64, 64, 1, 4, 3, False), 2),
    _Cut(128, 0, Tile(128, 64, 128, 1, 4, 4, False), 1),
    _Cut(MOST_TOKENS, 0, Tile(128, 64, 64, 1, 4, 3, False), 2),
)
_LEAST_STEPS = 2  # reads that a program is worth


def tile_for(tokens: int, rows: int, columns: int, processors: int) -> Tile:
    """How up to MOST_TOKENS times a weight [rows, columns] are cut for a card of `processors` multiprocessors."""
    cut = next(cut for cut in _CUTS if tokens <= cut.tokens and rows >= cut.rows)
    tile = cut.tile
    tiles = -(-rows // tile.rows) * -(-tokens // tile.tokens)
    steps = -(-columns // tile.columns)
    wanted = cut.programs * processors // tiles if tiles <= MOST_TILES else 1
    return tile._replace(splits=max(1, min(wanted, steps // _LEAST_STEPS)))
