"""`Precision`: how a model's weights are stored and in what it computes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lodger import toolchain
from lodger.errors import MissingDependency, Unsupported


class Precision(NamedTuple):
    """A dtype as users name it, on one kind of device."""

    name: str  # "float32", "bfloat16", "float16"
    weights: torch.dtype
    compute: torch.dtype  # activations and KV cache
    tolerance: float  # relative error against float32 that a sound model stays under
    int8: bool = False  # the products of the layers have weights of one byte instead (`lodger.runtime.quantised`)
    int4: bool = False  # weights that are stored in half a byte stay so (`lodger.runtime.int4`)

    @property
    def dense(self) -> Precision:
        """The same with every weight in the dtype."""
        return self._replace(int8=False, int4=False)


# bfloat16 rounds eight times as coarsely as float16: the hidden state of the worst of 26 tokens is off by 3 % in most
# small random models, and by 8 % in some. What is wrong moves it by about all of its length.
_TOLERANCES = {"float32": 2e-4, "float16": 2e-2, "bfloat16": 0.16}


def precision(name: str, device: torch.device) -> Precision:
    """The precision `name` on `device`. CPUs store float16 weights but compute with them in float32.

    Raises:
        Unsupported: not a dtype that models run in.
    """
    if name not in _TOLERANCES:
        raise Unsupported(f"dtype {name!r} is not served.", hint=f"Served: {', '.join(_TOLERANCES)}.", param="dtype")
    weights: torch.dtype = getattr(torch, name)
    compute = torch.float32 if name == "float16" and device.type == "cpu" else weights
    return Precision(name, weights, compute, _TOLERANCES[name])


# Rounding weights to one byte moves the hidden state of the worst token by 7 % in SmolLM2-135M and by 5 to 7 % in small
# random models, 8 % together with bfloat16. A weight that is wrong moves it by about all of its length.
_INT8_TOLERANCE = 0.2
_WITHOUT = "Leave quantization out."


def with_int8(dense: Precision, device: torch.device) -> Precision:
    """`dense` with weights of one byte in the layers.

    Raises:
        Unsupported: not on this device, or not with this dtype.
        MissingDependency: the kernels cannot be built.
    """
    if device.type != "cuda":
        raise Unsupported("int8 weights need a GPU.", hint=_WITHOUT, param="quantization")
    if dense.weights not in (torch.bfloat16, torch.float16):
        raise Unsupported(
            f"int8 weights compute in bfloat16 or float16, not in {dense.name}.",
            hint=_WITHOUT,
            param="quantization",
        )
    _need_kernels("int8")
    return dense._replace(int8=True, tolerance=_INT8_TOLERANCE)


def with_int4(dense: Precision, device: torch.device) -> Precision:
    """`dense` for a checkpoint of half bytes: these stay as they are where a kernel multiplies with them, and become
    `dense` elsewhere.

    Raises:
        MissingDependency: the kernel cannot be built.
    """
    halves = dense.weights in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0) or not halves:
        return dense
    _need_kernels("int4")
    return dense._replace(int4=True)


def _need_kernels(weights: str) -> None:
    if lacking := toolchain.missing():
        raise MissingDependency(
            f"{weights} weights need {' and '.join(lacking)} for our GPU kernels.",
            hint="Install what is missing; `lodger doctor` says how.",
        )
