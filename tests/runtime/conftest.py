"""Models of the runtime's tests, loaded once, and transformers' own versions of them as oracles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.device.view import DeviceView
from lodger.engines.base import LoadRequest
from lodger.engines.native import NativeEngine
from lodger.plan.demand import Demand
from lodger.plan.values import Candidate
from lodger.runtime import kv
from lodger.runtime.allocator import Grant, allowance, trim
from lodger.runtime.loading import load_runner
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.spec import ModelSpec
from lodger.tasks import Kind
from lodger.units import GIB


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every test of the runtime holds on a GPU as well."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def all_of_the_card() -> Iterator[None]:
    """Tests before share this one's process, as no engine does: what they leave on a GPU is granted like a model, and
    where no engine is about torch may hold all it likes."""
    yield
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        trim()
        card = torch.device("cuda:0")
        allowance(card).grant("tests before", Grant(kept=torch.cuda.memory_reserved(card), step=0))
        torch.cuda.set_per_process_memory_fraction(1.0, card)


@pytest.fixture(scope="session")
def runner_of(tiny: Callable[..., Path], device: torch.device) -> Callable[..., Runner]:
    """`runner_of("qwen3")`: the tiny model of that family in float32, without a KV cache."""
    loaded: dict[Any, Runner] = {}

    def load(family: str, kind: Kind | None = None) -> Runner:
        if (family, kind) not in loaded:
            facts = inspect_folder(tiny(family), kind)
            loaded[family, kind] = load_runner(facts, GIB, [precision("float32", device)], device, lambda _: None)
        return loaded[family, kind]

    return load


@pytest.fixture(scope="session")
def oracle_of(tiny: Callable[..., Path], device: torch.device) -> Callable[[str], Any]:
    """`oracle_of("qwen3")`: transformers' own model of that family, loaded by transformers."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    classes = {"bge-reranker": AutoModelForSequenceClassification, "bge-m3": AutoModel, "minilm": AutoModel}
    loaded: dict[str, Any] = {}

    def load(family: str) -> Any:
        if family not in loaded:
            cls = classes.get(family, AutoModelForCausalLM)
            loaded[family] = cls.from_pretrained(tiny(family), dtype=torch.float32).eval().to(device)
        return loaded[family]

    return load


class Serve:
    """`serve("qwen3")`: that tiny model behind the native engine, in float32 unless told otherwise."""

    def __init__(self, engine: NativeEngine, device: torch.device, tiny: Callable[..., Path]) -> None:
        self.engine, self.device, self._tiny = engine, device, tiny
        self._served: dict[Any, Any] = {}
        self._numbers = count()

    def __call__(self, family: str, kind: Kind | None = None, **changes: Any) -> Any:
        """Loaded once for each combination; see `fresh`."""
        key = (family, kind, tuple(sorted(changes.items())))
        if key not in self._served:
            self._served[key] = self.fresh(inspect_folder(self._tiny(family), kind), **changes)
        return self._served[key]

    def fresh(self, facts: ModelFacts, *, dtype: str | None = "float32", blocks: int = 256, **budget: Any) -> Any:
        """A model of its own with a KV cache of `blocks` blocks of 16 tokens, to be closed by the test. For the rest it
        is granted what the plan says."""
        kind: Any = self.device.type
        view = DeviceView(id=str(self.device), kind=kind, name="any", total=GIB, free=GIB)
        planned = Demand(Candidate(ModelSpec(uid="any"), facts), view, dtype or "bfloat16", None).smallest
        kept = {
            "weights": GIB,
            "kv_cache": blocks * kv.block_bytes(facts, 16, torch.float32),
        }
        granted = msgspec.structs.replace(planned, **{**kept, "step_tokens": 256, "context_length": 0, **budget})
        spec = ModelSpec(uid=f"{facts.name}-{next(self._numbers)}")
        request = LoadRequest(spec=spec, facts=facts, budget=granted, device=str(self.device), dtype=dtype)
        return self.engine.load(request, lambda _: None)


@pytest.fixture(scope="session")
def serve(device: torch.device, tiny: Callable[..., Path]) -> Iterator[Serve]:
    engine = NativeEngine(str(device))
    yield Serve(engine, device, tiny)
    engine.close()
