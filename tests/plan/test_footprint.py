"""Formulas against numbers worked out by hand from published configurations."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from model_facts import BGE_M3, QWEN3_4B, RERANKER, SMOLLM2
from tiny import QWEN3_4B as SHAPE_OF_QWEN3_4B
from tiny import write_fake_folder

from lodger.budget import CAPTURED_STEP, SMALL_CAPTURED, decode_steps
from lodger.catalogue.inspect import inspect_folder
from lodger.device.view import DeviceView
from lodger.plan import footprint
from lodger.units import GIB, KIB, MIB

CPU = DeviceView(id="cpu", kind="cpu", name="RAM", total=16 * GIB, free=12 * GIB)
GPU = DeviceView(id="cuda:0", kind="cuda", name="A100", total=80 * GIB, free=80 * GIB, compute_capability=(8, 0))


def test_weights_are_parameters_times_itemsize() -> None:
    assert footprint.weights(QWEN3_4B, "bfloat16", GPU) / GIB == pytest.approx(7.49, abs=0.005)
    assert footprint.weights(BGE_M3, "float16", GPU) / GIB == pytest.approx(1.06, abs=0.005)
    assert footprint.weights(BGE_M3, "float32", CPU) == sum(BGE_M3.stored_bytes.values())


def test_kv_of_one_token() -> None:
    assert (
        footprint.kv_bytes_per_token(QWEN3_4B, "bfloat16", GPU) == 144 * KIB
    )  # 2 * 36 layers * 8 heads * 128 * 2 bytes
    assert footprint.kv_bytes_per_token(SMOLLM2, "float32", CPU) == 45 * KIB  # 2 * 30 * 3 * 64 * 4
    assert footprint.kv_bytes_per_token(BGE_M3, "float16", GPU) == 0
    assert footprint.kv_bytes_per_token(RERANKER, "float16", GPU) == 0


def test_float16_on_a_cpu_is_a_way_to_store_weights() -> None:
    # float16 weights with a second table of 49,152 x 576 to multiply with, and float32 in all that is computed
    assert footprint.weights(SMOLLM2, "float16", CPU) == 2 * (134_515_008 + 49_152 * 576)
    assert footprint.weights(SMOLLM2, "float16", CPU) < footprint.weights(SMOLLM2, "float32", CPU)
    assert footprint.weights(SMOLLM2, "float16", GPU) == 2 * 134_515_008
    assert footprint.kv_bytes_per_token(SMOLLM2, "float16", CPU) == 45 * KIB
    half, full = (
        footprint.activations(SMOLLM2, dtype, CPU, step_tokens=512, context=512, kv_tokens=512)
        for dtype in ("float16", "float32")
    )
    assert half == full


def test_activations_of_an_encoder_step() -> None:
    # 8,192 tokens of (2 * 1,024 + 4,096) numbers of 2 bytes, and by transformers' classes of (3 * 1,024 + 4 * 4,096)
    size = footprint.activations(BGE_M3, "float16", GPU, step_tokens=8192, context=8192, kv_tokens=0)
    assert size == 8192 * 6_144 * 2 == 96 * MIB
    other = msgspec.structs.replace(BGE_M3, model_type="new")
    assert footprint.activations(other, "float16", GPU, step_tokens=8192, context=8192, kv_tokens=0) == 304 * MIB
    heads = msgspec.structs.replace(BGE_M3, token_heads=("sparse",))
    assert footprint.activations(heads, "float16", GPU, step_tokens=8192, context=8192, kv_tokens=0) == 112 * MIB
    assert footprint.unfinished(BGE_M3, "float16", GPU, step_tokens=8192, sequences=256) == 8192 * 1024 * 2
    assert not footprint.unfinished(BGE_M3, "float32", CPU, step_tokens=8192, sequences=64)


def test_activations_of_a_decoder_step() -> None:
    size = footprint.activations(QWEN3_4B, "bfloat16", GPU, step_tokens=2048, context=8192, kv_tokens=8192)
    assert size == 2048 * (4 * 2560 + 3 * 9728 + 4 * 128) * 2 == 156 * MIB
    small = msgspec.structs.replace(QWEN3_4B, hidden_size=256, intermediate_size=512)
    size = footprint.activations(small, "bfloat16", GPU, step_tokens=16, context=8192, kv_tokens=8192)
    assert size == 32 * 151_936 * 2, "rows of logits, when the layers are done"


def test_chats_remember_their_tokens_between_steps() -> None:
    # 593.5 KiB each, of which three lie in a segment of 2 MiB
    size = footprint.unfinished(QWEN3_4B, "bfloat16", GPU, step_tokens=512, sequences=64)
    assert 64 * 2 * MIB // 3 - 64 * KIB < size <= 64 * 2 * MIB // 3
    wide = msgspec.structs.replace(QWEN3_4B, vocab_size=2**18 + 1)
    assert footprint.unfinished(wide, "bfloat16", GPU, step_tokens=512, sequences=3) == 3 * (MIB + 512)


def test_captured_steps() -> None:
    texts = footprint.CAPTURED_TEXTS
    size = footprint.captured(QWEN3_4B, "bfloat16", GPU, sequences=64, kv_tokens=8192)
    driver = len(decode_steps(64)) * CAPTURED_STEP
    assert size == 24 * MIB + 64 * 8192 // 16 * 4 + footprint.KEPT + driver, "18.5 MiB of logits and 2.5 of states"
    work = footprint.graphs(QWEN3_4B, "bfloat16", GPU, step_tokens=512, sequences=64)
    assert work == 40 * MIB + SMALL_CAPTURED, "512 * (4 * 2,560 + 3 * 9,728 + 4 * 128) numbers of 2 bytes are 39"
    small = msgspec.structs.replace(QWEN3_4B, hidden_size=256, intermediate_size=512)
    work = footprint.graphs(small, "bfloat16", GPU, step_tokens=512, sequences=64)
    assert 0 < work - SMALL_CAPTURED - footprint.CAPTURED_PARTS - 256 * (2 * 256 + 3 * 4096 + 5 * 1024) * 2 < 2 * MIB
    assert footprint.captured(BGE_M3, "float16", GPU, sequences=64, kv_tokens=0) == 11 * MIB
    for facts in (BGE_M3, msgspec.structs.replace(BGE_M3, token_heads=("sparse",))):
        work = footprint.graphs(facts, "float16", GPU, step_tokens=8192, sequences=64)
        assert 0 <= work - SMALL_CAPTURED - texts * (2 * 1024 + 4096) * 2 < 2 * MIB
    assert footprint.graphs(BGE_M3, "float16", GPU, step_tokens=512, sequences=64) == 6 * MIB + SMALL_CAPTURED
    for dtype, device in (("float32", GPU), ("bfloat16", CPU)):
        assert not footprint.captured(QWEN3_4B, dtype, device, sequences=64, kv_tokens=8192)
        assert not footprint.graphs(QWEN3_4B, dtype, device, step_tokens=512, sequences=64)


def test_texts_beside_chats() -> None:
    work, states, made = footprint.beside(BGE_M3, "float16", GPU)
    assert work == footprint.graphs(BGE_M3, "float16", GPU, step_tokens=8192, sequences=64)
    assert (states, made) == (10 * MIB, SMALL_CAPTURED), "4,224 * 1,024 numbers of 2 bytes, and small tensors"
    for changes, size in (({"pooling": "mean"}, 18), ({"token_heads": ("sparse",)}, 58)):
        found = footprint.beside(msgspec.structs.replace(BGE_M3, **changes), "float16", GPU)
        assert found == (work, states, size * MIB + SMALL_CAPTURED), "4,224 * 1,024 numbers of 4 or 14 bytes"
    assert footprint.beside(QWEN3_4B, "bfloat16", GPU) == footprint.beside(BGE_M3, "float32", CPU) == (0, 0, 0)


def test_tensors_of_several_models_leave_gaps_between_them() -> None:
    chats = [footprint.gaps(QWEN3_4B, "bfloat16", GPU, step_tokens=size) for size in (512, 1280, 8192)]
    assert chats == [8 * MIB, 20 * MIB, 20 * MIB]
    assert footprint.gaps(BGE_M3, "float16", GPU, step_tokens=8192) == 8 * MIB
    assert footprint.gaps(BGE_M3, "float32", CPU, step_tokens=8192) == 0


def test_the_driver_has_less_where_products_are_our_own() -> None:
    assert footprint.process(GPU, ()) - footprint.process(GPU, (), dense=False) == footprint.DENSE_KERNELS


def test_steps_are_captured_for_few_and_many_chats() -> None:
    assert decode_steps(1) == [1]
    assert decode_steps(16) == [1, 2, 4, 8, 16]
    assert decode_steps(90)[-3:] == [64, 80, 90]
    assert decode_steps(256)[-2:] == [224, 256]


def test_activations_of_a_decoder_step_with_torchs_own_attention() -> None:
    size = footprint.activations(QWEN3_4B, "float32", CPU, step_tokens=2048, context=8192, kv_tokens=8192)
    tokens, logits = 2048 * (3 * 2560 + 4 * 9728) * 4, 151_936 * (64 * 4 + 32 * 28)
    mask, gathered = 2048 * 8192 * (1 + 4), 2 * 2 * 8192 * 8 * 128 * 4
    assert size == tokens + logits + mask + gathered


def test_wide_attention_outweighs_a_narrow_feed_forward() -> None:
    narrow = msgspec.structs.replace(BGE_M3, intermediate_size=64)
    size = footprint.activations(narrow, "float32", CPU, step_tokens=100, context=100, kv_tokens=0)
    assert size == 100 * (3 + 6 + 6) * 1024 * 4


@pytest.mark.parametrize(
    ("facts", "stored", "capability", "chosen"),
    [
        (QWEN3_4B, {"bfloat16": 8}, (8, 0), "bfloat16"),
        (QWEN3_4B, {"float16": 8, "float32": 1}, (8, 0), "float16"),
        (QWEN3_4B, {"float32": 8}, (9, 0), "bfloat16"),
        (BGE_M3, {"float32": 8}, (8, 6), "float16"),
        (BGE_M3, {"bfloat16": 8}, (8, 6), "bfloat16"),
        (QWEN3_4B, {"bfloat16": 8}, (7, 5), "float16"),
        (QWEN3_4B, {"bfloat16": 8}, None, "bfloat16"),
    ],
)
def test_dtype_on_a_gpu(facts: object, stored: dict[str, int], capability: tuple[int, int] | None, chosen: str) -> None:
    device = msgspec.structs.replace(GPU, compute_capability=capability)
    assert footprint.choose_dtype(device, msgspec.structs.replace(facts, stored_bytes=stored), None) == chosen


def test_heads_are_float32_beside_a_model_in_any_precision() -> None:
    m3 = msgspec.structs.replace(BGE_M3, token_heads=("sparse", "colbert"))  # 1,025 and 1,024 * 1,025 parameters
    assert footprint.weights(m3, "float16", GPU) - footprint.weights(BGE_M3, "float16", GPU) == 2 * 1_050_625
    assert footprint.weights(m3, "float32", CPU) == footprint.weights(BGE_M3, "float32", CPU)


def test_a_decoder_that_encodes_has_no_logits_and_no_cache() -> None:
    embedder = msgspec.structs.replace(QWEN3_4B, kind="embedding", pooling="last", chat_template=False)
    reranker = msgspec.structs.replace(QWEN3_4B, kind="rerank", rerank_method="yes-no", chat_template=False)
    for facts in (embedder, reranker):
        assert footprint.kv_bytes_per_token(facts, "bfloat16", GPU) == 0
        size = footprint.activations(facts, "bfloat16", GPU, step_tokens=8192, context=8192, kv_tokens=0)
        assert size == 8192 * (4 * 2560 + 3 * 9728 + 4 * 128) * 2
    rows = footprint.weights(reranker, "bfloat16", GPU) - footprint.weights(embedder, "bfloat16", GPU)
    assert rows == 2 * 2560 * 4
    full = msgspec.structs.replace(embedder, stored_bytes={"float32": 8})
    assert footprint.choose_dtype(GPU, full, None) == "bfloat16"


def test_a_cpu_holds_the_largest_answer_and_float32_products_in_memory() -> None:
    size = {"step_tokens": 512, "context": 512, "kv_tokens": 0}
    m3 = msgspec.structs.replace(BGE_M3, token_heads=("sparse", "colbert"))
    dense = footprint.activations(BGE_M3, "float32", CPU, **size)
    assert footprint.activations(m3, "float32", CPU, **size) == dense + footprint.ANSWER
    embedder = msgspec.structs.replace(QWEN3_4B, kind="embedding")
    assert footprint.activations(embedder, "bfloat16", CPU, **size) == 512 * (3 * 2560 + 6 * 9728) * 2


def test_dtype_on_a_cpu_is_the_upper_bound_unless_asked() -> None:
    assert footprint.choose_dtype(CPU, QWEN3_4B, None) == "float32"
    assert footprint.choose_dtype(CPU, QWEN3_4B, "bfloat16") == "bfloat16"


def test_the_worker_itself() -> None:
    assert footprint.process(GPU, (151_936, 250_002)) == (529 + 330 + 5) * MIB + 3 * 8320 * KIB
    hopper = msgspec.structs.replace(GPU, compute_capability=(9, 0))
    assert footprint.process(hopper, ()) - footprint.process(GPU, ()) == 3 * (32 * MIB - 8320 * KIB)
    assert footprint.process(CPU, ()) < footprint.process(CPU, (151_936,)) < 600 * MIB


def test_the_facts_here_are_what_a_folder_of_that_shape_says(tmp_path: Path) -> None:
    found = inspect_folder(write_fake_folder(tmp_path / "qwen", "qwen3", "BF16", **SHAPE_OF_QWEN3_4B))
    for fact in ("parameters", "stored_bytes", "layers", "kv_heads", "head_dim", "intermediate_size", "vocab_size"):
        assert getattr(found, fact) == getattr(QWEN3_4B, fact), fact


def test_keys_that_lie_end_to_end_are_part_of_a_decoder_step() -> None:
    """Of a model whose keys are as wide as its queries they are more than the feed-forward takes."""
    wide = msgspec.structs.replace(QWEN3_4B, kv_heads=32, attention_heads=32)
    tokens = 1024
    size = footprint.activations(wide, "bfloat16", GPU, step_tokens=tokens, context=8192, kv_tokens=8192)
    assert size == (tokens * (2 * 2560 + 5 * 4096 + 4 * 128) + footprint.GATHERED) * 2
