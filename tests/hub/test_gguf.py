"""A GGUF file becomes a model folder that says and computes the same, once, and never by halves."""

from __future__ import annotations

import fcntl
import json
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizers
from tokenizers import Tokenizer

from lodger.catalogue.inspect import inspect_folder
from lodger.catalogue.safetensors_header import read_header
from lodger.errors import ModelProblem
from lodger.hub import gguf, packages
from lodger.hub.gguf_folder import hf_name

HIDDEN, INNER, HEADS, KV_HEADS, HEAD = 64, 96, 4, 2, 16
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8


def stored_f32(rows: np.ndarray) -> bytes:
    return rows.astype("<f4").tobytes()


def stored_q4_1(rows: np.ndarray) -> bytes:
    """As ggml's quantize_row_q4_1: blocks of 32, minimum and a sixteenth of the range."""
    out = b""
    for block in rows.reshape(-1, 32):
        low, step = float(block.min()), float(block.max() - block.min()) / 15
        digits = np.clip(np.rint((block - low) / step), 0, 15).astype(np.uint8)
        out += struct.pack("<ee", step, low) + bytes(digits[:16] | digits[16:] << 4)
    return out


def stored_q8_0(rows: np.ndarray) -> bytes:
    out = b""
    for block in rows.reshape(-1, 32):
        step = float(np.abs(block).max()) / 127
        out += struct.pack("<e", step) + np.rint(block / step).astype(np.int8).tobytes()
    return out


STORE = {F32: stored_f32, F16: lambda rows: rows.astype("<f2").tobytes(), Q4_1: stored_q4_1, Q8_0: stored_q8_0}


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(item: Any) -> bytes:
    """GGUF's type number and bytes of a Python value."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    inner = [value(entry) for entry in item]
    return struct.pack("<I", 9) + inner[0][:4] + struct.pack("<Q", len(inner)) + b"".join(entry[4:] for entry in inner)


def gguf_bytes(metadata: dict[str, Any], tensors: dict[str, tuple[int, np.ndarray]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(string(key) + value(item) for key, item in metadata.items())
    body = b""
    for name, (kind, rows) in tensors.items():
        body += b"\0" * (-len(body) % 32)
        dims = struct.pack(f"<{rows.ndim}Q", *reversed(rows.shape))
        head += string(name) + struct.pack("<I", rows.ndim) + dims + struct.pack("<IQ", kind, len(body))
        body += STORE[kind](rows)
    return head + b"\0" * (-len(head) % 32) + body


def metadata() -> dict[str, Any]:
    """What llama.cpp's converter writes for a SmolLM2 of this size."""
    model = json.loads(tiny_tokenizers.smollm().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 512,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 100000.0,
        "llama.rope.dimension_count": HEAD,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if number < 3 else 1 for number in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }


def tensors(vocabulary: int) -> dict[str, tuple[int, np.ndarray]]:
    rng = np.random.default_rng(7)
    shapes = {
        "token_embd.weight": (Q8_0, (vocabulary, HIDDEN)),
        "output_norm.weight": (F32, (HIDDEN,)),
        "blk.0.attn_norm.weight": (F32, (HIDDEN,)),
        "blk.0.ffn_norm.weight": (F32, (HIDDEN,)),
        "blk.0.attn_q.weight": (Q4_1, (HEADS * HEAD, HIDDEN)),
        "blk.0.attn_k.weight": (Q4_1, (KV_HEADS * HEAD, HIDDEN)),
        "blk.0.attn_v.weight": (Q4_1, (KV_HEADS * HEAD, HIDDEN)),
        "blk.0.attn_output.weight": (F16, (HIDDEN, HEADS * HEAD)),
        "blk.0.ffn_gate.weight": (Q4_1, (INNER, HIDDEN)),
        "blk.0.ffn_up.weight": (Q8_0, (INNER, HIDDEN)),
        "blk.0.ffn_down.weight": (Q4_1, (HIDDEN, INNER)),
    }
    return {name: (kind, rng.normal(size=shape).astype(np.float32)) for name, (kind, shape) in shapes.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    keys = metadata()
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(keys, tensors(len(keys["tokenizer.ggml.tokens"]))))
    return path


def loaded(folder: Path) -> dict[str, np.ndarray]:
    """Tensors of a folder in float32."""
    data = (folder / "model.safetensors").read_bytes()
    return {
        tensor.name: (np.frombuffer(data, "<u2", tensor.elements, tensor.offset).astype(np.uint32) << 16)
        .view(np.float32)
        .reshape(tensor.shape)
        for tensor in read_header(folder / "model.safetensors")
    }


def test_the_folder_is_a_normal_model(source: Path, tmp_path: Path) -> None:
    gguf.convert(source, tmp_path / "made")
    facts = inspect_folder(tmp_path / "made")
    assert (facts.kind, facts.architecture, facts.context_length) == ("chat", "LlamaForCausalLM", 512)
    assert (facts.layers, facts.hidden_size, facts.intermediate_size) == (1, HIDDEN, INNER)
    assert (facts.attention_heads, facts.kv_heads, facts.head_dim) == (HEADS, KV_HEADS, HEAD)
    assert facts.tied_embeddings
    assert facts.eos_token_ids == (2,)
    assert list(facts.stored_bytes) == ["bfloat16"]
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 100000.0)


def test_weights_are_the_files_numbers_under_transformers_names(source: Path, tmp_path: Path) -> None:
    gguf.convert(source, tmp_path / "made")
    made = loaded(tmp_path / "made")
    original = tensors(made["model.embed_tokens.weight"].shape[0])
    assert set(made) == {hf_name(name) for name in original}
    for name, (kind, rows) in original.items():
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            continue
        step = {F32: 0.0, F16: 0.001, Q8_0: 1 / 127, Q4_1: 1 / 15}[kind] * float(np.ptp(rows))
        np.testing.assert_allclose(made[hf_name(name)], rows, rtol=2**-8, atol=step)


@pytest.mark.parametrize(("name", "heads"), [("q", HEADS), ("k", KV_HEADS)])
def test_rotated_rows_come_back_to_transformers_order(source: Path, tmp_path: Path, name: str, heads: int) -> None:
    gguf.convert(source, tmp_path / "made")
    made = loaded(tmp_path / "made")[f"model.layers.0.self_attn.{name}_proj.weight"]
    vocabulary = json.loads((tmp_path / "made" / "config.json").read_text())["vocab_size"]
    _, rows = tensors(vocabulary)[f"blk.0.attn_{name}.weight"]
    for head in range(heads):
        for pair in range(HEAD // 2):  # GGUF has rows 2i and 2i+1 where transformers has i and i + HEAD/2
            for half in (0, 1):
                wanted = rows[head * HEAD + 2 * pair + half]
                np.testing.assert_allclose(made[head * HEAD + pair + half * HEAD // 2], wanted, rtol=2**-8, atol=0.4)


def test_the_tokenizer_is_the_same(source: Path, tmp_path: Path) -> None:
    gguf.convert(source, tmp_path / "made")
    made, original = Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json")), tiny_tokenizers.smollm()
    for text in ("What is the capital of France?", "你好，Xinference 2026", "<|im_start|>user\nhi<|im_end|>\n  x"):
        ids = made.encode(text).ids
        assert ids == original.encode(text).ids
        assert made.decode(ids, skip_special_tokens=False) == text
    config = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")


def test_an_output_projection_of_its_own_unties_the_embedding(tmp_path: Path) -> None:
    keys = metadata()
    parts = tensors(len(keys["tokenizer.ggml.tokens"]))
    parts["output.weight"] = parts["token_embd.weight"]
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(keys, parts))
    gguf.convert(tmp_path / "m.gguf", tmp_path / "made")
    assert not inspect_folder(tmp_path / "made").tied_embeddings
    assert "lm_head.weight" in loaded(tmp_path / "made")


def test_bfloat16_rounds_to_nearest_and_halfway_to_even() -> None:
    def bits(number: int) -> np.ndarray:
        return np.array([number], np.uint32).view(np.float32)

    cases = {0x3F808000: 0x3F80, 0x3F818000: 0x3F82, 0x3F808001: 0x3F81, 0x3F807FFF: 0x3F80, 0xBF80C000: 0xBF81}
    for single, half in cases.items():
        assert int(gguf.to_bfloat16(bits(single))[0]) == half


def damage(source: Path, change: str) -> None:
    keys, data = metadata(), source.read_bytes()
    parts = tensors(len(keys["tokenizer.ggml.tokens"]))
    if change == "magic":
        data = b"GGML" + data[4:]
    elif change == "version":
        data = data[:4] + struct.pack("<I", 9) + data[8:]
    elif change == "head":
        data = data[:3000]
    elif change == "tail":
        data = data[:-1]
    elif change == "architecture":
        data = gguf_bytes({**keys, "general.architecture": "mamba"}, parts)
    elif change == "missing":
        del keys["llama.block_count"]
        data = gguf_bytes(keys, parts)
    elif change == "tensor":
        data = gguf_bytes(keys, {**parts, "blk.0.attn_q.bias": parts["output_norm.weight"]})
    elif change == "type":
        data = data.replace(string("output_norm.weight") + struct.pack("<IQI", 1, HIDDEN, F32),
                            string("output_norm.weight") + struct.pack("<IQI", 1, HIDDEN, 12))  # fmt: skip
    elif change == "infinite":
        data = gguf_bytes(keys, {**parts, "output_norm.weight": (F32, np.full(HIDDEN, np.inf, np.float32))})
    source.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("magic", "no GGUF file"),
        ("version", "no GGUF file"),
        ("head", "head is damaged"),
        ("tail", "cut short"),
        ("architecture", "It holds .*mamba"),
        ("missing", "It lacks 'llama.block_count'"),
        ("tensor", "blk.0.attn_q.bias is no tensor of a Llama"),
        ("type", "output_norm.weight is of GGML type 12"),
        ("infinite", "output_norm.weight holds numbers that are not finite"),
    ],
)
def test_a_file_that_cannot_be_converted_leaves_no_folder(source: Path, tmp_path: Path, change: str, said: str) -> None:
    damage(source, change)
    with pytest.raises(ModelProblem, match=said):
        gguf.convert(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_killed_conversion_leaves_no_folder_and_the_next_cleans_up(source: Path, tmp_path: Path) -> None:
    made, partial = tmp_path / "made", tmp_path / ".made.partial"
    command = [sys.executable, "-m", "lodger.hub.gguf", str(packages._locate("SmolLM2-135M-Instruct")), str(made)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert float(child.stdout.readline()) < 0.1  # the first of 272 tensors is written
        child.kill()
    assert partial.exists()
    assert not made.exists()
    gguf.convert(source, made)
    assert not partial.exists()
    assert inspect_folder(made).layers == 1


def test_the_second_of_two_waits_and_finds_the_folder(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with (tmp_path / ".made.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=gguf.convert, args=(source, made))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # it waits
        made.mkdir()
        (made / "config.json").write_text("the first one's")
    second.join(30)
    assert (made / "config.json").read_text() == "the first one's"
