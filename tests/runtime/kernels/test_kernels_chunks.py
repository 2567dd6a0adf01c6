"""A step of a few chunks, made of what the host sends into fixed places, computes what the plain decoder computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_kernels_fused import BLOCK, PROCESSORS, Pair, Where, rows

from lodger.runtime import chunk_graphs
from lodger.runtime.packed import pack_rows


class Called:
    """Instead of a captured graph: the launches themselves."""

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.replay = step


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rows of nobody hold whatever the memory held
def test_chunks_in_fixed_places(tiny: Callable[..., Path], where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_graphs, "captured", Called)
    monkeypatch.setattr(chunk_graphs, "SIZES", (8, 24))
    monkeypatch.setattr(chunk_graphs, "SEQUENCES", 3)
    pair = Pair(tiny("qwen3"), where)
    runner: Any = SimpleNamespace(
        backbone=pair.decoders[1], device=pair.device, facts=pair.facts, precision=pair.precision
    )
    decode: Any = SimpleNamespace(width=10, processors=PROCESSORS)
    graphs = chunk_graphs.ChunkGraphs(runner, pair.caches[1], decode)
    for counts in ({0: (0, 8)}, {0: (8, 5), 1: (0, 17), 2: (0, 1)}, {0: (13, 1), 2: (1, 3)}, {1: (17, 20)}):
        batch = pack_rows(rows(counts), BLOCK, pair.device)
        assert graphs.serves(batch)
        assert pair.close(graphs.run(batch), pair.expected(batch))
    assert not graphs.serves(pack_rows(rows({0: (0, 25)}), BLOCK, pair.device)), "too many tokens"
    decode.width = 4
    graphs = chunk_graphs.ChunkGraphs(runner, pair.caches[1], decode)
    assert not graphs.serves(pack_rows(rows({0: (0, 3)}), BLOCK, pair.device)), "a table too wide"
