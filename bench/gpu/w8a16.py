"""Products with weights of one byte against the library's in bfloat16, and against the time that reading them takes.

    python -m bench.gpu.w8a16 [--out FILE]

The four products of a Qwen3-4B layer. Each case is one captured graph over as many weights as the L2 cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

from bench.gpu import part
from bench.gpu.limits import DEVICE, DTYPE, limits, seconds
from lodger.runtime.quantised import QuantisedLinear, quantise

SHAPES = {"qkv": (6144, 2560), "out": (2560, 4096), "gate_up": (19456, 2560), "down": (2560, 9728)}  # [rows, columns]
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048)
COLD = 150e6  # bytes of weights in one graph, three times an H100's L2


def measure() -> list[dict[str, Any]]:
    bandwidth, _ = limits()
    return [row for name, shape in SHAPES.items() for row in _product(name, *shape, bandwidth)]


def _product(name: str, rows: int, columns: int, bandwidth: float) -> Iterator[dict[str, Any]]:
    count = int(COLD / 2 / rows / columns) + 1
    dense = [torch.randn(rows, columns, device=DEVICE, dtype=DTYPE) for _ in range(count)]
    layers = [QuantisedLinear(*quantise([weight], DEVICE), None) for weight in dense * 2]
    for tokens in TOKENS:
        x = torch.randn(tokens, columns, device=DEVICE, dtype=DTYPE)
        int8 = seconds(partial(_each, layers, x)) / len(layers)
        half = seconds(partial(_each, [partial(linear, weight=weight) for weight in dense], x)) / len(dense)
        read = (rows * columns + 4 * rows + 2 * tokens * (rows + columns)) / bandwidth
        error = _error(layers[0], x)
        rate = 2 * tokens * rows * columns / int8 / 1e12
        print(
            f"{name:8}{tokens:6,}  int8 {int8 * 1e6:7.1f} us  bfloat16 {half * 1e6:7.1f} us  read {read * 1e6:5.1f} us "
            f"({read / int8:4.0%})  {rate:5.0f} TFLOP/s  off by {error:.1e}",
            flush=True,
        )
        yield {"product": name, "tokens": tokens, "int8": int8, "bfloat16": half, "read": read, "error": error}


def _each(products: Sequence[Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor) -> None:
    for product in products:
        product(x)


def _error(layer: QuantisedLinear, x: torch.Tensor) -> float:
    """Relative error against the same numbers in float64."""
    expected = x.double() @ (layer.weight.double() * layer.scale.double()[:, None]).T
    return float((layer(x).double() - expected).norm() / expected.norm())


def main() -> None:
    options = part.options(__doc__)
    with torch.inference_mode():
        rows = measure()
    for tokens in TOKENS:
        int8, half = (sum(row[key] for row in rows if row["tokens"] == tokens) for key in ("int8", "bfloat16"))
        faster = half / int8
        print(f"a layer, {tokens:5,} tokens: int8 {int8 * 1e6:7.1f} us, bfloat16 {half * 1e6:7.1f} us: {faster:.2f}x")
    part.write(options, {"rows": rows})


if __name__ == "__main__":
    main()
