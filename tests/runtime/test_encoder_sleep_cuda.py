"""On a GPU: an encoder that slept finds what it found before, and is as ready: no request captures anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lodger.budget import Budget
from lodger.catalogue.inspect import inspect_folder
from lodger.engines.base import LoadRequest
from lodger.engines.native import NativeEngine
from lodger.spec import ModelSpec
from lodger.tasks import EmbedTask
from lodger.units import GIB

pytestmark = pytest.mark.gpu
CAPTURE = "lodger.runtime.encoder_graphs.EncoderGraphs._capture"  # imported where Triton is
TEXTS = tuple("好 Hello " * (1 + n % 30) for n in range(90))


def vectors(model: Any) -> np.ndarray[Any, Any]:
    found = asyncio.run(model.embed(EmbedTask(model="m", inputs=TEXTS)))
    return np.frombuffer(found.vectors, "<f4").copy()


@pytest.mark.parametrize("keep", [True, False], ids=["kept in RAM", "read again"])
def test_awake_again_it_finds_the_same_by_captured_steps(
    keep: bool, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = NativeEngine("cuda:0")
    facts = inspect_folder(tiny("bge-m3"))
    budget = Budget(weights=GIB, activations=GIB // 4, unfinished=GIB // 16, graphs=GIB // 8, step_tokens=8192)
    request = LoadRequest(spec=ModelSpec(uid="m"), facts=facts, budget=budget, device="cuda:0", dtype="float16")
    model: Any = engine.load(request, lambda _: None)
    before = vectors(model)
    ready = set(model._lane.runner.backbone._graphs._captured)
    assert ready
    for _ in range(2):
        model.sleep(keep=keep)
        model.wake()
        assert set(model._lane.runner.backbone._graphs._captured) == ready
        with monkeypatch.context() as late:
            late.setattr(CAPTURE, lambda *_: pytest.fail("captured by a request"))
            assert np.array_equal(vectors(model), before)
    model.close()
    engine.close()
