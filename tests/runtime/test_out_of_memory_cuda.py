"""On a GPU whose memory ends: the real allocator refuses, and a request pays, never the process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from test_out_of_memory import NUMBERS, Short, _under, chats, granted, near, renewed, same_text, together

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.engines import native
from lodger.errors import OutOfMemory
from lodger.runtime.allocator import Allowance
from lodger.runtime.virtual_memory import CudaMemory
from lodger.tasks import EmbedTask
from lodger.units import KIB, MIB

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda:0")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return CUDA


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """torch's allocator may hold so many bytes more than it needs now."""
    total = torch.cuda.get_device_properties(CUDA).total_memory
    before = torch.cuda.get_per_process_memory_fraction(CUDA)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(CUDA) + size) / total, CUDA)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, CUDA)


@pytest.mark.parametrize("size", [0, 2 * MIB, 4 * MIB, 22 * MIB])
def test_chats_in_too_little_memory(size: int, serve: Any, tiny: Callable[..., Path]) -> None:
    """Where steps find none they are computed in parts, and a chat that finds none even alone ends with numbers."""
    model = serve.fresh(inspect_folder(tiny("qwen3")), dtype="bfloat16", blocks=40)
    expected = together(model, chats(model))
    renewed(model)
    with at_most(size):
        found = together(model, chats(model))
    renewed(model)
    for mine, other in zip(found, expected, strict=True):
        if isinstance(mine, BaseException):
            assert isinstance(mine, OutOfMemory), mine
            assert re.search(NUMBERS, mine.message), mine.message
        else:
            assert mine[-1].usage == other[-1].usage
    assert same_text(together(model, chats(model)[:1])[0], expected[0]), "with memory it goes on as before"
    model.close()


def test_texts_in_too_little_memory(serve: Any) -> None:
    """Many texts, of which no step can have more than a few."""
    model = serve("minilm", dtype="float16")
    ask: list[Callable[[], Any]] = [
        lambda n=n: model.embed(EmbedTask(model="m", inputs=("time and again",) * (40 + n)))  # type: ignore[misc]
        for n in range(4)
    ]
    expected = together(model, ask)
    for size in (0, 2 * MIB, 22 * MIB):
        with at_most(size):
            found = together(model, ask)
        renewed(model)
        for error in [one for one in found if isinstance(one, BaseException)]:
            assert isinstance(error, OutOfMemory), error
            assert re.search(NUMBERS, error.message), error.message
    assert all(near(mine, other) for mine, other in zip(together(model, ask), expected, strict=True))


def test_a_load_whose_capture_finds_no_memory(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of many sizes, the smallest first, until it loads: what fails leaves nothing, and others serve on."""
    other = serve.fresh(inspect_folder(tiny("qwen3")), dtype="bfloat16", blocks=40)
    expected = together(other, chats(other)[:1])
    facts, before = inspect_folder(tiny("llama")), granted(serve.engine)
    failures = 0
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(CUDA)
    for size in [n * 512 * KIB for n in range(0, 200, 3)]:
        with monkeypatch.context() as patch:
            patch.setattr(Allowance, "most", lambda self, size=size: held + size)
            model = loaded(serve, facts)
        failures += model is None
        serve.engine._allowance._apply()
        assert same_text(together(other, chats(other)[:1])[0], expected[0])
        renewed(other)
        if model is not None:
            break
        assert granted(serve.engine) == before
    assert failures
    assert model is not None
    model.close()
    other.close()


def test_a_load_that_fails_at_any_allocation_of_its_capture(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, here, mode = inspect_folder(tiny("qwen3")), native._in_own_thread, Short(1 << 30)
    monkeypatch.setattr(native, "_in_own_thread", lambda load: here(lambda: _under(mode, load)))
    serve.fresh(facts, dtype="bfloat16", blocks=40).close()
    allocations, before = mode.at - mode.left, granted(serve.engine)
    for at in [allocations * point // 16 for point in range(16)]:
        mode = Short(at)
        model = loaded(serve, facts)
        if model is not None:  # without the steps that would have warmed it up
            assert mode.failed
            model.close()
        assert granted(serve.engine) == before
    mode = Short(1 << 30)
    model = serve.fresh(facts, dtype="bfloat16", blocks=40)
    assert not any(isinstance(one, BaseException) for one in together(model, chats(model)))
    model.close()


def loaded(serve: Any, facts: ModelFacts) -> Any:
    """The model; None where there was too little memory for it, which the error says."""
    try:
        return serve.fresh(facts, dtype="bfloat16", blocks=40)
    except OutOfMemory as error:
        if re.search(rf"out of memory while {facts.name} was loaded into [\d.]+ [KMG]iB", error.message):
            return None
        raise


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("keep", [True, False])
def test_a_wake_that_finds_no_memory(
    keep: bool, at: int, serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the cache nor for weights; it sleeps on, and wakes when there is some."""
    model = serve.fresh(inspect_folder(tiny("qwen3")), dtype="bfloat16", blocks=40)
    expected = together(model, chats(model)[:1])
    model.sleep(keep=keep)
    asleep, here, calls = model.memory(), CudaMemory.map, count()

    def short(memory: CudaMemory, address: int, size: int) -> Any:
        if next(calls) == at:
            raise MemoryError("the device has no more memory")
        return here(memory, address, size)

    with monkeypatch.context() as patch:
        patch.setattr(CudaMemory, "map", short)
        failed = refused(model.wake)
    assert failed or next(calls) <= at
    if failed:
        assert model.memory() | {"host": 0} == asleep | {"host": 0}
        model.wake()
    assert same_text(together(model, chats(model)[:1])[0], expected[0])
    model.close()


def refused(wake: Callable[[], None]) -> bool:
    try:
        wake()
    except OutOfMemory as error:
        return "ran out of memory while" in error.message
    return False
