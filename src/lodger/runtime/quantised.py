"""Weights of one byte: each row of a matrix as integers from -127 to 127 and one scale, made while a model loads.

Symmetric and row by row, which is W8A16 in the literature (LLM.int8's vector-wise weights, arXiv 2208.07339): a row's
largest number becomes 127, so a number is off by at most half a step, 1/254 of its row's largest. Activations stay as
they are. Half of bfloat16's bytes, and a next token is as fast as its weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

SCALE_BYTES = 4  # of one row
_STEPS = 127
_PIECE = 2**23  # numbers that are float32 at a time while a matrix is quantised
# Numbers of a weight that are back in a half precision at a time for a long prompt: 32 MiB, which an H100's L2 holds.
DENSE_PIECE = 2**24
_ALIGNED = 256  # rows of a piece are a multiple: the library is ten times slower where its output begins elsewhere


Allocate = Callable[[Sequence[int], torch.dtype], torch.Tensor]  # shape, dtype -> a tensor on the device


def quantise(
    weights: Sequence[torch.Tensor], device: torch.device, empty: Allocate | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices of any float dtype, one below the other, as int8 [rows, columns] and float32 scales [rows] on `device`.

    The matrices go to the device piece by piece, in their own dtype. `empty` makes what is kept; None: torch does.
    """
    columns = weights[0].shape[1]
    total = sum(map(len, weights))
    empty = empty or (lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device))
    values, scales = empty((total, columns), torch.int8), empty((total,), torch.float32)
    pieces = [piece for weight in weights for piece in torch.split(weight, max(_PIECE // columns, 1))]
    sizes = [len(piece) for piece in pieces]
    for piece, value, scale in zip(pieces, values.split_with_sizes(sizes), scales.split_with_sizes(sizes), strict=True):
        numbers = piece.to(device).float()
        torch.div(numbers.abs().amax(dim=1), _STEPS, out=scale)
        step = scale.where(scale != 0, 1)  # a row of zeros stays one
        value.copy_((numbers / step[:, None]).round_())
    return values, scales


class QuantisedLinear(torch.nn.Module):
    """x @ (weight * scale).T + bias, with x in bfloat16 or float16 on a GPU."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        from lodger.runtime.kernels import w8a16

        super().__init__()
        self.weight, self.scale, self.bias = weight, scale, bias
        self._kernels = w8a16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        if self._kernels.worth(rows, self.weight):
            found = self._kernels.product(rows, self.weight, self.scale, self.bias)
        else:
            found = self._dense(rows)
        return found.view(*x.shape[:-1], -1)

    def _dense(self, x: torch.Tensor) -> torch.Tensor:
        """So many tokens that arithmetic takes longer than reading weights: they are made dense a piece at a time."""
        return product_by_pieces(
            x,
            len(self.weight),
            lambda at, room: self._kernels.dequantised(self.weight[at], self.scale[at], room),
            self.bias,
        )


def product_by_pieces(
    x: torch.Tensor, total: int, dense: Callable[[slice, torch.Tensor], torch.Tensor], bias: torch.Tensor | None
) -> torch.Tensor:
    """x @ weight.T + bias, for a weight that is in a half precision only a piece at a time.

    Args:
        x: [T, columns].
        total: rows of the weight.
        dense: fills room [rows, columns] with these rows, and returns it.
    """
    size = max(DENSE_PIECE // x.shape[1] // _ALIGNED, 1) * _ALIGNED
    room = x.new_empty(min(size, total), x.shape[1])
    out = x.new_empty(len(x), total)
    for start in range(0, total, size):
        at = slice(start, start + size)
        torch.mm(x, dense(at, room[: total - start]).T, out=out[:, at])
    return out if bias is None else out.add_(bias)
