"""Arenas: tensors that sleep and are the same afterwards, and memory that is really given back."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_memory import FakeMemory
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native_chat import PROMPTS, answers, task

from lodger.catalogue.inspect import inspect_folder
from lodger.engines import native_weights
from lodger.runtime import arena as arenas
from lodger.runtime import loading, parking, virtual_memory
from lodger.runtime.arena import Arena, HostArena, MappedArena, PlainArena
from lodger.runtime.loading import load_runner
from lodger.runtime.precision import precision
from lodger.units import GIB, MIB

CPU = torch.device("cpu")
MAKE: dict[str, Callable[[], Arena]] = {
    "mapped": lambda: MappedArena(FakeMemory(), 8 * MIB),
    "plain": lambda: PlainArena(CPU),
    "host": HostArena,
}
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
shapes = st.lists(st.integers(0, 70), min_size=1, max_size=3)


@pytest.fixture(params=MAKE)
def arena(request: pytest.FixtureRequest) -> Arena:
    return MAKE[request.param]()


@settings(deadline=None, max_examples=60)
@given(
    made=st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=8),
    sleeps=st.lists(st.booleans(), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_tensors_are_apart_and_what_is_kept_comes_back(made: Any, sleeps: list[bool], seed: int) -> None:
    memory = FakeMemory()
    arena = MappedArena(memory, 8 * MIB)
    tensors = [arena.empty(shape, dtype) for shape, dtype in made]
    random = torch.Generator().manual_seed(seed)
    expected = [torch.randint(-99, 99, tensor.shape, generator=random).to(tensor.dtype) for tensor in tensors]
    addresses = [tensor.data_ptr() for tensor in tensors]
    assert all(address % 512 == 0 for address, tensor in zip(addresses, tensors, strict=True) if tensor.numel())
    for tensor, values in zip(tensors, expected, strict=True):
        tensor.copy_(values)
    size = sum(values.nbytes for values in expected)
    assert size <= arena.nbytes == memory.mapped <= size + 512 * len(made) + memory.granularity
    for keep in sleeps:
        memory.busy = True
        held = arena.nbytes
        arena.sleep(keep=keep)
        assert arena.nbytes == memory.mapped == 0
        assert (arena.parked >= size) if keep else (arena.parked == 0)
        arena.wake()
        assert (arena.nbytes, arena.parked) == (held, 0)
        if not keep:
            expected = [torch.zeros_like(values) for values in expected]
    for tensor, values in zip(tensors, expected, strict=True):
        assert torch.equal(tensor, values)
    assert [tensor.data_ptr() for tensor in tensors] == addresses


@pytest.mark.parametrize("keep", [True, False])
def test_every_kind_of_arena_does_so(arena: Arena, keep: bool) -> None:
    tensor, other = arena.zeros((300, 20), torch.float32), arena.zeros((7,), torch.bfloat16)
    assert not tensor.any()
    tensor.normal_()
    before, address, held = tensor.clone(), tensor.data_ptr(), arena.nbytes
    assert held >= tensor.nbytes + other.nbytes
    for _ in range(2):
        arena.sleep(keep=keep)
        arena.sleep(keep=keep)
        assert arena.nbytes == 0
        arena.wake()
        arena.wake()
    assert torch.equal(tensor, before if keep else torch.zeros_like(before))
    assert arena.nbytes == held
    assert (tensor.data_ptr() == address) or not arena.addresses_kept


def test_memory_is_free_when_the_last_tensor_is_gone() -> None:
    memory = FakeMemory()
    arena: Arena | None = MappedArena(memory, MIB)
    assert arena is not None
    tensor = arena.empty((10, 10), torch.float32)[3:]
    arena = None
    gc.collect()
    assert memory.mapped
    del tensor
    gc.collect()
    assert (memory.mapped, memory.ranges) == (0, {})


def test_an_arena_that_is_forgotten_in_its_sleep_gives_its_addresses_back() -> None:
    memory = FakeMemory()
    arena: Any = MappedArena(memory, MIB)
    arena.empty((10,), torch.float32)
    arena.sleep(keep=True)
    del arena
    gc.collect()
    assert memory.ranges == {}


def test_what_cannot_wake_sleeps_on_and_wakes_later() -> None:
    memory = FakeMemory(capacity=MIB)
    arena = MappedArena(memory, MIB)
    tensor = arena.empty((2**16,), torch.float32).normal_()
    before = tensor.clone()
    arena.sleep(keep=True)
    neighbour = MappedArena(memory, MIB)
    neighbour.empty((2**18,), torch.int8)
    memory.capacity = arena.parked
    with pytest.raises(MemoryError):
        arena.wake()
    assert (arena.nbytes, arena.parked) == (0, tensor.nbytes)
    neighbour.sleep(keep=False)
    arena.wake()
    assert torch.equal(tensor, before)


def test_what_is_not_filled_again_does_not_count_as_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = MappedArena(FakeMemory(), MIB)
    tensor = arena.empty((8,), torch.float32).fill_(3)
    arena.sleep(keep=True)
    with monkeypatch.context() as broken:
        broken.setattr(parking.Parked, "restore", _refuse)
        with pytest.raises(MemoryError):
            arena.wake()
    assert arena.nbytes == 0
    arena.wake()
    assert tensor.tolist() == [3] * 8


def _refuse(self: parking.Parked, content: torch.Tensor) -> None:
    raise MemoryError("no room for the copy")


def test_a_device_that_is_full_refuses_and_takes_nothing() -> None:
    memory = FakeMemory(capacity=MIB)
    arena = MappedArena(memory, 4 * MIB)
    arena.empty((MIB // 2,), torch.int8)
    for size in (MIB, 8 * MIB):
        with pytest.raises(MemoryError):
            arena.empty((size,), torch.int8)
    assert arena.nbytes == MIB // 2
    arena.empty((MIB // 2,), torch.int8)


def test_threads_may_allocate_at_once() -> None:
    arena = MappedArena(FakeMemory(), 8 * MIB)
    with ThreadPoolExecutor(8) as pool:
        tensors = list(pool.map(lambda n: arena.empty((1000 + n,), torch.int32).fill_(n), range(64)))
    assert all((tensor == n).all() for n, tensor in enumerate(tensors))


def test_a_copy_is_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "_CHUNK", 1000)
    source = torch.randint(255, (4321,), dtype=torch.uint8)
    kept, target = parking.Parked(source), torch.zeros_like(source)
    kept.restore(target)
    assert torch.equal(source, target)
    assert kept.nbytes == 4321
    kept.free()


def test_a_gpu_without_virtual_memory_gets_what_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> None:
        raise RuntimeError("the CUDA driver answered CUDA_ERROR_NOT_SUPPORTED")

    virtual_memory.virtual_memory.cache_clear()
    monkeypatch.setattr(virtual_memory, "CudaMemory", refuse)
    assert isinstance(arenas.for_cache(torch.device("cuda:7"), GIB), PlainArena)
    virtual_memory.virtual_memory.cache_clear()


@pytest.mark.parametrize("family", ["qwen3", "bge-m3", "bge-reranker"])
def test_weights_of_a_model_are_all_in_its_arena(
    family: str, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeMemory()
    monkeypatch.setattr(loading, "for_weights", lambda device, size: MappedArena(memory, 2 * size))
    facts = inspect_folder(tiny(family))
    runner = load_runner(facts, GIB, [precision("float32", CPU)], CPU, lambda _: None)
    assert runner.arena is not None
    assert runner.weight_bytes <= memory.mapped <= 1.2 * runner.weight_bytes + 512 * 1000
    weights = native_weights.Weights(runner, lambda: pytest.fail("read again"))
    weights.wake("a")
    weights.wake("b")
    weights.sleep("a", keep=True)
    assert weights.held("a") == {"weights": 0}
    weights.sleep("b", keep=True)
    assert memory.mapped == 0
    assert weights.held("a") == {"weights": 0, "host": runner.arena.parked}
    assert weights.held("b") == {"weights": 0}
    assert weights.wake("b") is runner
    assert weights.held("b") == {"weights": runner.weight_bytes}
    del runner
    assert not weights.leave("b")
    assert weights.leave("a")
    del weights
    gc.collect()
    assert memory.ranges == {}


def test_models_answer_the_same_after_their_weights_were_parked(
    device: torch.device, serve: Callable[..., Any], tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        monkeypatch.setattr(loading, "for_weights", lambda device, size: MappedArena(FakeMemory(), 2 * size))
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=64)
    arena = model._lane._stepper._runner.arena
    before = answers(model, [task(prompt) for prompt in PROMPTS])
    model.sleep(keep=True)
    assert arena.nbytes == 0
    assert model.memory()["host"] == arena.parked > 0
    model.wake()
    assert answers(model, [task(prompt) for prompt in PROMPTS]) == before
    model.close()
