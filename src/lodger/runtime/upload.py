"""Small numbers that the host decides, on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Numbers = Sequence[int] | Sequence[float] | Sequence[Sequence[int]]


def upload(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `numbers` on `device`, without waiting for what runs there: from pinned memory, by a copy in order
    with the device's other work."""
    on_gpu = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, pin_memory=on_gpu).to(device, non_blocking=True)
