"""`lodger adopt FOLDER`: the guide's folder, with its scripts where somebody has kept them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lodger.adopt.document import write
from lodger.adopt.folder import launches_in, read_folder
from lodger.config import load_config
from lodger.errors import FolderMissing
from lodger.units import GIB

SCRIPT = """#!/bin/bash
BASE={base}
export MODELS=$BASE/models
pkill -f xinference
nohup xinference-local --host 0.0.0.0 --port 9997 > logs/x.log 2>&1 &
xinference launch --model-name bge-m3 --model-uid embed-1 --model-type embedding \\
    --model-engine transformers --model-path "$MODELS/bge-m3" --size-in-billions 0.6 --disable-virtual-env
# xinference launch --model-name commented-out
/opt/venv/bin/xinference launch -e http://localhost:9997 -n bge-reranker-v2-m3 -u rr -t rerank -en vllm \\
    -mp ${{MODELS}}/bge-reranker-v2-m3 --gpu-memory-utilization 0.2 --max-num-seqs 8 >> logs/rr.log 2>&1 &
"""


@pytest.fixture
def base(tmp_path: Path, tiny: Callable[..., Path]) -> Path:
    """models/ with the guide's three, beside the folders that the guide makes."""
    for name, family in {
        "Qwen3-4B-Instruct-2507": "qwen3", "bge-m3": "bge-m3", "bge-reranker-v2-m3": "bge-reranker",
    }.items():  # fmt: skip
        shutil.copytree(tiny(family), tmp_path / "models" / name)
    for name in ("modelscope_cache", "xinference", "logs"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_the_guides_folder_gives_the_guides_uids(base: Path) -> None:
    found = read_folder(base, card=None)
    assert {one.spec.uid: one.spec.kind for one in found.models} == {
        "qwen3-4b-chat-local": "chat", "bge-m3-local": "embedding", "bge-reranker-v2-m3-local": "rerank",
    }  # fmt: skip
    write(found, base / "lodger.yaml", over=False)
    assert all(Path(spec.path or "").is_dir() for spec in load_config(base / "lodger.yaml").models)


def test_launch_lines_of_scripts_win_with_their_uids_and_limits(base: Path) -> None:
    (base / "start.sh").write_text(SCRIPT.format(base=base))
    found = read_folder(base, card=80 * GIB)
    models = {one.spec.uid: one for one in found.models}
    assert set(models) == {"embed-1", "rr", "qwen3-4b-chat-local"}, "each folder once"
    assert models["embed-1"].spec.path == str(base / "models" / "bge-m3")
    assert models["rr"].spec.memory == 16 * GIB
    assert any("max_num_seqs has no effect" in note for note in models["rr"].notes)


def test_a_fraction_of_an_unknown_card_is_named(base: Path) -> None:
    (base / "start.sh").write_text(SCRIPT.format(base=base))
    reranker = next(one for one in read_folder(base, card=None).models if one.spec.uid == "rr")
    assert reranker.spec.memory is None
    assert any("gpu_memory_utilization 0.2" in note and "memory: SIZE" in note for note in reranker.notes)


def test_lines_are_read_as_a_shell_would() -> None:
    (one,) = launches_in("xinference launch -n Qwen3 -u q --n-gpu auto -ev A 1 -s 0_6 --replica=2 || exit 1\n")
    assert one == {
        "model_name": "Qwen3", "model_uid": "q", "n_gpu": "auto", "ev": "A", "model_size_in_billions": "0_6",
        "replica": "2",
    }  # fmt: skip
    assert list(launches_in("echo 'xinference launch is an \"unfinished quotation\n")) == []
    assert list(launches_in("say xinference launch --help\n")) == []


def test_a_folder_without_models_and_no_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(FolderMissing, match="no model"):
        read_folder(tmp_path, card=None)
    with pytest.raises(FolderMissing, match="no folder"):
        read_folder(tmp_path / "nowhere", card=None)


def test_a_damaged_folder_is_left_out_by_name(base: Path) -> None:
    (base / "models" / "bge-m3" / "config.json").write_text("{")
    found = read_folder(base, card=None)
    assert len(found.models) == 2
    assert "bge-m3" in found.left[0]
