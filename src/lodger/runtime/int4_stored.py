"""Matrices of AWQ and GPTQ checkpoints as their files hold them (`lodger.catalogue.int4` describes both layouts)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import linear

from lodger.catalogue.facts import Int4Weights
from lodger.catalogue.int4 import PARTS
from lodger.errors import DamagedWeights, ModelProblem

_IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)  # where AWQ's int32 has each of eight rows
_MIDDLE = 8  # the zero point of symmetric weights
_PIECE = 2**22  # numbers in float32 at a time while a matrix is made dense


@dataclass(frozen=True)
class StoredInt4:
    """One matrix, as views of its file."""

    words: torch.Tensor  # qweight
    zeros: torch.Tensor  # qzeros
    scales: torch.Tensor  # [groups, rows]
    packing: Int4Weights

    @cached_property
    def shape(self) -> torch.Size:
        """[rows, columns] of the matrix."""
        packed = self.words.shape[0] * (1 if self.packing.method == "awq" else 8)
        return torch.Size((self.scales.shape[1], packed))

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.zeros.nbytes + self.scales.nbytes

    def values(self, first: int, last: int, device: torch.device) -> torch.Tensor:
        """The numbers of columns `first` to `last`, both multiples of 8: uint8 [columns, rows] on `device`."""
        if self.packing.method == "awq":
            return _rows(self.words[first:last].to(device), _AWQ)
        words = self.words[first // 8 : last // 8].to(device)
        return ((words[:, None] >> _shifts(_IN_ORDER, device)[:, None]) & 15).to(torch.uint8).flatten(0, 1)

    def zero_points(self, device: torch.device) -> torch.Tensor:
        """uint8 [groups, rows] on `device`.

        A symmetric checkpoint's are 8. Some that name the old GPTQ format hold them as the new one does, so it is only
        checked that they are 8 in one of the two.

        Raises:
            DamagedWeights: other ones are stored.
        """
        stored = _rows(self.zeros.to(device), _AWQ if self.packing.method == "awq" else _IN_ORDER)
        if not self.packing.symmetric:
            return (stored + 1) & 15 if self.packing.zeros_less_one else stored
        if not ((stored == _MIDDLE) | (stored == _MIDDLE - 1)).all():
            raise DamagedWeights("config.json says that weights are symmetric (sym), and their zero points differ.")
        return torch.full_like(stored, _MIDDLE)

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[rows, columns], each number computed in float32 and rounded to `dtype`."""
        rows, columns = self.shape
        found = torch.empty(rows, columns, dtype=dtype)
        zeros, scales = self.zero_points(found.device), self.scales.float()
        group = self.packing.group or columns
        size = max(_PIECE // rows // 8, 1) * 8
        for first in range(0, columns, size):
            last = min(first + size, columns)
            own = torch.arange(first, last) // group
            values = self.values(first, last, found.device).float() - zeros[own]
            found[:, first:last] = (values * scales[own]).T
        return found


def _rows(words: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
    """int32 [n, rows / 8] with eight rows in each -> uint8 [n, rows]."""
    return ((words[:, :, None] >> _shifts(places, words.device)) & 15).to(torch.uint8).flatten(1)


def _shifts(places: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor([4 * place for place in places], dtype=torch.int32, device=device)


class StoredInt4Linear(torch.nn.Module):
    """In the place of a `torch.nn.Linear` until it is placed: computes in float32, weights made dense meanwhile."""

    def __init__(self, weight: StoredInt4, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight.dense(), self.bias)


def take(tensors: dict[str, torch.Tensor], stem: str, packing: Int4Weights) -> StoredInt4:
    """The matrix `stem` of a checkpoint whose headers `lodger.catalogue.int4` has checked.

    Raises:
        ModelProblem: its columns are in an order of their own (desc_act), which is not served.
    """
    words, zeros, scales, order = (tensors.get(f"{stem}.{part}") for part in PARTS)
    assert words is not None
    assert zeros is not None
    assert scales is not None
    stored = StoredInt4(words, zeros, scales, packing)
    columns = stored.shape[1]
    if order is not None and not torch.equal(
        order, torch.arange(columns, dtype=order.dtype) // (packing.group or columns)
    ):
        raise ModelProblem(
            f"{stem} has its columns grouped by their activations (desc_act), which is not served.",
            hint="Use a checkpoint that was made with desc_act false.",
        )
    return stored
