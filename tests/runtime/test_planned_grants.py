"""What the plan grants is enough: every model loads and answers inside its own grant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lodger.catalogue.identify import complete
from lodger.catalogue.inspect import inspect_folder
from lodger.device.view import DeviceView
from lodger.engines.base import LoadRequest
from lodger.engines.native import NativeEngine
from lodger.plan.planner import plan
from lodger.plan.values import Candidate
from lodger.spec import ModelSpec
from lodger.tasks import CompletionTask, EmbedOutput, EmbedTask, Kind, RerankTask, StopRules
from lodger.units import GIB


def view(device: torch.device) -> DeviceView:
    kind = "cuda" if device.type == "cuda" else "cpu"
    return DeviceView(id=str(device), kind=kind, name="card", total=80 * GIB, free=14 * GIB, compute_capability=(9, 0))


def planned(device: torch.device, engine: NativeEngine, folders: dict[str, tuple[Path, Kind | None]]) -> dict[str, Any]:
    """Models by uid, loaded inside what the plan grants each."""
    wanted = []
    for uid, (folder, kind) in folders.items():
        facts = complete(inspect_folder(folder, kind), None)
        wanted.append(Candidate(ModelSpec(uid=uid, path=str(folder)), facts))
    granted = {model.uid: model for model in plan(view(device), wanted).models}
    models = {}
    for candidate in wanted:
        grant = granted[candidate.spec.uid]
        request = LoadRequest(
            spec=candidate.spec,
            facts=candidate.facts,
            budget=grant.budget,
            device=str(device),
            dtype=grant.dtype if device.type == "cuda" else None,
        )
        models[candidate.spec.uid] = engine.load(request, lambda _: None)
    return models


def test_three_models_load_and_answer_inside_what_was_planned(device: torch.device, tiny: Callable[..., Path]) -> None:
    engine = NativeEngine(str(device))
    folders = {"chat": tiny("qwen3"), "emb": tiny("bge-m3"), "rr": tiny("bge-reranker")}
    models = planned(device, engine, {uid: (folder, None) for uid, folder in folders.items()})

    async def ask() -> None:
        text = "你好，Xinference " * 20
        stopping = StopRules(max_tokens=4, ignore_eos=True)
        deltas = [
            d async for d in models["chat"].generate(CompletionTask(model="chat", prompt=text, stopping=stopping))
        ]
        assert deltas[-1].usage is not None
        assert deltas[-1].usage.completion_tokens == 4
        assert (await models["emb"].embed(EmbedTask(model="emb", inputs=(text,) * 32))).count == 32
        scores = (await models["rr"].rerank(RerankTask(model="rr", query="你好", documents=(text,) * 32))).scores
        assert len(scores) == 32

    asyncio.run(ask())
    for model in models.values():
        model.close()
    engine.close()


def test_encoders_of_every_kind_load_and_answer_inside_what_was_planned(
    device: torch.device, tiny: Callable[..., Path]
) -> None:
    engine = NativeEngine(str(device))
    m3, decoder = tiny("bge-m3-heads"), tiny("qwen3-embedding")
    folders: dict[str, tuple[Path, Kind | None]] = {
        "m3": (m3, None),
        "late": (m3, "rerank"),
        "emb": (decoder, None),
        "cosine": (decoder, "rerank"),
        "asked": (tiny("qwen3-reranker"), "rerank"),
    }
    models = planned(device, engine, folders)
    text = "你好，Xinference " * 20

    async def ask() -> None:
        outputs: tuple[EmbedOutput, ...] = ("dense", "sparse", "colbert")
        whole = await models["m3"].embed(EmbedTask(model="m3", inputs=(text,) * 32, outputs=outputs))
        assert len(whole.colbert) == len(whole.sparse) == 32
        assert (await models["emb"].embed(EmbedTask(model="emb", inputs=(text,) * 32))).count == 32
        for uid in ("late", "cosine", "asked"):
            task = RerankTask(model=uid, query="你好", documents=(text,) * 32)
            assert len((await models[uid].rerank(task)).scores) == 32

    asyncio.run(ask())
    for model in models.values():
        model.close()
    engine.close()
