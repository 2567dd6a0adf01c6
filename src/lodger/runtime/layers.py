"""The layers that hold most of a model's bytes, in the form that their device computes fastest with.

On a CPU a weight is reordered once for the library that will multiply with it, and the original is let go: oneDNN for
float32 and bfloat16, FBGEMM for weights in float16 with arithmetic in float32 (half the bytes to read for each token).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch
from torch.nn.functional import embedding, linear

from lodger.catalogue.int4 import resident_bytes
from lodger.runtime.arena import Arena
from lodger.runtime.int4 import Int4Linear, pack_again
from lodger.runtime.int4_stored import StoredInt4
from lodger.runtime.precision import Precision
from lodger.runtime.quantised import SCALE_BYTES, QuantisedLinear, quantise

PACKED_FOR_ROWS = 16  # rows of input that oneDNN's reordering has in mind: between a decode step and a short prompt

PIECE_ROWS = 4096  # of a weight that FBGEMM packs at a time
_FBGEMM_ROWS = 512  # it pads the inputs of a weight to a multiple of this


class OneDnnLinear(torch.nn.Module):
    """x @ weight.T + bias with a weight in oneDNN's blocked layout."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR_ROWS)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """GELU of the product, with the error function ("tanh" would be its approximation)."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")
        return out

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The product plus `other`, of its shape."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return out


class HalfLinear(torch.nn.Module):
    """x @ weight.T + bias in float32 with a weight kept in float16, by FBGEMM.

    Its packing takes one core 17 ns an element, and twice that for tall weights: these are packed in pieces.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        rows = weight.split_with_sizes(_pieces(len(weight)))
        biases = [None] * len(rows) if bias is None else bias.split_with_sizes(_pieces(len(weight)))
        pack = torch.ops.quantized.linear_prepack_fp16
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            self.pieces = list(pool.map(lambda part, own: pack(part.float(), own), rows, biases))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts: list[torch.Tensor] = [torch.ops.quantized.linear_dynamic_fp16(x, piece) for piece in self.pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _pieces(rows: int) -> list[int]:
    return [min(PIECE_ROWS, rows - start) for start in range(0, rows, PIECE_ROWS)]


class PlainLinear(torch.nn.Module):
    """x @ weight.T + bias by whatever torch has for the device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class Lookup(torch.nn.Module):
    """Rows of a table, given in the dtype that the model computes in."""

    def __init__(self, table: torch.Tensor, compute: torch.dtype) -> None:
        super().__init__()
        self.weight, self.compute = table, compute

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return embedding(ids, self.weight).to(self.compute)


def half_weights_served() -> bool:
    """Whether this torch has FBGEMM, so that a CPU can compute with float16 weights."""
    return "fbgemm" in torch.backends.quantized.supported_engines


Weight = torch.Tensor | StoredInt4  # [rows, columns], as a folder has it


class Placement:
    """Turns stored tensors into layers on one device in one precision, and counts the bytes read and held.

    Several threads may use it at once.

    Args:
        arena: where tensors go; None for wherever torch puts them.
        on_read: told of the bytes of each stored tensor when it is placed.
    """

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        on_read: Callable[[int], None],
        arena: Arena | None = None,
    ) -> None:
        self.device, self.precision, self.arena = device, precision, arena
        self.held = 0  # bytes
        self._on_read = on_read
        self._lock = Lock()
        self._quantising = Lock()  # one at a time: what it takes beside its result counts once

    def tensor(self, stored: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A copy on the device, so that the file behind `stored` is not needed any more."""
        placed = self.empty(stored.shape, dtype or self.precision.compute).copy_(stored)
        self._count(stored.nbytes, placed.nbytes)
        return placed

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Room for a tensor that lives as long as the model."""
        if self.arena is not None:
            return self.arena.empty(shape, dtype)
        return torch.empty(shape, dtype=dtype, device=self.device)

    def lookup(self, table: torch.Tensor) -> Lookup:
        return Lookup(self.tensor(table, self.precision.weights), self.precision.compute)

    def linear(self, weights: Sequence[Weight], biases: list[torch.Tensor | None]) -> torch.nn.Module:
        """One product for several with the same input: their outputs lie side by side. All are stored alike."""
        plain = [weight for weight in weights if isinstance(weight, torch.Tensor)]
        stored = [weight for weight in weights if isinstance(weight, StoredInt4)]
        if stored:
            return self._int4(stored, biases)
        if self.precision.int8:
            return self._quantised(plain, biases)
        return self.dense(plain, biases)

    def dense(self, weights: list[torch.Tensor], biases: list[torch.Tensor | None]) -> torch.nn.Module:
        """`linear` in the precision's own dtype whatever else it says."""
        if self.arena is not None:
            return PlainLinear(self._joined(weights), self._bias(biases))
        whole = torch.cat([weight.to(self.precision.weights) for weight in weights])
        size = linear_bytes(whole.shape, self.device, self.precision.dense)
        self._count(sum(weight.nbytes for weight in weights), size)
        return make_linear(whole, self._bias(biases), self.device, self.precision)

    def _quantised(self, weights: list[torch.Tensor], biases: list[torch.Tensor | None]) -> torch.nn.Module:
        with self._quantising:
            values, scales = quantise(weights, self.device, self.empty)
        self._count(sum(weight.nbytes for weight in weights), values.nbytes + scales.nbytes)
        return QuantisedLinear(values, scales, self._bias(biases))

    def _int4(self, weights: list[StoredInt4], biases: list[torch.Tensor | None]) -> torch.nn.Module:
        if not self.precision.int4:
            return self.dense([weight.dense(self.precision.weights) for weight in weights], biases)
        with self._quantising:
            words, scales = pack_again(weights, self.device, self.empty)
        self._count(sum(weight.nbytes for weight in weights), words.nbytes + scales.nbytes)
        return Int4Linear(words, scales, weights[0].shape[1], self._bias(biases))

    def _joined(self, weights: list[torch.Tensor]) -> torch.Tensor:
        """One below the other, each copied into its place."""
        whole = self.empty((sum(map(len, weights)), weights[0].shape[1]), self.precision.weights)
        for weight, rows in zip(weights, whole.split_with_sizes(list(map(len, weights))), strict=True):
            rows.copy_(weight)
        self._count(sum(weight.nbytes for weight in weights), whole.nbytes)
        return whole

    def _bias(self, biases: list[torch.Tensor | None]) -> torch.Tensor | None:
        return None if biases[0] is None else self.tensor(torch.cat([b for b in biases if b is not None]))

    def _count(self, read: int, held: int) -> None:
        with self._lock:
            self.held += held
            self._on_read(read)


def stored_linear_bytes(weight: Weight, device: torch.device, precision: Precision) -> int:
    """Bytes of `weight` in the layer that `Placement.linear` makes of it."""
    if isinstance(weight, StoredInt4) and precision.int4:
        rows, columns = weight.shape
        return resident_bytes(rows, columns, weight.packing.group)
    return linear_bytes(weight.shape, device, precision)


def linear_bytes(shape: torch.Size, device: torch.device, precision: Precision) -> int:
    """Bytes that a weight [out, in] of ordinary numbers takes in the layer that `Placement.linear` makes of it."""
    rows, columns = shape
    if precision.int8:
        return rows * (columns + SCALE_BYTES)
    if _packs_half(device, precision):
        columns = -(-columns // _FBGEMM_ROWS) * _FBGEMM_ROWS
    return rows * columns * precision.weights.itemsize


def _packs_half(device: torch.device, precision: Precision) -> bool:
    return device.type == "cpu" and precision.weights == torch.float16


def make_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device, precision: Precision
) -> torch.nn.Module:
    """The fastest of the layers above that serves `device` and `precision`. The bias is in the compute dtype."""
    if _packs_half(device, precision):
        return HalfLinear(weight, bias)
    if device.type == "cpu" and torch._C._has_mkldnn:
        return OneDnnLinear(weight, bias)
    return PlainLinear(weight.to(device), bias)
