"""Small numbers that the host decides, on their way to the device. Nothing here waits for what runs there."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

Numbers = Sequence[int] | Sequence[float] | Sequence[Sequence[int]]
_LARGEST, _OF_EACH = 20, 8  # page-locked blocks of up to 2**20 bytes, and how many of each size


def stock() -> None:
    """Have page-locked RAM for what steps send and fetch. torch keeps it by powers of two; to ask the driver for more
    can hold up whoever feeds a busy device for many milliseconds."""
    [torch.empty(1 << at, dtype=torch.uint8, pin_memory=True) for at in range(6, _LARGEST + 1) for _ in range(_OF_EACH)]


def upload(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `numbers` on `device`: from pinned memory, by a copy in order with the device's other work."""
    on_gpu = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, pin_memory=on_gpu).to(device, non_blocking=True)


def staged(numbers: array[int] | array[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[numbers] of an array of this dtype, in RAM where `device` can copy them from by itself.

    Much faster than from a list where they are many.
    """
    flat = torch.frombuffer(numbers, dtype=dtype)
    return flat.pin_memory() if device.type == "cuda" else flat


def table(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """[rows, longest] int32 on `device`, shorter rows with zeros behind."""
    width = max(map(len, rows))
    flat = array("i")
    for row in rows:
        flat.extend(row)
        flat.frombytes(bytes(flat.itemsize * (width - len(row))))
    return staged(flat, torch.int32, device).view(len(rows), width).to(device, non_blocking=True)
