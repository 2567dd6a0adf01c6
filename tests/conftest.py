"""Fixtures that every package's tests may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Triton chooses when it is first imported, by whichever test that is: compiled, or interpreted where there is no GPU.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# A deadline measures the machine, not the code. Every run tries the same examples, so that a failure is of the change
# before it; `pytest -m hypothesis --hypothesis-profile=search` looks for new ones.
settings.register_profile("search", deadline=None)
settings.register_profile("lodger", deadline=None, derandomize=True)
settings.load_profile("lodger")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny("qwen3", num_hidden_layers=3)`: folder of a small random model, made once per session.

    Names: qwen3, qwen3-embedding, qwen3-reranker, qwen2, llama, bge-m3, bge-m3-heads, bge-reranker, minilm,
    gte-multilingual, gte-reranker. Do not change what is in the folder: copy it first.
    """
    import tiny as maker  # numpy and tokenizers, only when asked for

    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, Path] = {}

    def make(family: str, **overrides: Any) -> Path:
        key = f"{family} {sorted(overrides.items())}"
        if key not in made:
            write = getattr(maker, "make_" + family.replace("-", "_"))
            made[key] = write(root / str(len(made)) / family, **overrides)
        return made[key]

    return make


@pytest.fixture
def lodger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`lodger("plan", "--json")`: the installed command with a home and a working directory of its own."""
    monkeypatch.setenv("LODGER_HOME", str(tmp_path / "home"))
    for name in ("LODGER_ENDPOINT", "LODGER_API_KEY", "RAGFLOW_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("lodger")), *args]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False, input=given
        )

    return run
