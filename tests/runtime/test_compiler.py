"""Triton's hash of itself is asked for ahead of the first kernel, and only where kernels run."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from lodger.runtime import compiler

CUDA = torch.device("cuda:0")


def test_it_is_computed_once_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(compiler, "runs_kernels", lambda device: True)
    for name in ("triton", "triton.runtime"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))  # type: ignore[arg-type]
    cache = SimpleNamespace(triton_key=lambda: asked.append("key"))
    monkeypatch.setitem(sys.modules, "triton.runtime.cache", cache)  # type: ignore[arg-type]
    thread = compiler.begin(CUDA)
    assert thread is not None
    thread.join()
    assert asked == ["key"]
    monkeypatch.setitem(sys.modules, "triton.runtime.cache", SimpleNamespace())  # type: ignore[arg-type]
    thread = compiler.begin(CUDA)
    assert thread is not None
    thread.join()


def test_a_cpu_needs_none_of_it() -> None:
    assert compiler.begin(torch.device("cpu")) is None
