"""The attention backends of a GPU equal float32 SDPA, and hand over what they do not serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attention_cases import LAYER, TOLERANCE, Case, far

from lodger import toolchain
from lodger.catalogue.inspect import inspect_folder
from lodger.runtime import attention
from lodger.runtime.kv import KVCache
from lodger.runtime.loading import load_runner
from lodger.runtime.packed import pack_items, pack_rows
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.sched.step import Item, Row
from lodger.units import GIB

CUDA = torch.device("cuda:0")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
ENCODER = {
    "equal": Case((24, 24, 24), heads=4, kv_heads=4, causal=False),
    "ragged": Case((5, 300, 1, 77, 1_000), heads=16, kv_heads=16, causal=False),
    "one": Case((513,), heads=4, kv_heads=4, causal=False),
    "causal": Case((70, 33, 1), heads=4, kv_heads=4),
    "causal-grouped": Case((70, 333, 1), heads=16, kv_heads=4, head_dim=128),
    "causal-window": Case((70, 333, 1), heads=14, kv_heads=2, window=24),
    "head-80": Case((70, 33, 1), heads=4, kv_heads=4, head_dim=80, causal=False),
    "head-96": Case((70, 33, 1), heads=4, kv_heads=4, head_dim=96),
    "head-256": Case((70, 33, 1), heads=4, kv_heads=1, head_dim=256),
    "head-32": Case((70, 33, 1), heads=12, kv_heads=12, head_dim=32, causal=False),
    "head-36": Case((70, 33, 1), heads=4, kv_heads=4, head_dim=36, causal=False),
    "head-512": Case((70, 33, 1), heads=4, kv_heads=4, head_dim=512),
}
DECODER = {
    "fresh": Case((70, 33, 1), (0, 0, 0)),
    "fresh-window": Case((70, 33, 1), (0, 0, 0), window=20),
    "decode": Case((1, 1, 1), (4, 40, 1_133), heads=32, kv_heads=8, head_dim=128),
    "decode-window": Case((1, 1), (4, 700), window=33),
    "chunks": Case((640, 17), (48, 3_000), heads=32, kv_heads=8, head_dim=128),
    "long": Case((513, 64, 100, 33, 1), (1_000, 31, 4_097, 80, 99), heads=32, kv_heads=8, head_dim=128),
    "long-window": Case((513, 64, 100), (1_000, 0, 4_097), heads=32, kv_heads=8, head_dim=128, window=200),
    "long-alone": Case((2_048,), (3_001,), heads=32, kv_heads=8, head_dim=128),
    "long-no-groups": Case((300, 129, 128), (7, 0, 0), heads=8, kv_heads=8, head_dim=128),
    "long-groups-of-16": Case((300, 129), (7, 0), heads=32, kv_heads=2, head_dim=128),
    "long-groups-of-7": Case((300, 129), (7, 0), heads=28, kv_heads=4, head_dim=128),
    "fresh-beside-chunks": Case((40, 65, 33, 1, 1, 9), (0, 64, 0, 0, 80, 0)),
    "fresh-beside-chunks-window": Case((40, 65, 33, 1, 1, 9), (0, 64, 0, 0, 80, 0), window=17),
    "head-36": Case((1, 20), (30, 40), head_dim=36),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ENCODER)
@pytest.mark.parametrize("backend", ["varlen", "paged"])
def test_whole_texts(backend: str, name: str, dtype: str) -> None:
    built = ENCODER[name].build(CUDA, DTYPES[dtype])
    plan = attention.open_backend(backend, CUDA).plan(built.batch, None, causal=built.case.causal)
    for _ in range(2):  # a second layer attends through the same plan
        assert far(plan.attend(LAYER, *built.packed), built.expected()) < TOLERANCE[DTYPES[dtype]]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DECODER)
@pytest.mark.parametrize("backend", ["varlen", "paged"])
def test_sequences_over_a_cache(backend: str, name: str, dtype: str) -> None:
    built = DECODER[name].build(CUDA, DTYPES[dtype])
    assert built.cache is not None
    expected = built.expected()
    if backend == "paged" and name != "head-36":
        built.forget_what_no_sequence_owns()
    plan = attention.open_backend(backend, CUDA).plan(built.batch, built.cache, causal=True)
    for _ in range(2):
        assert far(plan.attend(LAYER, *built.packed), expected) < TOLERANCE[DTYPES[dtype]]


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in DECODER if name.startswith("long")])
def test_long_chunks_by_torch_where_another_kernel_would_serve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lodger.runtime.attention import paged

    monkeypatch.setattr(paged, "_our_flash", lambda query, keys: False)
    built = DECODER[name].build(CUDA, torch.bfloat16)
    assert built.cache is not None
    plan = attention.open_backend("paged", CUDA).plan(built.batch, built.cache, causal=True)
    assert far(plan.attend(LAYER, *built.packed), built.expected()) < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["varlen", "paged"])
def test_float32_is_left_to_sdpa(backend: str) -> None:
    for case in (ENCODER["ragged"], DECODER["fresh-beside-chunks"]):
        built = case.build(CUDA, torch.float32)
        expected = built.expected()
        plan = attention.open_backend(backend, CUDA).plan(built.batch, built.cache, causal=case.causal)
        assert far(plan.attend(LAYER, *built.packed), expected) < 1e-6


def loaded(folder: Path, dtype: str) -> Runner:
    """With its self-test passed, through the backend that a GPU gets."""
    runner = load_runner(inspect_folder(folder), GIB, [precision(dtype, CUDA)], CUDA, lambda _: None)
    assert type(runner.attention).__name__ == "PagedAttention"
    return runner


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_a_decoder_computes_what_it_does_with_sdpa(family: str, dtype: str, tiny: Callable[..., Path]) -> None:
    runner = loaded(tiny(family), dtype)
    twin = replace(runner, attention=attention.open_backend("sdpa", CUDA))
    cache, other = (KVCache(runner.facts, 60, 16, runner.precision.compute, CUDA) for _ in "ab")
    tokens = torch.randint(3, runner.facts.vocab_size, (3, 300)).tolist()
    done = [0, 0, 0]
    for counts in ((40, 200, 0), (1, 33, 0), (1, 1, 120), (1, 1, 1)):
        rows = [
            Row(n, tuple(own[start : start + count]), start, tuple(range(59 - 20 * n, 39 - 20 * n, -1)), True)
            for n, (own, start, count) in enumerate(zip(tokens, done, counts, strict=True))
            if count
        ]
        done = [start + count for start, count in zip(done, counts, strict=True)]
        batch = pack_rows(rows, 16, CUDA)
        assert far(runner.hidden(batch, cache), twin.hidden(batch, other)) < runner.precision.tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["bge-m3", "minilm"])
def test_an_encoder_computes_what_it_does_with_sdpa(family: str, dtype: str, tiny: Callable[..., Path]) -> None:
    runner = loaded(tiny(family), dtype)
    texts = [torch.randint(3, runner.facts.vocab_size, (count,)).tolist() for count in (7, 60, 1, 33)]
    batch = pack_items([Item(n, 0, tuple(t)) for n, t in enumerate(texts)], runner.facts.position_offset, CUDA)
    twin = replace(runner, attention=attention.open_backend("sdpa", CUDA))
    assert far(runner.hidden(batch), twin.hidden(batch)) < runner.precision.tolerance


@pytest.mark.parametrize(
    ("capability", "lacking", "chosen"),
    [((7, 5), [], "sdpa"), ((8, 0), [], "paged"), ((9, 0), [], "paged"), ((8, 6), ["a C compiler"], "varlen")],
)
def test_a_gpu_gets_what_it_and_the_machine_can_run(
    capability: tuple[int, int], lacking: list[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(toolchain, "missing", lambda: lacking)
    monkeypatch.setattr(attention, "open_backend", lambda name, device: name)
    assert attention.choose(CUDA) == chosen


def test_a_cpu_attends_through_sdpa() -> None:
    assert type(attention.choose(torch.device("cpu"))).__name__ == "SdpaAttention"


def test_what_kernels_need_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name, scheme: "/nowhere")
    assert len(toolchain.missing()) == 3
