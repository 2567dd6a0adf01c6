"""Attention against the card's own limits: bytes of an elementwise kernel, operations of a matrix product.

    python -m bench.gpu.attention [--out FILE]

Both limits are measured in the same run. Every case is one captured graph, replayed, over caches that are larger in all
than the card's L2. Chunks of a chat read their keys from the cache, however they do it; a text's come packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from bench.gpu import part
from bench.gpu.limits import limits, seconds
from lodger.runtime.attention.paged import PagedPlan
from lodger.runtime.attention.varlen import Fresh
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch

DEVICE, DTYPE = torch.device("cuda:0"), torch.bfloat16
LAYERS = 6  # of the cache, one after the other, so that no keys stay in L2
CHAT = {"heads": 32, "kv_heads": 8, "dim": 128}  # Qwen3-4B
ENCODER = {"heads": 16, "kv_heads": 16, "dim": 64}  # XLM-RoBERTa large

DECODE = [(n, keys) for n in (1, 8, 32, 128) for keys in (320, 2_048)] + [(1, 8_192), (1, 32_768), (8, 8_192)]
# (sequences, new tokens of each, past)
CHUNKS = [(1, 8_192, 0), (1, 2_048, 6_144), (32, 256, 0), (4, 512, 512), (8, 16, 2_048), (1, 64, 8_192)]
TEXTS = [(173,) * 48, (512,) * 16, (8_192,)]


def paged(lengths: Sequence[int], past: Sequence[int], block_size: int = 16) -> tuple[Callable[[int], Any], KVCache]:
    """`run(layer)` of sequences over a cache of their own, its blocks in random order."""
    heads, kv_heads, dim = CHAT.values()
    counts = [-(-(n + p) // block_size) for n, p in zip(lengths, past, strict=True)]
    facts: Any = SimpleNamespace(layers=LAYERS, kv_heads=kv_heads, head_dim=dim)
    cache = KVCache(facts, sum(counts), block_size, DTYPE, DEVICE)
    cache.tensor.normal_()
    order = torch.randperm(sum(counts)).tolist()
    tables = [tuple(order.pop() for _ in range(count)) for count in counts]
    slots = [
        table[at // block_size] * block_size + at % block_size
        for table, n, p in zip(tables, lengths, past, strict=True)
        for at in range(p, p + n)
    ]
    offsets = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    tokens = torch.zeros(offsets[-1], dtype=torch.int64)
    batch = PackedBatch(
        tokens, tokens, tuple(offsets), past=tuple(past), blocks=tuple(tables), slots=torch.tensor(slots).to(DEVICE)
    )
    processors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    plan = PagedPlan(batch, cache, DEVICE, processors)
    qkv = torch.randn(offsets[-1], heads + 2 * kv_heads, dim, device=DEVICE, dtype=DTYPE)
    query, key, value = qkv.split((heads, kv_heads, kv_heads), dim=1)
    return lambda layer: plan.attend(layer, query, key, value, dim**-0.5, None), cache


def texts(lengths: Sequence[int]) -> Callable[[int], Any]:
    heads, kv_heads, dim = ENCODER.values()
    offsets = tuple(sum(lengths[:n]) for n in range(len(lengths) + 1))
    plan = Fresh(offsets, False, DEVICE)
    qkv = torch.randn(offsets[-1], heads + 2 * kv_heads, dim, device=DEVICE, dtype=DTYPE)
    query, key, value = qkv.split((heads, kv_heads, kv_heads), dim=1)
    return lambda layer: plan.attend(query, key, value, dim**-0.5, None)


def each_layer(run: Callable[[int], Any]) -> float:
    """Seconds of one layer."""
    return seconds(lambda: [run(layer) for layer in range(LAYERS)]) / LAYERS


def operations(lengths: Sequence[int], past: Sequence[int], heads: int, dim: int, *, causal: bool = True) -> int:
    """2 products x 2 operations x pairs of a query and a key that it sees x heads x head_dim."""
    pairs = sum(n * p + (n * (n + 1) // 2 if causal else n * n) for n, p in zip(lengths, past, strict=True))
    return 4 * pairs * heads * dim


def measure() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for count, keys in DECODE:
        run, cache = paged((1,) * count, (keys - 1,) * count)
        rows.append({"case": f"decode {count} x {keys:,}", "seconds": each_layer(run), "bytes": cache.nbytes / LAYERS})
    for count, tokens, past in CHUNKS:
        run, cache = paged((tokens,) * count, (past,) * count)
        work = operations((tokens,) * count, (past,) * count, CHAT["heads"], CHAT["dim"])
        name = f"chunk {count} x {tokens:,} after {past:,}"
        rows.append({"case": name, "seconds": each_layer(run), "bytes": cache.nbytes / LAYERS, "operations": work})
    for lengths in TEXTS:
        work = operations(lengths, (0,) * len(lengths), ENCODER["heads"], ENCODER["dim"], causal=False)
        name = f"texts {len(lengths)} x {lengths[0]:,}"
        rows.append({"case": name, "seconds": each_layer(texts(lengths)), "operations": work})
    return rows


def main() -> None:
    options = part.options(__doc__)
    with torch.inference_mode():
        moved, multiplied = limits()
        rows = measure()
    print(f"{torch.cuda.get_device_name()}: move {moved / 1e12:.2f} TB/s, product {multiplied / 1e12:.0f} TFLOP/s")
    print(f"{'one layer':32} {'us':>8} {'GB/s':>7} {'%':>4} {'TFLOP/s':>8} {'%':>4}")
    for row in rows:
        rate, speed = (row.get(what, 0) / row["seconds"] for what in ("bytes", "operations"))
        shares = f"{rate / 1e9:7.0f} {rate / moved:4.0%} {speed / 1e12:8.0f} {speed / multiplied:4.0%}"
        print(f"{row['case']:32} {row['seconds'] * 1e6:8.1f} {shares}")
    part.write(options, {"move_bytes_s": moved, "product_flop_s": multiplied, "rows": rows})


if __name__ == "__main__":
    main()
