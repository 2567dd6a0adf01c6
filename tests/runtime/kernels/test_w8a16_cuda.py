"""Products with weights of one byte by every kernel that a card has for them, against float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import TOLERANCE, far

from lodger.runtime.kernels.product_tiling import Tile

pytestmark = pytest.mark.gpu

HALVES = (torch.bfloat16, torch.float16)
# (T, rows, columns): whole tiles, and tails in every direction
SHAPES = [(256, 256, 512), (1, 16, 64), (37, 304, 1296), (300, 200, 2064), (513, 100, 16)]


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


@pytest.mark.parametrize("half", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("tokens", "rows", "columns"), SHAPES)
def test_every_tile_alone_and_shared(tokens: int, rows: int, columns: int, half: torch.dtype) -> None:
    from lodger.runtime.kernels.w8a16 import product

    card = torch.device("cuda:0")
    weight = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, device=card)
    scale, bias = torch.rand(rows, device=card) / 100, torch.randn(rows, device=card).to(half)
    x = torch.randn(tokens, columns, device=card).to(half)
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T
    for tile in tiles():
        for splits in (1, 3):
            if splits * tile.columns > columns + tile.columns - 1:
                continue
            cut = tile._replace(splits=splits)
            first = product(x, weight, scale, None, cut)
            assert far(first, exact) < TOLERANCE[half], cut
            assert far(product(x, weight, scale, bias, cut), exact + bias.double()) < TOLERANCE[half], cut
            assert all(torch.equal(product(x, weight, scale, None, cut), first) for _ in range(10)), cut


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
