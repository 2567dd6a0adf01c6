"""The context that a folder promises is the one that its model really has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import ModelProblem

Tiny = Callable[..., Path]


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("qwen3"), tmp_path / "m")


def context(folder: Path, **changes: Any) -> int:
    values = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(values))
    return inspect_folder(folder).context_length


QWEN_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


@pytest.mark.parametrize(
    ("longest", "rope", "expected"),
    [
        (262144, None, 262144),
        (40960, QWEN_YARN, 131072),  # the model card of Qwen3
        (32768, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),  # of Qwen2.5
        (32768, {"type": "yarn", "factor": 2}, 65536),
        (163840, {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163840),  # of DeepSeek
        (163840, {"type": "yarn", "factor": None, "original_max_position_embeddings": 4096}, 163840),
        (131072, LLAMA3, 131072),  # Llama-3.2
        (4096, {"type": "linear", "factor": 4.0}, 16384),
        (4096, {"type": "dynamic", "factor": 4.0}, 4096),
        (131072, {"type": "longrope", "original_max_position_embeddings": 4096}, 4096),
        (4096, {"rope_type": "default", "rope_theta": 1e6}, 4096),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_scaling_in_both_spellings(folder: Path, longest: int, rope: Any, expected: int, key: str) -> None:
    assert context(folder, max_position_embeddings=longest, **{key: rope}) == expected


def test_the_type_by_its_new_name_wins(folder: Path) -> None:
    rope = {"type": "linear", "rope_type": "default", "factor": 2.0}
    assert context(folder, rope_scaling=rope) == 512


def test_the_trained_length_may_stand_beside_the_scaling(folder: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 2.0}
    assert context(folder, rope_scaling=rope, original_max_position_embeddings=256) == 512


@pytest.mark.parametrize("rope", [QWEN_YARN, LLAMA3, {"rope_type": "yarn", "factor": 2.0}])
def test_the_trained_length_is_the_one_that_transformers_takes(folder: Path, rope: dict[str, Any]) -> None:
    from transformers import Qwen3Config

    config = Qwen3Config(max_position_embeddings=32768, rope_scaling=dict(rope))
    taken = config.rope_parameters
    trained = taken["original_max_position_embeddings"]
    scaled = trained * taken["factor"] if taken["rope_type"] == "yarn" else 32768
    assert context(folder, max_position_embeddings=32768, rope_scaling=rope) == scaled


def test_qwen25s_tokenizer_promises_more_than_its_positions(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 131072}))
    assert context(folder, max_position_embeddings=32768) == 32768
    assert context(folder, max_position_embeddings=32768, rope_scaling=QWEN_YARN) == 131072


def test_a_sliding_window_does_not_shorten_the_context(folder: Path) -> None:
    assert context(folder, use_sliding_window=True, sliding_window=64) == 512


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"type": "ntk", "factor": 2.0}, "rope scaling 'ntk', which is not served"),
        ({"type": ["yarn"]}, "not served"),
        ({"type": "linear"}, "factor is missing"),
        ({"type": "linear", "factor": 0.5}, "factor is '0.5'"),
        ({"type": "linear", "factor": "2"}, "factor is '2'"),
        ({"type": "linear", "factor": float("nan")}, "factor is 'nan'"),
        ({"type": "linear", "factor": float("inf")}, "factor is 'inf'"),
        ({"type": "linear", "factor": 1e9}, "factor is '1000000000.0'"),
        ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": -1}, "original_max_position_embeddings"),
        ("yarn", "rope_scaling is 'yarn', expected an object"),
    ],
)
def test_scaling_that_makes_no_sense_is_named(folder: Path, rope: Any, said: str) -> None:
    with pytest.raises(ModelProblem, match=said):
        context(folder, rope_scaling=rope)
