"""The attention backends of a GPU equal float32 SDPA, and hand over what they do not serve."""

from __future__ import annotations

import pytest
import torch
from attention_cases import LAYER, TOLERANCE, Case, far

from lodger.runtime import attention

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
@pytest.mark.parametrize("backend", ["varlen", "paged"])
def test_float32_is_left_to_sdpa(backend: str) -> None:
    for case in (ENCODER["ragged"], DECODER["fresh-beside-chunks"]):
        built = case.build(CUDA, torch.float32)
        expected = built.expected()
        plan = attention.open_backend(backend, CUDA).plan(built.batch, built.cache, causal=case.causal)
        assert far(plan.attend(LAYER, *built.packed), expected) < 1e-6


def test_a_cpu_attends_through_sdpa() -> None:
    assert type(attention.choose(torch.device("cpu"))).__name__ == "SdpaAttention"
