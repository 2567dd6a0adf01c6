"""On a GPU: texts that are computed beside chats are what they are alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_planned_grants import planned

from lodger.engines.native import NativeEngine
from lodger.plan import demand
from lodger.runtime.encoding import EncodeLane
from lodger.tasks import CompletionTask, EmbedTask, RerankTask, SamplingParams, StopRules

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda:0")
TEXTS = tuple("好 Hello " * (1 + n % 40) for n in range(300))


async def embedded(model: Any) -> np.ndarray[Any, Any]:
    found = await model.embed(EmbedTask(model="emb", inputs=TEXTS))
    return np.frombuffer(found.vectors, "<f4").copy()


async def scored(model: Any) -> np.ndarray[Any, Any]:
    return np.array((await model.rerank(RerankTask(model="rr", query="你好", documents=TEXTS))).scores)


async def said(model: Any, seed: int, begun: asyncio.Event) -> None:
    task = CompletionTask(
        model="chat",
        prompt="x " * (5 + seed),
        sampling=SamplingParams(temperature=0),
        stopping=StopRules(max_tokens=200, ignore_eos=True),
    )
    async for _ in model.generate(task):
        begun.set()


def test_all_at_once_find_what_each_finds_alone(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory that was planned for it, with every step launched from the device loop."""
    monkeypatch.setattr(demand, "BESIDE", 0)
    ran: list[str] = []
    step = EncodeLane.step_beside

    def noted(self: EncodeLane) -> None:
        ran.append(self.name)
        step(self)

    monkeypatch.setattr(EncodeLane, "step_beside", noted)
    engine = NativeEngine("cuda:0")
    folders = {"chat": (tiny("qwen3"), None), "emb": (tiny("bge-m3"), None), "rr": (tiny("bge-reranker"), None)}
    models = planned(CUDA, engine, folders)

    async def alone() -> list[Any]:
        return [await embedded(models["emb"]), await scored(models["rr"])]

    async def together() -> list[Any]:
        begun = [asyncio.Event() for _ in range(4)]
        chats = [asyncio.create_task(said(models["chat"], seed, event)) for seed, event in enumerate(begun)]
        await asyncio.gather(*(event.wait() for event in begun))
        found = await asyncio.gather(embedded(models["emb"]), scored(models["rr"]))
        await asyncio.gather(*chats)
        return found

    expected = asyncio.run(alone())
    assert not ran, "without chats they have all of the device"
    for _ in range(3):
        found = asyncio.run(together())
        assert np.abs(found[0] - expected[0]).max() < 5e-3
        assert np.abs(found[1] - expected[1]).max() < 5e-3
    assert {"emb", "rr"} <= set(ran)
    for model in models.values():
        model.close()
    engine.close()
