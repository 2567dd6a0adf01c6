"""One server for all programs: the demo, and a small random model that is made to call tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from installed import installed

Tiny = Callable[..., Path]


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Iterator[dict[str, str]]:
    """What a program is told: the address, uids by what they are for, and a model folder to launch."""
    with installed(tmp_path_factory.mktemp("clients")) as lodger:
        lodger.ok("up", "--demo", "-d", "--port", "0", timeout=300)
        folder = tiny("qwen3", max_position_embeddings=32_768)
        words = ("--model-path", str(folder), "--model-uid", "tiny-qwen3", "--context-length", "4096")
        lodger.ok("launch", *words, timeout=300)
        yield {
            "url": lodger.address,
            "chat": "demo-chat",
            "embedding": "demo-embedding",
            "rerank": "demo-rerank",
            "tools": "tiny-qwen3",
            "folder": str(tiny("bge-m3")),
        }
