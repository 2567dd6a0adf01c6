"""The encoder made of our kernels computes what the plain one computes, and its norm is the formula's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attention_cases import TOLERANCE, far

from lodger.catalogue.inspect import inspect_folder
from lodger.runtime import encoder_graphs, families
from lodger.runtime.attention.sdpa import SdpaAttention
from lodger.runtime.context import attending
from lodger.runtime.encoder import DenseEncoder, finish
from lodger.runtime.encoder_graphs import EncoderGraphs
from lodger.runtime.fused_encoder import FusedEncoder
from lodger.runtime.kernels.embeddings import embed
from lodger.runtime.kernels.encoder_attention import attend_texts
from lodger.runtime.kernels.layer_norm import layer_norm
from lodger.runtime.kernels.tiling import text_tiles
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
    kept = residual.clone()
    expected = layer_norm_of(x.double() + residual.double(), weight.double(), bias.double())
    assert far(layer_norm(x, residual, weight, bias, EPSILON), expected) < TOLERANCE[where[1]]
    assert torch.equal(residual, kept)


def test_norm_of_equal_numbers_is_the_bias(where: Where) -> None:
    x, bias = random(where, 2, 96) * 0 + 2, random(where, 96)
    assert torch.equal(layer_norm(x, x.clone(), random(where, 96), bias, EPSILON), bias.expand(2, -1))


@pytest.mark.parametrize("width", [96, 1024])
def test_the_norm_of_a_sum_of_embeddings(width: int, where: Where) -> None:
    tables = tuple(random(where, rows, width) for rows in (50, 20, 2))
    weight, bias = random(where, width), random(where, width)
    inputs = torch.stack([torch.randint(rows, (7,), device=where[0]) for rows in (50, 20, 2)])
    added = sum(table.double()[ids] for table, ids in zip(tables, inputs, strict=True))
    expected = layer_norm_of(added, weight.double(), bias.double())
    found = embed(inputs, (tables[0], tables[1], tables[2]), (weight, bias, EPSILON))
    assert far(found, expected) < TOLERANCE[where[1]]
    assert torch.equal(embed(inputs.int(), (tables[0], tables[1], tables[2]), (weight, bias, EPSILON)), found)


def layer_norm_of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt() * weight + bias


@pytest.mark.parametrize("lengths", [(1,), (64, 128), (5, 1, 130, 64, 17), (300,)])
@pytest.mark.parametrize(("heads", "dim"), [(2, 64), (3, 32), (2, 24), (1, 128)])
def test_texts_attend_within_themselves(lengths: tuple[int, ...], heads: int, dim: int, where: Where) -> None:
    qkv = random(where, sum(lengths), 3 * heads * dim)
    query, key, value = qkv.double().view(-1, 3, heads, dim).unbind(1)
    tiles = torch.tensor([*text_tiles(lengths), (0, 0, 0, 0)], dtype=torch.int32, device=where[0])
    found = attend_texts(qkv, dim, tiles, 0.3).view(-1, heads, dim)
    start = 0
    for length in lengths:
        own = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", query[own], key[own]) * 0.3
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[own])
        assert far(found[own], expected) < 2 * TOLERANCE[where[1]]
        start += length


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


class Replayed:
    """What a captured forward does, without a GPU: it reads and writes the same memory."""

    def __init__(self, step: Callable[[], None], device: torch.device, partition: None) -> None:
        self.replay = step


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # numpy's, in the interpreter: tokens that nobody sent are garbage
@torch.inference_mode()
def test_forwards_of_any_length_share_what_captured_ones_read(
    tiny: Callable[..., Path], where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer steps leave tokens and positions behind shorter ones of other buckets, which must not show."""
    monkeypatch.setattr(encoder_graphs, "captured", Replayed)
    facts = inspect_folder(tiny("bge-m3"))
    model = families.build(facts)
    Checkpoint(Path(facts.path)).fill(model)
    chosen = precision(str(where[1]).rpartition(".")[2], where[0])
    encoder = FusedEncoder(model.base_model, Placement(where[0], chosen, lambda size: None))
    graphs = EncoderGraphs(encoder.forward, facts.hidden_size, where[1], where[0], (8, 24))
    graphs.warm_up(24)
    for lengths in ((13, 11), (3, 5), (20,), (2,)):
        items = [Item(0, n, tuple(90 - at % 80 for at in range(length))) for n, length in enumerate(lengths)]
        batch = pack_items(items, facts.position_offset, where[0])
        assert graphs.serves(batch.lengths)
        plan = SdpaAttention(where[0]).plan(batch, None, causal=False)
        expected = finish(DenseEncoder.by_layer(encoder, batch, plan))
        assert far(graphs.run(batch), expected) < max(chosen.tolerance / 2, TOLERANCE[where[1]])
