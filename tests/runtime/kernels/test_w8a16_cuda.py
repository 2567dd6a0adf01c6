"""Products with weights of one byte by every kernel that a card has for them, against float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import TOLERANCE, far

from lodger.runtime.kernels.product_tiling import Tile

pytestmark = pytest.mark.gpu

HALVES = (torch.bfloat16, torch.float16)
# (T, rows, columns): whole tiles, and tails in every direction
CASES = [
    (256, 256, 512, torch.bfloat16),
    (37, 304, 1296, torch.bfloat16),
    (300, 200, 2064, torch.bfloat16),
    (513, 100, 16, torch.bfloat16),
    (1, 16, 64, torch.float16),
    (140, 304, 1296, torch.float16),
]


def tiles() -> list[Tile]:
    found = [Tile(64, 64, 128, 1, 4, 3), Tile(128, 64, 64, 1, 4, 3)]
    if torch.cuda.get_device_capability() == (9, 0):
        found += [
            Tile(128, 128, 64, 1, 4, 3, True),
            Tile(256, 64, 64, 1, 4, 4, True),
            Tile(128, 64, 64, 1, 4, 4, True),
            Tile(256, 128, 64, 1, 8, 4, True),
        ]
    return found


@pytest.mark.parametrize(("tokens", "rows", "columns", "half"), CASES)
def test_every_tile_alone_and_shared(tokens: int, rows: int, columns: int, half: torch.dtype) -> None:
    from lodger.runtime.kernels.w8a16 import product

    card = torch.device("cuda:0")
    weight = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, device=card)
    scale, bias = torch.rand(rows, device=card) / 100, torch.randn(rows, device=card).to(half)
    x = torch.randn(tokens, columns, device=card).to(half)
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T
    for tile in tiles():
        shared = tile._replace(splits=min(3, -(-columns // tile.columns)))
        for cut, own, expected in ((tile, None, exact), (shared, bias, exact + bias.double())):
            first = product(x, weight, scale, own, cut)
            assert far(first, expected) < TOLERANCE[half], cut
            assert all(torch.equal(product(x, weight, scale, own, cut), first) for _ in range(10)), cut


def test_every_value_of_a_byte_becomes_the_same_number() -> None:
    from lodger.runtime.kernels.w8a16 import product

    card = torch.device("cuda:0")
    weight = torch.arange(-128, 128, device=card).to(torch.int8)[:, None].expand(256, 64).contiguous()
    one = torch.zeros(64, 64, device=card)
    one.fill_diagonal_(1)
    for half in HALVES:
        for tile in tiles():
            found = product(one.to(half), weight, torch.ones(256, device=card), None, tile)
            assert torch.equal(found, weight.T.to(half)), tile
