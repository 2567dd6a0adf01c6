"""Perplexity counts every token once, and int8 rounds the layers and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from bench import quality


@pytest.mark.parametrize("count", [2, 100, 257, 258, 513, 800])
def test_every_token_but_the_first_counts_once(count: int, tiny: Callable[..., Path]) -> None:
    model = quality.load(tiny("llama"), torch.float32)
    tokens = [n * 7 % 90 + 5 for n in range(count)]
    found = quality.losses(model, tokens)
    assert len(found) == count - 1
    near = torch.tensor(tokens[: quality.WINDOW + 1])
    with torch.inference_mode():
        direct = cross_entropy(model(near[None, :-1]).logits[0], near[1:], reduction="none")
    assert torch.allclose(found[: len(direct)], direct, atol=1e-4)


def test_int8_rounds_the_layers_and_nothing_else(tiny: Callable[..., Path]) -> None:
    exact, rounded = (
        dict(make(tiny("llama")).named_parameters())
        for make in (quality.PRECISIONS["float32"], quality.PRECISIONS["int8"])
    )
    changed = {name for name in exact if not torch.equal(exact[name], rounded[name])}
    assert changed == {name for name in exact if name.endswith("_proj.weight")}
