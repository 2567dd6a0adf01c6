"""How a product with a weight of one byte is cut: decisions over numbers, without Triton.

The tables are what an H100 measured for the four products of Qwen3-4B's layer (`bench.gpu.w8a16`), among some 300 cuts.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_TILES = 4096  # tiles whose columns several programs share, at most
MOST_TOKENS = 256  # beyond these a dense product of the library wins on most cards, the weight's conversion included


class Tile(NamedTuple):
    """One program's share of a product."""

    tokens: int
    rows: int  # of the weight
    columns: int  # read at a time
    splits: int  # programs that share the columns
    warps: int
    stages: int  # of reads in flight
    hopper: bool = False  # by the kernel for Hopper's tensor cores


class _Cut(NamedTuple):
    tokens: int  # up to these
    rows: int  # from these
    tile: Tile
    programs: int  # for each processor, as many as share the columns of the tiles


_CUTS = (
    _Cut(64, 0, Tile(64, 64, 128, 1, 4, 3), 2),
    _Cut(128, 4096, Tile(64, 64, 128, 1, 4, 3), 3),
    _Cut(128, 0, Tile(64, 64, 128, 1, 4, 3), 2),
    _Cut(MOST_TOKENS, 0, Tile(128, 64, 64, 1, 4, 3), 3),
)
_HOPPER_CUTS = (
    _Cut(64, 0, Tile(64, 64, 128, 1, 4, 3), 2),
    _Cut(128, 8192, Tile(128, 128, 64, 1, 4, 3, True), 2),
    _Cut(128, 4096, Tile(64, 64, 128, 1, 4, 3), 3),
    _Cut(128, 0, Tile(64, 64, 128, 1, 4, 3), 2),
    _Cut(MOST_TOKENS, 8192, Tile(256, 64, 64, 1, 4, 4, True), 2),
    _Cut(MOST_TOKENS, 0, Tile(128, 64, 64, 1, 4, 4, True), 2),
)
_LEAST_STEPS = 2  # reads that a program is worth
_LARGEST = Tile(256, 128, 64, 1, 8, 4, True)  # one program a processor
_MOST_LARGEST = 4096  # tokens, beyond which the conversion is too small a part of a dense product for it to lose
_WORTH_SHARING = 32  # reads of the largest tile: adding up what several programs found takes as long as 20
_LEAST_BUSY = 0.7  # share of a card's time for which the largest tiles beat a dense product, conversion included


def tile_for(tokens: int, rows: int, columns: int, processors: int, *, hopper: bool = False) -> Tile | None:
    """How `tokens` times a weight [rows, columns] are cut for a card of `processors` multiprocessors.

    Args:
        hopper: the card has Hopper's tensor cores, and both operands begin at multiples of 16 bytes.

    Returns:
        None where a dense product is faster, the weight's conversion included.
    """
    if columns % 2:
        return None
    hopper = hopper and columns % 16 == 0  # as its copies demand of a row
    if tokens > MOST_TOKENS:
        return _largest(tokens, rows, columns, processors) if hopper and tokens <= _MOST_LARGEST else None
    cuts = _HOPPER_CUTS if hopper else _CUTS
    cut = next(cut for cut in cuts if tokens <= cut.tokens and rows >= cut.rows)
    steps = -(-columns // cut.tile.columns)
    tiles = _tiles(cut.tile, tokens, rows)
    return cut.tile._replace(splits=splits_for(tiles, cut.programs * processors, steps // _LEAST_STEPS))


def splits_for(tiles: int, programs: int, most: int) -> int:
    """How many programs share each of `tiles`, so that about `programs` run: `most` at most."""
    wanted = programs // tiles if tiles <= MOST_TILES else 1
    return max(1, min(wanted, most))


def _largest(tokens: int, rows: int, columns: int, processors: int) -> Tile | None:
    """None where the last round of tiles would leave too many processors idle."""
    tiles = _tiles(_LARGEST, tokens, rows)
    steps = -(-columns // _LARGEST.columns)
    splits = max(1, min(processors // tiles, steps // _WORTH_SHARING))
    programs = tiles * splits
    busy = programs / (-(-programs // processors) * processors)
    return _LARGEST._replace(splits=splits) if busy >= _LEAST_BUSY else None


def _tiles(tile: Tile, tokens: int, rows: int) -> int:
    return -(-rows // tile.rows) * -(-tokens // tile.tokens)
