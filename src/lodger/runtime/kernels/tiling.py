"""How a launch of paged attention is cut: decisions over numbers, without Triton."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MOST_SPLITS = 64
TEXT_ROWS = 64  # tokens of a text that one program of an encoder's attention serves
PROGRAMS_PER_PROCESSOR = 2  # of decoding; what fills a card without leaving a last wave half empty


class Shape(NamedTuple):
    """One program's share of the work."""

    rows: int  # of its query matrix: tokens x the query heads of one key head
    tokens: int
    keys: int  # read at a time
    least: int  # keys, below which sharing them among programs costs more than it gives; a multiple of `keys`
    warps: int
    stages: int  # of keys in flight


class Tile(NamedTuple):
    """Tokens of one sequence that one program serves."""

    token: int  # the first of them in the packed row
    tokens: int
    position: int  # of the first of them in its sequence
    sequence: int


def decode_shape(group: int, head_dim: int) -> Shape:
    """One token of `group` query heads. 16 rows are the least that a tensor core multiplies."""
    rows = max(16, 1 << (group - 1).bit_length())
    keys = 64 if head_dim <= 128 else 32
    return Shape(rows=rows, tokens=1, keys=keys, least=2 * keys, warps=2, stages=3)


def chunk_shape(group: int, head_dim: int) -> Shape:
    """As many tokens as make 64 rows: more would leave too few tiles of a chunk that the card still has to fill."""
    rows = max(64, 1 << (group - 1).bit_length())
    keys = 64 if head_dim <= 128 else 32
    return Shape(rows=rows, tokens=rows // group, keys=keys, least=4 * keys, warps=4, stages=2)


def cut(rows: Iterable[tuple[int, int, int, int]], tokens: int) -> list[Tile]:
    """Tiles of at most `tokens`, those with the most keys first, so that none of them starts last.

    Args:
        rows: (first token in the packed row, new tokens, tokens before them, sequence).
    """
    tiles = [
        Tile(start + at, min(tokens, count - at), past + at, sequence)
        for start, count, past, sequence in rows
        for at in range(0, count, tokens)
    ]
    return sorted(tiles, key=lambda tile: -tile.position)


def text_tiles(lengths: Iterable[int]) -> list[tuple[int, int, int, int]]:
    """Of texts that lie end to end: (first token, token after the text's last, the text's first token, 0)."""
    tiles: list[tuple[int, int, int, int]] = []
    start = 0
    for length in lengths:
        end = start + length
        tiles.extend((first, end, start, 0) for first in range(start, end, TEXT_ROWS))
        start = end
    return tiles


def splits_for(programs: int, longest: int, least: int, processors: int) -> int:
    """How many programs share the keys of one tile: none where the tiles alone fill the card.

    Args:
        programs: tiles x key heads.
        longest: keys of the longest tile.
        least: keys worth a program of their own.
        processors: multiprocessors of the card.
    """
    wanted = PROGRAMS_PER_PROCESSOR * processors // programs
    return max(1, min(wanted, -(-longest // least), MOST_SPLITS))
