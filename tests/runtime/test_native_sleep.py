"""Models of the native engine that sleep: what they give back, and that nobody can tell afterwards."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from encoder_requests import run, texts
from test_native_chat import PROMPTS, answers, task

from lodger.catalogue.inspect import inspect_folder
from lodger.engines import native, native_model
from lodger.errors import Cancelled, ModelAsleep, OutOfMemory
from lodger.runtime.kv import KVCache
from lodger.tasks import EmbedTask, RerankTask, SamplingParams


@pytest.fixture(params=[True, False], ids=["kept", "read again"])
def keep(request: pytest.FixtureRequest) -> bool:
    """Weights in RAM, or in the folder only."""
    return bool(request.param)


def asked(model: Any) -> list[str]:
    seeded = SamplingParams(temperature=0.9, seed=11)
    return answers(model, [task(prompt) for prompt in PROMPTS] + [task(PROMPTS[1], sampling=seeded)])


def test_chats_say_the_same_after_sleeping(keep: bool, serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=64)
    before, held = asked(model), model.memory()
    assert set(held) == {"weights", "kv_cache"}
    for _ in range(2):
        model.sleep(keep=keep)
        assert {part: size for part, size in model.memory().items() if part != "host" and size} == {}
        model.sleep(keep=keep)
        model.wake()
        model.wake()
        assert model.memory() == held
        assert asked(model) == before
    model.close()


@pytest.mark.parametrize(("family", "dtype"), [("bge-m3", "float32"), ("minilm", "bfloat16")])
def test_vectors_are_the_same_bytes_after_sleeping(
    family: str, dtype: str, keep: bool, serve: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    model = serve.fresh(inspect_folder(tiny(family)), dtype=dtype)
    request = EmbedTask(model="m", inputs=texts(20))
    before = run(model.embed(request))
    model.sleep(keep=keep)
    model.wake()
    assert run(model.embed(request)) == before
    model.close()


def test_what_a_cache_held_is_forgotten(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=64)
    cache: KVCache = model._cache
    answers(model, [task(PROMPTS[6])])
    assert cache.tensor.any()
    model.sleep(keep=True)
    model.wake()
    assert model._cache is cache
    assert not cache.tensor.any()
    model.close()


def test_weights_that_were_let_go_are_really_gone(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    model = serve.fresh(inspect_folder(tiny("minilm", num_hidden_layers=3)))  # a folder that no other test serves
    runner = weakref.ref(model._lane.runner)
    model.sleep(keep=False)
    gc.collect()
    assert runner() is None
    model.close()


def test_a_closed_model_holds_nothing_though_somebody_holds_the_model(
    serve: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3", num_hidden_layers=3)), blocks=64)
    runner, stepper = weakref.ref(model._lane._stepper._runner), weakref.ref(model._lane._stepper)
    model.close()
    gc.collect()
    assert runner() is stepper() is None
    assert not any(model.memory().values())


def test_weights_stay_while_another_model_uses_them(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    folder = tiny("minilm", num_hidden_layers=1)
    embedding = serve.fresh(inspect_folder(folder))
    reranker = serve.fresh(inspect_folder(folder, "rerank"), weights=0)
    ranking = RerankTask(model="m", query="time 世界", documents=texts(5))
    before, size = run(reranker.rerank(ranking)), embedding.memory()["weights"]
    assert reranker.memory()["weights"] == 0
    embedding.sleep(keep=False)
    assert (embedding.memory()["weights"], reranker.memory()["weights"]) == (0, size)
    assert run(reranker.rerank(ranking)) == before
    reranker.sleep(keep=False)
    assert reranker.memory()["weights"] == 0
    reranker.wake()
    assert (embedding.memory()["weights"], reranker.memory()["weights"]) == (0, size)
    assert run(reranker.rerank(ranking)) == before
    reranker.close()
    embedding.wake()
    assert run(embedding.embed(EmbedTask(model="m", inputs=("a",)))).count == 1
    embedding.close()


def test_a_model_that_sleeps_refuses_and_can_be_closed(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    chat, embedding = (serve.fresh(inspect_folder(tiny(family))) for family in ("qwen3", "minilm"))
    for model in (chat, embedding):
        model.sleep(keep=False)
    with pytest.raises(ModelAsleep):
        answers(chat, [task(PROMPTS[0])])
    with pytest.raises(ModelAsleep):
        run(embedding.embed(EmbedTask(model="m", inputs=("a",))))
    assert chat.running() == embedding.running() == 0
    for model in (chat, embedding):
        model.close()


def test_a_request_that_sleep_overtakes_ends(
    serve: Callable[..., Any], tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was tokenised when the model fell asleep."""
    for family in ("qwen3", "minilm"):
        model = serve.fresh(inspect_folder(tiny(family)))

        async def overtaken(function: Callable[[], Any], model: Any = model) -> Any:
            found = function()
            await asyncio.to_thread(model.sleep, keep=False)
            return found

        monkeypatch.setattr(model, "_in_pool", overtaken)
        request = EmbedTask(model="m", inputs=("a",))
        with pytest.raises((Cancelled, ModelAsleep)):
            answers(model, [task("hello")]) if family == "qwen3" else run(model.embed(request))
        model.close()


def full(*_: object) -> None:
    raise MemoryError


class Allowed:
    """What an `Allowance` is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def grant(self, owner: object, grant: object) -> None:
        self.told.append("granted")

    def turn(self, owner: object, *, asleep: bool) -> None:
        self.told.append("asleep" if asleep else "awake")

    @contextmanager
    def loading(self) -> Iterator[None]:
        self.told.append("may load")
        try:
            yield
        finally:
            self.told.append("has loaded")

    def reserve(self) -> None:
        self.told.append("reserves")

    def revoke(self, owner: object) -> None: ...


def test_weights_that_are_read_again_may_take_what_loading_takes(
    serve: Callable[..., Any], tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as when the model was loaded, and before the cache is there."""
    allowed, read, woken = Allowed(), native.load_runner, KVCache.wake
    monkeypatch.setattr(serve.engine, "_allowance", allowed)
    monkeypatch.setattr(
        native, "load_runner", lambda *args, **given: (allowed.told.append("reads"), read(*args, **given))[1]
    )
    monkeypatch.setattr(KVCache, "wake", lambda cache: (allowed.told.append("cache"), woken(cache))[1])

    def told() -> list[str]:
        serve.engine._loop.wait()
        told, allowed.told = allowed.told, []
        return told

    model = serve.fresh(inspect_folder(tiny("qwen3", num_hidden_layers=4)), blocks=64)  # that no other test serves
    assert told() == ["granted", "may load", "reads", "has loaded", "reserves"]
    model.sleep(keep=False)
    assert told() == ["asleep", "reserves"]
    model.wake()
    assert told() == ["awake", "may load", "reads", "cache", "has loaded", "reserves"]
    model.sleep(keep=False)
    told()
    monkeypatch.setattr(model._served, "wake", full)
    with pytest.raises(OutOfMemory):
        model.wake()
    assert told() == ["awake", "may load", "reads", "cache", "has loaded", "asleep", "reserves"]
    monkeypatch.undo()
    model.close()


def test_a_model_that_cannot_wake_sleeps_on(
    serve: Callable[..., Any], tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=64)
    before = asked(model)
    for owner in (KVCache, native_model.Weights):
        model.sleep(keep=False)
        with monkeypatch.context() as patch:
            patch.setattr(owner, "wake", full)
            with pytest.raises(OutOfMemory, match="was woken"):
                model.wake()
        assert not any(model.memory().values())
        model.wake()
        assert asked(model) == before
    model.close()
