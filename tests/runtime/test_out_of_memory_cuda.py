"""On a GPU whose memory ends: the real allocator refuses, and a request pays, never the process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_requests import texts
from test_out_of_memory import (
    NUMBERS,
    Short,
    _under,
    chats,
    fails_alone,
    granted,
    loaded,
    near,
    renewed,
    same_text,
    together,
)

from lodger.catalogue.inspect import inspect_folder
from lodger.engines import native
from lodger.errors import OutOfMemory
from lodger.runtime.allocator import Allowance
from lodger.runtime.virtual_memory import CudaMemory
from lodger.tasks import EmbedResult, EmbedTask
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


def same_length(mine: Any, other: Any) -> bool:
    """Parts of a step compute what all of it does but for rounding, which may choose another token."""
    return bool(mine[-1].usage == other[-1].usage)


@pytest.mark.parametrize("more", [0, 2], ids=["once", "until a chat is lost"])
def test_captured_chats_at_any_allocation(more: int, serve: Any, tiny: Callable[..., Path]) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")), dtype="bfloat16", blocks=40)
    assert model._lane._stepper._graphs is not None
    lost = fails_alone(model, chats(model), same_length, more)
    assert lost if more else not lost
    model.close()


def alike(mine: EmbedResult, other: EmbedResult) -> bool:
    """As `same_length`: vectors of float16."""
    pairs = zip(np.frombuffer(mine.vectors, "<f4"), np.frombuffer(other.vectors, "<f4"), strict=True)
    return all(abs(a - b) < 5e-3 for a, b in pairs)


@pytest.mark.parametrize("more", [0, 2], ids=["once", "until a text is lost"])
def test_captured_texts_at_any_allocation(more: int, serve: Any) -> None:
    model = serve("bge-m3", dtype="float16")
    assert model._lane.runner.backbone._graphs._captured
    one = [lambda n=n: model.embed(EmbedTask(model="m", inputs=texts(4, 5)[n : n + 1])) for n in range(4)]
    lost = fails_alone(model, one, alike, more)
    assert lost if more else not lost


def test_texts_whose_steps_cannot_be_captured(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder without memory for them is loaded all the same, and computes the same."""

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    facts, found = inspect_folder(tiny("bge-m3", num_hidden_layers=3)), []
    for refuses in (False, True):
        if refuses:
            monkeypatch.setattr("lodger.runtime.encoder_graphs.EncoderGraphs._capture", full)
        model = serve.fresh(facts, dtype="float16")
        found += together(model, [lambda model=model: model.embed(EmbedTask(model="m", inputs=texts(6, 5)))])
        assert (not model._lane.runner.backbone._graphs._captured) is refuses
        model.close()
    assert alike(*found)


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


def what_is_left() -> list[torch.Tensor]:
    """Tensors in all of torch's memory that is free between others."""
    found: list[torch.Tensor] = []
    with at_most(0):
        for size in (MIB, 64 * KIB, 4 * KIB, 512):
            with suppress(torch.OutOfMemoryError):
                while True:
                    found.append(torch.empty(size, dtype=torch.uint8, device=CUDA))
    return found


def test_a_load_whose_capture_finds_no_memory(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of many sizes, the smallest first, until it loads: what fails leaves nothing, and others serve on."""
    other = serve.fresh(inspect_folder(tiny("qwen3")), dtype="bfloat16", blocks=40)
    expected = together(other, chats(other)[:1])
    facts, before = inspect_folder(tiny("llama")), granted(serve.engine)
    failures = 0
    serve.engine._loop.wait()
    rest = what_is_left()
    held = torch.cuda.memory_reserved(CUDA)
    for size in [n * 512 * KIB for n in range(0, 200, 3)]:
        with monkeypatch.context() as patch:
            patch.setattr(Allowance, "most", lambda self, size=size: held + size)
            model = loaded(serve, facts, dtype="bfloat16", blocks=40)
        failures += model is None
        serve.engine._allowance._apply()
        assert same_text(together(other, chats(other)[:1])[0], expected[0])
        renewed(other)
        if model is not None:
            break
        assert granted(serve.engine) == before
    assert failures
    assert model is not None
    del rest
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
        model = loaded(serve, facts, dtype="bfloat16", blocks=40)
        if model is not None:  # without the steps that would have warmed it up
            assert mode.failed
            model.close()
        assert granted(serve.engine) == before
    mode = Short(1 << 30)
    model = serve.fresh(facts, dtype="bfloat16", blocks=40)
    assert not any(isinstance(one, BaseException) for one in together(model, chats(model)))
    model.close()


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("keep", [True, False])
def test_a_wake_that_finds_no_memory(
    keep: bool, at: int, serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the cache nor for weights nor for captured steps; it sleeps on, and wakes when there is some."""
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
