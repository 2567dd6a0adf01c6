"""`Precision`: how a model's weights are stored and in what it computes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lodger.errors import Unsupported


class Precision(NamedTuple):
    """A dtype as users name it, on one kind of device."""

    name: str  # "float32", "bfloat16", "float16"
    weights: torch.dtype
    compute: torch.dtype  # activations and KV cache
    tolerance: float  # relative error against float32 that a sound model stays under


def precision(name: str, device: torch.device) -> Precision:
    """The precision `name` on `device`. CPUs store float16 weights but compute with them in float32.

    Raises:
        Unsupported: not a dtype that models run in.
    """
    tolerances = {"float32": 2e-4, "float16": 2e-2, "bfloat16": 8e-2}
    if name not in tolerances:
        raise Unsupported(f"dtype {name!r} is not served.", hint=f"Served: {', '.join(tolerances)}.", param="dtype")
    weights: torch.dtype = getattr(torch, name)
    compute = torch.float32 if name == "float16" and device.type == "cpu" else weights
    return Precision(name, weights, compute, tolerances[name])
