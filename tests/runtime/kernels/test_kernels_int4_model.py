"""A quantised checkpoint stays in four bits, in the bytes that were planned, and computes what its numbers say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import TOLERANCE, far
from tiny_int4 import FORMS, dense_folder, quantised

from lodger.catalogue.inspect import inspect_folder
from lodger.device.view import DeviceView
from lodger.plan import footprint
from lodger.runtime.int4 import Int4Linear
from lodger.runtime.loading import load_runner
from lodger.runtime.packed import pack_items
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.sched.step import Item
from lodger.units import GIB

Where = tuple[torch.device, torch.dtype]


@pytest.fixture
def half(where: Where) -> Where:
    """The kernel knows no float32, and the interpreter no bfloat16."""
    return where if where[1] != torch.float32 else (where[0], torch.float16)


def load(folder: Path, half: Where, int4: bool = True) -> Runner:
    """In a precision of a kind that only these tests have on a CPU, where the kernels are interpreted."""
    chosen = precision(str(half[1]).rpartition(".")[2], half[0])
    if int4:
        chosen = chosen._replace(int4=True, compute=half[1])
    return load_runner(inspect_folder(folder), GIB, [chosen], half[0], lambda _: None)


def hidden(runner: Runner) -> torch.Tensor:
    tokens = tuple(range(3, 40))
    return runner.hidden(pack_items([Item(0, 0, tokens), Item(0, 1, (5, 6, 7))], 0, runner.device))


@pytest.mark.parametrize(
    ("family", "form"), [*(("qwen3", form) for form in FORMS), ("qwen2", "awq"), ("llama", "gptq-row")]
)
def test_it_computes_with_its_numbers_and_takes_what_was_planned(
    family: str, form: str, tiny: Callable[..., Path], half: Where, tmp_path: Path
) -> None:
    folder = quantised(tiny(family), tmp_path / form, FORMS[form])
    with torch.inference_mode():
        runner = load(folder, half)
        assert far(hidden(runner), hidden(load(dense_folder(folder), half, int4=False))) < 8 * TOLERANCE[half[1]]
    device = DeviceView(id="cuda:0", kind="cuda", name="card", total=GIB, free=GIB, compute_capability=(9, 0))
    assert runner.weight_bytes == footprint.weights(runner.facts, str(half[1]).rpartition(".")[2], device)
    backbone: Any = runner.backbone
    layer = backbone.layers[0]
    assert all(
        isinstance(product.__self__, Int4Linear) for product in (layer.qkv, layer.out, layer.gate_up, layer.down)
    )
