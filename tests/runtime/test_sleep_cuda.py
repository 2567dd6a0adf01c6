"""On a GPU: a model that sleeps gives its memory back to the card, and finds all at its place when it wakes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native_chat import PROMPTS, answers, task

from lodger.budget import Budget
from lodger.catalogue.inspect import inspect_folder
from lodger.device.nvml import probe_gpus
from lodger.engines.base import LoadRequest
from lodger.engines.native import NativeEngine
from lodger.runtime.arena import MappedArena, PlainArena, for_cache
from lodger.runtime.virtual_memory import virtual_memory
from lodger.spec import ModelSpec
from lodger.units import GIB, MIB

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda:0")


def held() -> int:
    """Bytes that this process has on the card, by NVML; of all where the driver does not say who has them."""
    card = probe_gpus([os.getpid()], visible=["0"])[0]
    return card.ours or card.total - card.free


@torch.inference_mode()
def test_a_captured_graph_replays_to_the_same_numbers() -> None:
    arena = for_cache(CUDA, GIB)
    assert isinstance(arena, MappedArena)
    small = arena.zeros((3,), torch.float32)
    weight = arena.empty((4096, 4096), torch.float16).normal_()
    x = torch.randn(4, 4096, device=CUDA, dtype=torch.float16)
    x @ weight
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x @ weight
    graph.replay()
    before, copy, address = y.clone(), weight.clone(), weight.data_ptr()
    for _ in range(2):
        before_sleep, counted = held(), virtual_memory(CUDA)
        assert counted is not None
        mapped, size = counted.mapped, arena.nbytes
        arena.sleep(keep=True)
        assert before_sleep - held() >= size - 2 * MIB
        assert counted.mapped == mapped - size
        arena.wake()
        y.zero_()
        graph.replay()
        assert torch.equal(y, before)
        assert torch.equal(weight, copy)
        assert not small.any()
        assert weight.data_ptr() == address
    arena.sleep(keep=False)
    arena.wake()
    assert not weight.any()


@torch.inference_mode()
def test_storages_of_torch_come_back_too() -> None:
    arena = PlainArena(CUDA)
    weight = arena.empty((4096, 4096), torch.float16).normal_()
    view, copy = weight[10:20], weight.clone()
    torch.cuda.empty_cache()
    before = held()
    arena.sleep(keep=True)
    torch.cuda.empty_cache()
    assert before - held() >= copy.nbytes - 4 * MIB
    arena.wake()
    assert torch.equal(weight, copy)
    assert torch.equal(view, copy[10:20])


def test_memory_of_an_arena_is_free_when_nobody_has_it() -> None:
    counted = virtual_memory(CUDA)
    assert counted is not None
    before = counted.mapped
    tensor = for_cache(CUDA, GIB).zeros((GIB // 4,), torch.int8)
    assert counted.mapped == before + GIB // 4
    del tensor
    assert counted.mapped == before


def test_a_model_gives_all_back_but_the_process_itself(tiny: Callable[..., Path]) -> None:
    facts = inspect_folder(tiny("qwen3"))
    engine = NativeEngine("cuda:0")
    budget = Budget(weights=GIB, kv_cache=GIB, activations=GIB // 4, step_tokens=256)
    spec = ModelSpec(uid="m")
    request = LoadRequest(spec=spec, facts=facts, budget=budget, device="cuda:0", dtype="bfloat16")
    model: Any = engine.load(request, lambda _: None)
    before, cache = one_by_one(model), model._cache
    awake, used, address = held(), engine.used(), cache.tensor.data_ptr()
    model.sleep(keep=True)
    assert awake - held() >= sum(model.info.memory.values()) - 4 * MIB
    assert used - engine.used() >= sum(model.info.memory.values())
    model.wake()
    assert model._cache is cache
    assert cache.tensor.data_ptr() == address
    assert one_by_one(model) == before
    model.close()
    engine.close()


def one_by_one(model: Any) -> list[str]:
    """Answers that no other request is computed beside: how they come together varies, and with it what is rounded."""
    return [answers(model, [task(prompt)])[0] for prompt in PROMPTS]
