"""The decoder made of our kernels computes what the plain one computes, whichever way its keys go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import far

from lodger.catalogue.inspect import inspect_folder
from lodger.runtime import families
from lodger.runtime.attention import paged
from lodger.runtime.attention.paged import DecodePlan, PagedPlan
from lodger.runtime.attention.sdpa import SdpaAttention
from lodger.runtime.context import attending
from lodger.runtime.decoder import DenseDecoder
from lodger.runtime.fused import FusedDecoder
from lodger.runtime.kernels.decode_inputs import spread
from lodger.runtime.kv import KVCache
from lodger.runtime.layers import Placement
from lodger.runtime.packed import PackedBatch, pack_items, pack_rows
from lodger.runtime.precision import precision
from lodger.runtime.weights import Checkpoint
from lodger.sched.step import Item, Row

Where = tuple[torch.device, torch.dtype]
BLOCK, PROCESSORS = 4, 4
NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Pair:
    """Both decoders with the same weights, each with a KV cache of its own."""

    def __init__(self, folder: Path, where: Where) -> None:
        self.facts = inspect_folder(folder)
        self.precision = precision(NAMES[where[1]], where[0])
        self.device = where[0]
        plain, fused = (self._decoder(cls) for cls in (DenseDecoder, FusedDecoder))
        self.decoders: tuple[Any, Any] = plain, fused
        self.caches = [KVCache(self.facts, 40, BLOCK, self.precision.compute, self.device) for _ in "ab"]

    def _decoder(self, cls: type[DenseDecoder]) -> DenseDecoder:
        model = families.build(self.facts)
        Checkpoint(Path(self.facts.path)).fill(model)
        return cls(model, Placement(self.device, self.precision, lambda size: None))

    @torch.inference_mode()
    def expected(self, batch: PackedBatch, *, cached: bool = True) -> torch.Tensor:
        plan = SdpaAttention(self.device).plan(batch, self.caches[0] if cached else None, causal=True)
        with attending(plan):
            hidden: torch.Tensor = self.decoders[0](batch)
        return hidden

    @torch.inference_mode()
    def found(self, batch: PackedBatch, plan: Any) -> torch.Tensor:
        with attending(plan):
            hidden: torch.Tensor = self.decoders[1](batch)
        return hidden

    def close(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        return far(found, expected) < self.precision.tolerance / 2


@pytest.fixture(params=["qwen3", "qwen2", "llama"])
def pair(request: pytest.FixtureRequest, tiny: Callable[..., Path], where: Where) -> Pair:
    return Pair(tiny(request.param), where)


def rows(counts: dict[int, tuple[int, int]]) -> list[Row]:
    """(tokens before, new tokens) of each sequence; its blocks lie in falling order."""
    return [
        Row(n, tuple((7 * n + 3 * at) % 250 + 5 for at in range(past, past + count)), past,
            tuple(range(39 - 10 * n, 29 - 10 * n, -1)), True)
        for n, (past, count) in counts.items()
    ]  # fmt: skip


def test_texts_without_a_cache(pair: Pair) -> None:
    batch = pack_items([Item(0, n, tuple(range(5, 5 + length))) for n, length in enumerate((5, 1, 13))], 0, pair.device)
    plan = SdpaAttention(pair.device).plan(batch, None, causal=True)
    assert pair.close(pair.found(batch, plan), pair.expected(batch, cached=False))


def test_chunks_then_single_tokens(pair: Pair) -> None:
    device, cache = pair.device, pair.caches[1]
    for counts in ({0: (0, 9), 1: (0, 3)}, {0: (9, 6), 1: (3, 1), 2: (0, 2)}, {0: (15, 1), 2: (2, 5)}):
        batch = pack_rows(rows(counts), BLOCK, device)
        expected = pair.expected(batch)
        fresh = SdpaAttention(device).plan(batch, cache, causal=True)  # stores keys that lie side by side
        assert pair.close(pair.found(batch, fresh), expected)
        cached = PagedPlan(batch, cache, device, PROCESSORS, flash=False)
        assert pair.close(pair.found(batch, cached), expected)


def test_of_large_steps_only_what_is_asked_for_goes_through_the_last_layer(
    tiny: Callable[..., Path], where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "LEAST_TRIMMED", 8)
    pair = Pair(tiny("qwen3"), where)
    steps = [((0, 2), {0: (0, 4), 1: (0, 3), 2: (0, 1)}), ((1,), {0: (4, 1), 1: (3, 6), 2: (1, 1)}), ((), {2: (2, 8)})]
    for wanted, counts in steps:
        batch = replace(pack_rows(rows(counts), BLOCK, pair.device), wanted=wanted)
        expected = pair.expected(batch)[[batch.offsets[n + 1] - 1 for n in wanted]]
        found = pair.found(batch, PagedPlan(batch, pair.caches[1], pair.device, PROCESSORS, flash=False))
        assert found.shape == expected.shape
        assert not wanted or pair.close(found, expected)
    assert far(pair.caches[1].tensor, pair.caches[0].tensor) < pair.precision.tolerance


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # rows of nobody hold whatever the memory held
def test_a_step_made_of_what_the_host_sends(pair: Pair) -> None:
    """Two rows of a bucket of four; one takes its token from where the last step has left it."""
    device, cache = pair.device, pair.caches[1]
    before = pack_rows(rows({0: (0, 9), 1: (0, 12)}), BLOCK, device)
    pair.expected(before)
    pair.found(before, SdpaAttention(device).plan(before, cache, causal=True))
    kept = cache.tensor.clone()
    step = rows({0: (9, 1), 1: (12, 1)})
    latest = torch.tensor([77, step[1].tokens[0]], device=device)
    table = torch.zeros(6, 10, dtype=torch.int32, device=device)
    lines = (4, 1)
    for line, row in zip(lines, step, strict=True):
        filled = row.start // BLOCK  # the entry of the newest block is the kernel's to write
        table[line, :filled] = torch.tensor(row.blocks[:filled])
    slots = [row.blocks[row.start // BLOCK] * BLOCK + row.start % BLOCK for row in step]
    sent = [step[0].tokens[0], -1, 0, 0, -1, 1, -1, -1, 9, 12, 0, 0, *slots, -1, -1, *lines, 0, 0]
    inputs = torch.tensor(sent, dtype=torch.int32, device=device).view(5, 4)
    tokens = torch.full((4,), 3, device=device)
    records = torch.full((4, 4), -7, dtype=torch.int32, device=device)

    spread(inputs, latest, tokens, records, table, BLOCK)
    assert tokens.tolist() == [step[0].tokens[0], step[1].tokens[0], 0, 0]
    assert records.tolist() == [[0, 1, 9, 4], [1, 1, 12, 1], [2, 0, 0, 0], [3, 0, 0, 0]]
    assert [table[line, row.start // BLOCK].item() for line, row in zip(lines, step, strict=True)] == [37, 26]
    assert not table[[0, 2, 3, 5]].any()
    plan = DecodePlan(cache.tensor, inputs[3], records, table, pair.decoders[1].heads, PROCESSORS)
    found = pair.found(PackedBatch(tokens, inputs[2], (0, 1, 2, 3, 4), slots=inputs[3]), plan)
    assert pair.close(found[:2], pair.expected(pack_rows(step, BLOCK, device)))
    untouched = torch.ones(cache.blocks * BLOCK, dtype=torch.bool)
    untouched[slots] = False
    assert torch.equal(cache.tensor.flatten(2, 3)[:, :, untouched], kept.flatten(2, 3)[:, :, untouched])
