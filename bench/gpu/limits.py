"""What the card itself can do: bytes a second of a copy, operations a second of a matrix product.

    python -m bench.gpu.limits [--out FILE]

Everything else is measured against these two, in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.gpu import part

DEVICE, DTYPE = torch.device("cuda:0"), torch.bfloat16


def seconds(run: Callable[[], Any], repeats: int = 20) -> float:
    """Median time of `run` as one captured graph."""
    run()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    times = sorted(before.elapsed_time(after) for before, after in zip(marks, marks[1:], strict=False))
    return times[len(times) // 2] / 1e3


def limits() -> tuple[float, float]:
    """Bytes a second of a large elementwise kernel, read and written, and operations a second of a large product."""
    source = torch.randn(2**28, device=DEVICE)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE) for _ in "ab")
    return 2 * source.nbytes / seconds(lambda: torch.neg(source, out=target)), 2 * 8192**3 / seconds(lambda: a @ b)


def host_copies() -> tuple[float, float]:
    """Bytes a second from page-locked RAM to the card, and back."""
    here, there = (
        torch.empty(2**30, dtype=torch.uint8, pin_memory=True),
        torch.empty(2**30, dtype=torch.uint8, device=DEVICE),
    )
    pairs = ((there, here), (here, there))
    up, down = (
        here.nbytes / seconds(lambda to=to, source=source: to.copy_(source, non_blocking=True), 5)
        for to, source in pairs
    )
    return up, down


def main() -> None:
    options = part.options(__doc__)
    with torch.inference_mode():
        moved, multiplied = limits()
        up, down = host_copies()
    print(f"{torch.cuda.get_device_name()}: move {moved / 1e12:.2f} TB/s, product {multiplied / 1e12:.0f} TFLOP/s")
    print(f"page-locked RAM to the card {up / 1e9:.1f} GB/s, back {down / 1e9:.1f} GB/s")
    raw = {"move_bytes_s": moved, "product_flop_s": multiplied, "to_card_bytes_s": up, "from_card_bytes_s": down}
    part.write(options, raw)


if __name__ == "__main__":
    main()
