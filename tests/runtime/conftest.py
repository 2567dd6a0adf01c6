"""Models of the runtime's tests, loaded once, and transformers' own versions of them as oracles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lodger.catalogue.inspect import inspect_folder
from lodger.runtime.loading import load_runner
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.tasks import Kind
from lodger.units import GIB


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every test of the runtime holds on a GPU as well."""
    return torch.device(request.param)


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
