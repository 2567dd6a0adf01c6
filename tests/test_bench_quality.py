"""Perplexity counts every token once, and int8 rounds the layers and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_int4 import FORMS, dense_folder, quantised
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


def test_a_quantised_checkpoint_is_measured_with_what_its_numbers_mean(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = quantised(tiny("llama"), tmp_path / "awq", FORMS["awq"])
    found, dense = quality.int4(folder), quality.load(dense_folder(folder), torch.float32)
    expected = dict(dense.named_parameters())
    assert all(torch.equal(own, expected[name]) for name, own in found.named_parameters())


def test_rounding_to_four_bits_is_off_by_half_a_step_at_most(tiny: Callable[..., Path]) -> None:
    exact, rounded = (
        dict(make(tiny("llama")).named_parameters()) for make in (quality.PRECISIONS["float32"], quality.rounded_int4)
    )
    for name, own in exact.items():
        if not name.endswith("_proj.weight"):
            assert torch.equal(own, rounded[name])
            continue
        spread = own.amax(dim=1, keepdim=True).clamp_min(0) - own.amin(dim=1, keepdim=True).clamp_max(0)
        assert ((own - rounded[name]).abs() <= spread / 15 * 0.51).all()
        assert not torch.equal(own, rounded[name])
