"""A decoder with weights of one byte computes what its rounded weights say, in the bytes that were planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import TOLERANCE, far

from lodger.catalogue.inspect import inspect_folder
from lodger.device.view import DeviceView
from lodger.plan import footprint
from lodger.runtime.layers import Placement
from lodger.runtime.loading import load_runner
from lodger.runtime.packed import pack_items
from lodger.runtime.precision import Precision, precision
from lodger.runtime.quantised import QuantisedLinear, quantise
from lodger.runtime.runner import Runner
from lodger.sched.step import Item
from lodger.units import GIB

Where = tuple[torch.device, torch.dtype]


def int8(where: Where) -> Precision:
    """Of a kind that only these tests have on a CPU, where the kernels are interpreted."""
    return precision(str(where[1]).rpartition(".")[2], where[0])._replace(int8=True, tolerance=0.2)


def load(folder: Path, where: Where) -> Runner:
    return load_runner(inspect_folder(folder), GIB, [int8(where)], where[0], lambda _: None)


def hidden(runner: Runner) -> torch.Tensor:
    tokens = torch.arange(3, 40, device=runner.device)
    items = [Item(0, 0, tuple(tokens.tolist())), Item(0, 1, (5, 6, 7))]
    return runner.hidden(pack_items(items, 0, runner.device))


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "qwen3-embedding"])
def test_it_computes_with_its_rounded_weights(
    family: str, tiny: Callable[..., Path], where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        found = hidden(load(tiny(family), where))

        def rounded(self: Placement, weights: list[torch.Tensor], biases: list[Any]) -> torch.nn.Module:
            values, scales = quantise(weights, torch.device("cpu"))
            return self.dense([values.float() * scales[:, None]], biases[:1] and [_joined(biases)])

        monkeypatch.setattr(Placement, "_quantised", rounded)
        assert far(found, hidden(load(tiny(family), where))) < 4 * TOLERANCE[where[1]]


def _joined(biases: list[torch.Tensor | None]) -> torch.Tensor | None:
    present = [bias for bias in biases if bias is not None]
    return torch.cat(present) if present else None


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "qwen3-embedding"])
def test_planned_and_held_bytes_are_the_same(family: str, tiny: Callable[..., Path], where: Where) -> None:
    runner = load(tiny(family), where)
    device = DeviceView(id="cuda:0", kind="cuda", name="card", total=GIB, free=GIB, compute_capability=(9, 0))
    name = str(where[1]).rpartition(".")[2]
    assert runner.weight_bytes == footprint.weights(runner.facts, name, device, int8=True)
    backbone: Any = runner.backbone
    layer = backbone.layers[0]
    assert all(isinstance(product.__self__, QuantisedLinear) for product in (layer.qkv, layer.out, layer.gate_up))
    assert not isinstance(backbone.embed, QuantisedLinear)
