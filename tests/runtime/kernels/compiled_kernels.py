"""Compile our kernels for a chip that need not be here, as the launches that serving makes would.

    python compiled_kernels.py 80     prints what ptxas made of each, as JSON

The launching code runs over tensors without memory, and a driver that only knows which chip it stands for. Triton must
not have been imported as an interpreter, so this is a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from lodger.runtime.kernels import (
    decode_inputs,
    embeddings,
    encoder_attention,
    few_tokens,
    gather,
    layer_norm,
    norm,
    one_token,
    paged_attention,
    rotary,
    sampling,
    store,
    swiglu,
    w4a16,
    w8a16,
)
from lodger.runtime.kernels.tiling import chunk_shape, decode_shape

DTYPE = torch.bfloat16
# By capability: head_dim -> query heads and key heads, 256 being the widest that we serve; and Qwen3-4B's weights
# [rows, columns], cut differently -> tokens. On the newer chip every cut is tested where there is one.
HEADS = {80: {128: (32, 8), 256: (8, 4)}, 90: {128: (32, 8)}}
WEIGHTS = {80: {(2560, 9728): (128, 256)}, 90: {(19456, 2560): (64, 128, 256, 2048)}}
PROCESSORS = {80: 108, 90: 132}

empty = partial(torch.empty, device="meta", dtype=DTYPE)
integers = partial(torch.empty, device="meta", dtype=torch.int32)


class Chip:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launches(capability: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(case, launching code): the shapes of Qwen3-4B and XLM-RoBERTa large, and the widest heads that we serve."""
    x, weight = empty(8, 2560), empty(2560)
    yield "norm", lambda: norm.rms_norm(x, weight, 1e-6)
    yield "norm of a sum", lambda: norm.rms_norm(x, weight, 1e-6, empty(8, 2560))
    yield "swiglu", lambda: swiglu.swiglu(empty(8, 2 * 9728))
    tokens = torch.empty(8, dtype=torch.int64, device="meta")
    yield (
        "inputs of a step",
        lambda: decode_inputs.spread(integers(5, 8), tokens, tokens, integers(8, 4), integers(8, 513), 16),
    )
    for dim, (heads, kv_heads) in HEADS[capability].items():
        yield from _attention(dim, heads, kv_heads, tokens)
    if capability >= 90:
        from lodger.runtime.kernels import chunk_attention_hopper as hopper

        query, keys, records = empty(8, 32, 128), empty(80, 8, 128), integers(8, 4)
        yield "chunks, keys end to end", lambda: hopper.attend(query, keys, keys, records, query, 0.1)
    rules, places = torch.empty(8, sampling.RULES, device="meta"), torch.empty(8, 2, dtype=torch.int64, device="meta")
    yield "a drawn token", lambda: sampling.draw(empty(8, 151_936), rules, places, tokens)
    yield "a token counted", lambda: sampling.count(tokens, places)
    rows = torch.empty(8, dtype=torch.int64, device="meta")
    yield "tokens forbidden", lambda: sampling.forbid(empty(8, 151_936), integers(8, 4748), rows)
    yield from _encoder(empty(1024))
    yield from _products(capability)


def _attention(dim: int, heads: int, kv_heads: int, slots: torch.Tensor) -> Iterator[tuple[str, Callable[[], Any]]]:
    cache, query = empty(36, 2, 100, 16, kv_heads, dim), empty(8, heads, dim)
    qkv = empty(8, (heads + 2 * kv_heads) * dim)
    angles = torch.empty(8, dim, dtype=torch.float32, device="meta")
    norms = (empty(dim), empty(dim)) if dim == 128 else None
    turned = partial(rotary.rotate_and_store, qkv, heads, angles, angles, norms, 1e-6, cache, 3, slots)
    yield f"rotary of {dim}", turned
    frequencies = torch.empty(dim // 2, dtype=torch.float32, device="meta")
    yield f"angles of {dim}", partial(rotary.angles, slots, frequencies, 1.0)
    yield f"store of {dim}", partial(store.store, cache, 3, slots, *qkv.view(8, -1, dim)[:, heads:].chunk(2, 1))
    yield f"gather of {dim}", lambda: gather.gather(cache, 3, integers(80))
    cuts = ((decode_shape, 1, None), (decode_shape, 4, 512), (chunk_shape, 1, None))
    for shape, splits, window in cuts if dim == 128 else cuts[1:]:
        tiles = paged_attention.Tiles(integers(8, 4), integers(8, 513), shape(heads // kv_heads, dim), splits)
        named = f"{shape.__name__} of {dim}, {splits} programs a tile, window {window}"
        attend = paged_attention.attend
        yield named, partial(attend, query, cache, 3, tiles, query, 0.1, window)
        if shape is decode_shape:
            turn = paged_attention.Turn(angles, angles, norms, 1e-6, slots)
            heads_of = qkv.view(8, -1, dim)
            yield f"{named}, turned", partial(attend, heads_of, cache, 3, tiles, query, 0.1, window, turn)


def _encoder(weight: torch.Tensor) -> Iterator[tuple[str, Callable[[], Any]]]:
    width, (x, residual) = len(weight), (empty(8, len(weight)) for _ in "xr")
    yield "layer norm", lambda: layer_norm.layer_norm(x, residual, weight, weight, 1e-5)
    tables = (empty(250_002, width), empty(8194, width), empty(1, width))
    yield "embeddings", lambda: embeddings.embed(integers(3, 8), tables, (weight, weight, 1e-5))
    yield "texts", lambda: encoder_attention.attend_texts(empty(8, 3 * width), 64, integers(8, 4), 0.125)


def _products(capability: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    for (rows, columns), counts in WEIGHTS[capability].items():
        weight, scale = empty(rows, columns, dtype=torch.int8), empty(rows, dtype=torch.float32)
        for count in counts:
            assert w8a16.worth(empty(count, columns), weight), "made dense, this would compile nothing"
            yield (
                f"int8 [{rows}, {columns}], {count} tokens",
                partial(w8a16.product, empty(count, columns), weight, scale),
            )
    yield "int8, 1 token", lambda: w8a16.product(empty(1, columns), weight, scale)
    yield "int8 made dense", lambda: w8a16.dequantised(weight, scale, empty(rows, columns))
    blocks = columns // 128  # groups of 128, as AWQ and GPTQ have them
    words, scales = integers(blocks, rows, 16), integers(blocks, rows)
    for count in (8, 128):
        yield f"int4, {count} tokens", partial(w4a16.product, empty(count, columns), words, scales)
    yield "int4 made dense", lambda: w4a16.dequantised(words, scales, 0, empty(rows, columns))
    for matrix in (one_token.Matrix(empty(rows, columns), None, None), one_token.Matrix(weight, scale, None)):
        kind = str(matrix.values.dtype)
        norm_ = empty(columns), 1e-6
        yield (
            f"{kind}, normed and gated, 1 token",
            partial(one_token.product, empty(1, columns), matrix, norm_, gated=True),
        )
        yield f"{kind}, gated, 8 tokens", partial(few_tokens.product, empty(8, columns), matrix, gated=True)
        yield f"{kind}, 32 tokens", partial(few_tokens.product, empty(32, columns), matrix)


def compiled(capability: int) -> Iterator[dict[str, Any]]:
    made: list[tuple[JITFunction[Any], Any]] = []
    run = JITFunction.run

    def only_compile(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        made.append((self, run(self, *args, grid=grid, warmup=True, **options)))

    for module in (w8a16, w4a16, few_tokens):
        module.processors = lambda device: PROCESSORS[capability]
    w8a16._is_hopper = lambda device: capability == 90
    driver.set_active(Chip(capability))
    JITFunction.run = only_compile
    seen = set()
    for case, launch in launches(capability):
        made.clear()
        launch()
        for kernel, binary in made:
            if binary.hash not in seen:  # several launches may share one
                seen.add(binary.hash)
                yield {"case": case, "kernel": f"{kernel.module}.{kernel.__name__}", **resources(binary)}


def resources(binary: Any) -> dict[str, int]:
    """Shared memory as Triton asks for it; registers, and bytes of a thread that did not fit into them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    spilled = used["STACK"] + used["LOCAL"]
    return {"shared": binary.metadata.shared, "registers": used["REG"], "spilled": spilled}


if __name__ == "__main__":
    print(json.dumps(list(compiled(int(sys.argv[1])))))
