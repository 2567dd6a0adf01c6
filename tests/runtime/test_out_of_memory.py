"""Whichever allocation fails: at most the one request whose it was ends, with numbers, and all others never notice."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_requests import texts
from test_native_chat import PROMPTS, collect, run, task, text
from torch.utils._python_dispatch import TorchDispatchMode

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.engines import native
from lodger.errors import OutOfMemory
from lodger.runtime.generating import GenerateLane
from lodger.runtime.virtual_memory import CudaMemory
from lodger.sched.blocks import BlockPool
from lodger.sched.generate import GenerateScheduler
from lodger.tasks import EmbedResult, EmbedTask, RerankTask, SamplingParams

ERRORS = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 512 bytes."),
)
NUMBERS = r"\d+ tokens at once need more memory than is left: [\d.]+ [KMG]iB are free"
POINTS = 12  # allocations of each kind of request that fail in turn, evenly spread; all where they are fewer
KINDS_OF_OUTPUT: Any = ("dense", "sparse", "colbert")


class Short(TorchDispatchMode):
    """The `at`-th tensor that an operator would make finds no memory, nor do `more` after it."""

    def __init__(self, at: int, more: int = 0) -> None:
        super().__init__()
        self.left, self.more, self.at = at, more, at

    @property
    def failed(self) -> bool:
        return self.left < 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _allocates(func):
            self.left -= 1
            if -1 - self.more <= self.left < 0:
                raise ERRORS[self.at % len(ERRORS)]()
        return func(*args, **(kwargs or {}))


def _allocates(func: Any) -> bool:
    fresh = [made for made in func._schema.returns if "Tensor" in str(made.type) and made.alias_info is None]
    return bool(fresh) or func is torch.ops.aten.lift_fresh.default


@contextmanager
def short_steps(model: Any, mode: Short) -> Iterator[None]:
    """Of the steps of `model`'s device."""
    loop = model._serving.loop
    loop.post(mode.__enter__)
    try:
        yield
    finally:
        loop.post(lambda: mode.__exit__(None, None, None))
        loop.wait()


def together(model: Any, requests: list[Callable[[], Any]]) -> list[Any]:
    """Asked at once, and so that they share steps: the device takes up work only when all of it has come."""

    async def ask() -> list[Any]:
        gate, held = threading.Event(), threading.Event()
        model._serving.loop.post(held.set)
        model._serving.loop.post(lambda: None if gate.wait(20) else None)
        await asyncio.to_thread(held.wait)
        asked = [asyncio.ensure_future(request()) for request in requests]
        while model._serving.loop._inbox.qsize() < len(requests) and not any(one.done() for one in asked):
            await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    return run(ask())


def renewed(model: Any) -> None:
    """Nothing is left of any request; and nothing in the prefix cache, so that each run computes the same."""
    model._serving.loop.wait()
    assert model.running() == 0
    lane = model._lane
    if not isinstance(lane, GenerateLane):
        assert (lane._open, lane._queue.has_work()) == ({}, False)
        return
    scheduler = lane._scheduler
    assert (lane._generations, lane.decoding) == ({}, False)
    assert (scheduler.running, scheduler.waiting, scheduler._promised, scheduler._promises) == (0, 0, set(), {})
    scheduler._pool.check()
    assert scheduler._pool.free_count == scheduler._pool.num_blocks
    pool = BlockPool(scheduler._pool.num_blocks, scheduler._pool.block_size)
    lane._scheduler = GenerateScheduler(pool, max_running=scheduler._max_running)


def fails_alone(model: Any, requests: list[Callable[[], Any]], same: Callable[[Any, Any], bool], more: int) -> int:
    """Allocations of the steps in turn, from the first to the last. The number of failures that cost a request."""
    together(model, requests)
    renewed(model)
    with short_steps(model, never := Short(1 << 30)):
        expected = together(model, requests)
    renewed(model)
    count, lost = never.at - never.left, 0
    points = min(POINTS, count)
    assert points > POINTS // 2
    for point in range(points):
        at = count * point // points
        with short_steps(model, mode := Short(at, more)):
            found = together(model, requests)
        renewed(model)
        assert mode.failed or point > points // 2  # how texts come together varies
        wrong = [answer for answer in found if isinstance(answer, BaseException)]
        assert len(wrong) <= 1, (at, wrong)
        lost += len(wrong)
        for error in wrong:
            assert isinstance(error, OutOfMemory), (at, error)
            assert re.search(NUMBERS, error.message), error.message
        for mine, other in zip(found, expected, strict=True):
            assert isinstance(mine, BaseException) or same(mine, other), (at, mine, other)
    return lost


KINDS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.9, seed=3),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.8, seed=4, frequency_penalty=0.5),
    SamplingParams(temperature=0, repetition_penalty=1.3, presence_penalty=0.5),
]


def chats(model: Any) -> list[Callable[[], Any]]:
    def asked(n: int) -> Callable[[], Any]:
        return lambda: collect(model.generate(task(PROMPTS[n], 3, KINDS[n])))

    return [asked(n) for n in range(len(KINDS))]


def same_text(mine: Any, other: Any) -> bool:
    return text(mine) == text(other) and mine[-1].usage == other[-1].usage


@pytest.mark.parametrize("overlaps", [False, True], ids=["waiting", "overlapping"])
@pytest.mark.parametrize("more", [0, 2], ids=["once", "until a chat is lost"])
def test_chats(more: int, overlaps: bool, serve: Any, tiny: Callable[..., Path]) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=40)
    model._lane._stepper.overlaps = overlaps
    lost = fails_alone(model, chats(model), same_text, more)
    assert lost if more else not lost, "several chats are computed in parts"
    model.close()


def test_a_long_prompt_alone(serve: Any, tiny: Callable[..., Path]) -> None:
    model = serve.fresh(inspect_folder(tiny("llama")), blocks=40)
    asked: list[Callable[[], Any]] = [lambda: collect(model.generate(task(tuple(range(10, 150)), 2)))]
    assert fails_alone(model, asked, same_text, 0), "its decode step cannot be split"
    model.close()


def near(mine: Any, other: Any) -> bool:
    if not isinstance(mine, EmbedResult):
        return bool(np.allclose(mine.scores, other.scores, atol=1e-5))
    pairs = [(mine.vectors, other.vectors)]
    pairs += [(a.weights, b.weights) for a, b in zip(mine.sparse or (), other.sparse or (), strict=True)]
    pairs += list(zip(mine.colbert or (), other.colbert or (), strict=True))
    return all(np.allclose(np.frombuffer(a, "<f4"), np.frombuffer(b, "<f4"), atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("more", [0, 2], ids=["once", "until a text is lost"])
def test_texts(more: int, serve: Any) -> None:
    model = serve("minilm")
    one = [lambda n=n: model.embed(EmbedTask(model="m", inputs=texts(4, 5)[n : n + 1])) for n in range(4)]
    lost = fails_alone(model, one, near, more)
    assert lost if more else not lost


def test_texts_with_all_outputs(serve: Any) -> None:
    model = serve("bge-m3-heads")
    tasks = [EmbedTask(model="m", inputs=texts(5, 5)[2 * n : 2 * n + 2], outputs=KINDS_OF_OUTPUT[n:]) for n in range(2)]
    assert not fails_alone(model, [lambda one=one: model.embed(one) for one in tasks], near, 0)


@pytest.mark.parametrize(("family", "kind"), [("bge-reranker", None), ("bge-m3-heads", "rerank")])
def test_documents(family: str, kind: Any, serve: Any) -> None:
    model = serve(family, kind)
    tasks = [RerankTask(model="m", query="time", documents=texts(6, 5)[3 * n : 3 * n + 3]) for n in range(2)]
    assert not fails_alone(model, [lambda one=one: model.rerank(one) for one in tasks], near, 0)


def test_a_load_that_runs_out_leaves_nothing_and_others_serve_on(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = serve("minilm")
    ask: list[Callable[[], Any]] = [lambda: other.embed(EmbedTask(model="m", inputs=("time",)))]
    (expected,) = together(other, ask)
    facts = inspect_folder(tiny("qwen3"))
    here = native._in_own_thread
    mode = Short(1 << 30)
    monkeypatch.setattr(native, "_in_own_thread", lambda load: here(lambda: _under(mode, load)))
    serve.fresh(facts).close()
    count, engine = mode.at - mode.left, serve.engine
    before = dict(engine._weights), dict(engine._users), granted(engine), tensors(engine)
    for at in [count * point // 6 for point in range(6)]:
        mode = Short(at)
        if (model := loaded(serve, facts)) is not None:  # a GPU's, without the steps that would have warmed it up
            assert serve.device.type == "cuda"
            assert at
            model.close()
            del model
        assert mode.failed
        assert (dict(engine._weights), dict(engine._users), granted(engine)) == before[:3]
        assert tensors(engine) <= before[3], at
    mode = Short(1 << 30)
    serve.fresh(facts).close()
    assert near(together(other, ask)[0], expected)


def full(memory: CudaMemory, address: int, size: int) -> Any:
    raise MemoryError("the device has no more memory")


def _under(mode: Short, load: Callable[[], Any]) -> Any:
    with mode:
        return load()


def loaded(serve: Any, facts: ModelFacts, **how: Any) -> Any:
    """The model; None where there was too little memory for it, which the error says."""
    try:
        return serve.fresh(facts, **how)
    except OutOfMemory as error:
        if re.search(rf"out of memory while {facts.name} was loaded into [\d.]+ [KMG]iB", error.message):
            return None
        raise


def granted(engine: Any) -> int:
    """Bytes that torch's allocator may hold on a GPU."""
    return engine._allowance.most() if engine._allowance else 0


def tensors(engine: Any) -> int:
    engine._loop.wait()  # which may be taking what steps need
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def test_a_model_that_cannot_wake_sleeps_on_and_wakes_later(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=40)
    expected = together(model, chats(model)[:1])
    model.sleep(keep=True)
    asleep = model.memory()
    with monkeypatch.context() as patch:
        patch.setattr(CudaMemory, "map", full)  # all that a model on a GPU needs to wake
        with pytest.raises(OutOfMemory, match="ran out of memory while .* was woken"), Short(0):
            model.wake()
    assert model.memory() == asleep
    model.wake()
    assert same_text(together(model, chats(model)[:1])[0], expected[0])
    model.close()
