"""The encoder made of our kernels computes what the plain one computes, and its norm is the formula's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attention_cases import TOLERANCE, far

from lodger.catalogue.inspect import inspect_folder
from lodger.runtime import families
from lodger.runtime.attention.sdpa import SdpaAttention
from lodger.runtime.context import attending
from lodger.runtime.encoder import DenseEncoder
from lodger.runtime.fused_encoder import FusedEncoder
from lodger.runtime.kernels.layer_norm import layer_norm
from lodger.runtime.layers import Placement
from lodger.runtime.packed import pack_items
from lodger.runtime.precision import precision
from lodger.runtime.weights import Checkpoint
from lodger.sched.step import Item

Where = tuple[torch.device, torch.dtype]
EPSILON = 1e-5


def random(where: Where, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=where[0]).to(where[1])


@pytest.mark.parametrize("width", [96, 384, 1024])
@pytest.mark.parametrize("tokens", [1, 5])
def test_norm_of_a_sum(tokens: int, width: int, where: Where) -> None:
    x, residual = random(where, tokens, width) + 3, random(where, tokens, width)
    weight, bias = random(where, width), random(where, width)
    added, kept = x.double() + residual.double(), residual.clone()
    centred = added - added.mean(-1, keepdim=True)
    expected = centred * (centred.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt() * weight.double() + bias.double()
    assert far(layer_norm(x, residual, weight, bias, EPSILON), expected) < TOLERANCE[where[1]]
    assert torch.equal(residual, kept)


def test_norm_of_equal_numbers_is_the_bias(where: Where) -> None:
    x, bias = random(where, 2, 96) * 0 + 2, random(where, 96)
    assert torch.equal(layer_norm(x, x.clone(), random(where, 96), bias, EPSILON), bias.expand(2, -1))


@pytest.mark.parametrize("family", ["minilm", "bge-m3"])
@torch.inference_mode()
def test_an_encoder_of_our_kernels(family: str, tiny: Callable[..., Path], where: Where) -> None:
    facts = inspect_folder(tiny(family))
    chosen = precision(str(where[1]).rpartition(".")[2], where[0])
    lengths = (5, 1, 13)
    items = [Item(0, n, tuple(range(5, 5 + length))) for n, length in enumerate(lengths)]
    batch = pack_items(items, facts.position_offset, where[0])
    made = []
    for cls in (DenseEncoder, FusedEncoder):
        model = families.build(facts)
        Checkpoint(Path(facts.path)).fill(model)
        encoder = cls(model.base_model, Placement(where[0], chosen, lambda size: None))
        with attending(SdpaAttention(where[0]).plan(batch, None, causal=False)):
            made.append(encoder(batch))
    assert far(made[1], made[0]) < chosen.tolerance / 2
