"""Folders of random weights in the shapes of published models, written as fast as RAM takes them."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
import torch

from bench.gpu.parts import SHARED
from lodger.catalogue.safetensors_header import StoredTensor, read_folder

NAMES = ("chat", "emb", "rr")
SHARDS = 4  # files of the chat model: each is written, and read, beside the others
_BLOCK = 2**24 - 3  # numbers; rows of a matrix with more of them begin at other places of the block


def write_folders(place: Path, **changes: Any) -> dict[str, Path]:
    """A chat model of Qwen3-4B's shape, and an embedding and a rerank model of XLM-RoBERTa-large's.

    Args:
        changes: of all shapes, as config.json has them.
    """
    chat, text = {**tiny.QWEN3_4B, **changes}, {**tiny.XLM_R_LARGE, **changes}
    folders = {
        "chat": tiny.write_fake_folder(place / "chat", "qwen3", "BF16", shards=SHARDS, **chat),
        "emb": tiny.write_fake_folder(place / "emb", "bge-m3", "F16", **text),
        "rr": tiny.write_fake_folder(place / "rr", "bge-reranker", "F16", **text),
    }
    write_weights(*folders.values())
    return folders


@contextmanager
def full_size() -> Iterator[dict[str, Path]]:
    """`write_folders` in RAM: those of a whole run, which the first part that needs them writes, or own ones."""
    if SHARED in os.environ:
        yield _written(Path(os.environ[SHARED]))
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        yield write_folders(Path(place))


def _written(place: Path) -> dict[str, Path]:
    done, folders = place / "done", {name: place / name for name in NAMES}
    if not done.exists():
        for folder in folders.values():  # of a part that was ended meanwhile
            shutil.rmtree(folder, ignore_errors=True)
        write_folders(place)
        done.touch()
    return folders


def write_weights(*folders: Path) -> None:
    """Random numbers as published models have them: vectors near 1, matrices near 0. Matrices have the same ones, each
    from another place on."""
    block = torch.randn(_BLOCK) * 0.02
    halves = {name: block.to(getattr(torch, name)) for name in ("bfloat16", "float16")}
    files = [
        (folder / name, list(tensors))
        for folder in folders
        for name, tensors in itertools.groupby(
            sorted(read_folder(folder).values(), key=lambda tensor: (tensor.file, tensor.offset)),
            key=lambda tensor: tensor.file,
        )
    ]
    with ThreadPoolExecutor(len(files)) as pool:
        list(pool.map(lambda file: _fill(file[0], file[1], halves), files))


def _fill(path: Path, tensors: list[StoredTensor], halves: dict[str, torch.Tensor]) -> None:
    with path.open("r+b") as file:
        for number, tensor in enumerate(tensors):
            at = tensor.offset
            for piece in _pieces(tensor, halves[tensor.dtype], number):
                at += os.pwrite(file.fileno(), piece.view(torch.uint8).numpy().data, at)


def _pieces(tensor: StoredTensor, block: torch.Tensor, number: int) -> Iterator[torch.Tensor]:
    if len(tensor.shape) == 1:
        yield block[: tensor.elements] + 1
        return
    left, start = tensor.elements, number * 40_503 % (len(block) // 2)
    while left:
        piece = block[start : start + left]
        yield piece
        left, start = left - len(piece), 0
