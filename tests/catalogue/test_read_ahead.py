"""Weights are asked for before they are needed, and never at the price of what others have in RAM."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from lodger.catalogue.read_ahead import read_ahead

Memory = namedtuple("Memory", "available")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that the system was asked for."""
    sizes: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *how: sizes.append(os.fstat(file).st_size))
    return sizes


def test_all_weights_of_a_folder(tmp_path: Path, asked: list[int]) -> None:
    for number, size in enumerate((10, 20)):
        (tmp_path / f"model-{number}.safetensors").write_bytes(bytes(size))
    (tmp_path / "config.json").write_text("{}")
    thread = read_ahead(tmp_path)
    assert thread is not None
    thread.join()
    assert asked == [10, 20]


def test_not_where_ram_is_short_or_nothing_is_there(
    tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_ahead(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(150))
    assert read_ahead(tmp_path) is None
    assert not asked
