"""Any number of texts in one forward compute what each of them computes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import UnknownArchitecture
from lodger.runtime import loading
from lodger.runtime.attention import interface
from lodger.runtime.backbone import TransformersBackbone
from lodger.runtime.encoder import DenseEncoder
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import pack_items, pack_rows
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.runtime.selftest import SelfTest
from lodger.sched.step import Item, Row
from lodger.units import GIB

DECODERS = ("qwen3", "qwen2", "llama")
LENGTHS = (5, 33, 1, 17)
BLOCK = 4


@pytest.fixture(params=["fast", "generic"])
def path(request: pytest.FixtureRequest) -> str:
    """The lean forward of ours, or transformers' own forward with our attention."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def loaded(
    tiny: Callable[..., Path],
    runner_of: Callable[..., Runner],
    device: torch.device,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Runner]:
    def load(family: str) -> Runner:
        if path == "fast":
            return runner_of(family)
        monkeypatch.setattr(loading, "is_dense", lambda model: False)
        monkeypatch.setattr(loading, "is_bert_like", lambda model: False)
        facts = inspect_folder(tiny(family))
        return loading.load_runner(facts, GIB, [precision("float32", device)], device, lambda _: None)

    return load


@pytest.fixture
def encoder(loaded: Callable[[str], Runner], path: str) -> Callable[[str], Runner]:
    def load(family: str) -> Runner:
        runner = loaded(family)
        assert isinstance(runner.backbone, DenseEncoder) == (path == "fast")
        return runner

    return load


def texts(vocabulary: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocabulary, (length,), generator=generator) for length in LENGTHS]


class Pages:
    """A KV cache whose blocks are handed out in falling order, so that no sequence lies contiguously."""

    def __init__(self, runner: Runner) -> None:
        self.cache = KVCache(runner.facts, 64, BLOCK, torch.float32, runner.device)
        self.free = list(range(64))
        self.tables: dict[int, list[int]] = {}

    def row(self, sequence: int, tokens: torch.Tensor, start: int, end: int) -> Row:
        table = self.tables.setdefault(sequence, [])
        while len(table) * BLOCK < end:
            table.append(self.free.pop())
        return Row(sequence, tuple(tokens[start:end].tolist()), start, tuple(table), True)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() < 2e-5 * expected.abs().max().clamp(min=1))


@pytest.mark.parametrize("family", DECODERS)
def test_mixed_steps_over_a_paged_cache_equal_each_sequence_alone(
    family: str, loaded: Callable[[str], Runner], oracle_of: Callable[[str], Any]
) -> None:
    runner, oracle = loaded(family), oracle_of(family).model
    sequences = texts(runner.facts.vocab_size)
    alone = [oracle(t[None].to(runner.device), use_cache=False)[0][0] for t in sequences]
    pages, done = Pages(runner), [0] * len(sequences)
    for chunk in ([3, 8, 1, 0], [1, 8, 0, 8], [1, 16, 0, 1], [0, 1, 0, 8]):  # prefill beside decode
        rows = [pages.row(n, sequences[n], done[n], done[n] + count) for n, count in enumerate(chunk) if count]
        hidden = runner.hidden(pack_rows(rows, BLOCK, runner.device), pages.cache)
        for row, own in zip(rows, hidden.split([len(row.tokens) for row in rows]), strict=True):
            done[row.sequence] += len(row.tokens)
            assert close(own, alone[row.sequence][row.start : done[row.sequence]])
    assert done == list(LENGTHS)


@pytest.mark.parametrize("family", DECODERS)
def test_a_sequence_may_begin_with_blocks_that_another_computed(
    family: str, loaded: Callable[[str], Runner], oracle_of: Callable[[str], Any]
) -> None:
    runner = loaded(family)
    sequences = texts(runner.facts.vocab_size)
    whole = torch.cat([sequences[1][:32], sequences[3]])
    pages = Pages(runner)
    runner.hidden(pack_rows([pages.row(0, sequences[1], 0, 33)], BLOCK, runner.device), pages.cache)
    pages.tables[1] = pages.tables[0][: 32 // BLOCK]
    hidden = runner.hidden(pack_rows([pages.row(1, whole, 32, len(whole))], BLOCK, runner.device), pages.cache)
    assert close(hidden, oracle_of(family).model(whole[None].to(runner.device), use_cache=False)[0][0, 32:])


@pytest.mark.parametrize("lengths", [(9, 9, 9), (40, 3, 21)])
def test_decoding_together_equals_decoding_alone_at_any_mixture_of_lengths(
    lengths: tuple[int, ...], loaded: Callable[[str], Runner]
) -> None:
    runner = loaded("qwen3")
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(3, runner.facts.vocab_size, (n,), generator=generator) for n in lengths]
    pages = Pages(runner)
    for n, tokens in enumerate(sequences):
        runner.hidden(pack_rows([pages.row(n, tokens, 0, len(tokens) - 1)], BLOCK, runner.device), pages.cache)
    rows = [pages.row(n, tokens, len(tokens) - 1, len(tokens)) for n, tokens in enumerate(sequences)]
    together = runner.hidden(pack_rows(rows, BLOCK, runner.device), pages.cache)
    alone = [runner.hidden(pack_rows([row], BLOCK, runner.device), pages.cache) for row in rows]
    assert close(together, torch.cat(alone))


@pytest.mark.parametrize(("family", "types"), [("bge-m3", 1), ("minilm", 1), ("minilm", 2)])
def test_packed_texts_equal_the_same_texts_padded(
    family: str, types: int, encoder: Callable[[str], Runner], oracle_of: Callable[[str], Any]
) -> None:
    runner, oracle = encoder(family), oracle_of(family)
    sequences = texts(runner.facts.vocab_size)
    kinds = [torch.arange(len(t)) * types // len(t) for t in sequences]
    padded = pad_sequence(sequences, batch_first=True, padding_value=oracle.config.pad_token_id).to(runner.device)
    mask = pad_sequence([torch.ones_like(t) for t in sequences], batch_first=True).to(runner.device)
    parts = pad_sequence(kinds, batch_first=True).to(runner.device)
    expected = oracle(padded, attention_mask=mask, token_type_ids=parts)[0]
    items = [
        Item(0, n, tuple(t.tolist()), tuple(kind.tolist()))
        for n, (t, kind) in enumerate(zip(sequences, kinds, strict=True))
    ]
    hidden = runner.hidden(pack_items(items, runner.facts.position_offset, runner.device))
    for n, own in enumerate(hidden.split(list(LENGTHS))):
        assert close(own, expected[n, : LENGTHS[n]])


@pytest.mark.parametrize("family", ["minilm", "bge-m3"])
def test_an_encoder_with_another_activation_takes_the_generic_path(
    family: str, tiny: Callable[..., Path], device: torch.device
) -> None:
    facts = inspect_folder(tiny(family, hidden_act="gelu_new"))
    runner = loading.load_runner(facts, GIB, [precision("float32", device)], device, lambda _: None)
    assert isinstance(runner.backbone, TransformersBackbone)


def test_a_sliding_window_hides_old_keys_in_prefill_and_decode(tiny: Callable[..., Path], device: torch.device) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1, layer_types=None)
    facts = inspect_folder(folder)
    runner = loading.load_runner(facts, GIB, [precision("float32", device)], device, lambda _: None)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).model
    tokens = texts(facts.vocab_size)[1]
    expected = oracle(tokens[None].to(device), use_cache=False)[0][0]
    pages = Pages(runner)
    for start, end in ((0, 16), (16, 30), (30, 31), (31, 32)):  # fresh, a later chunk, decode
        hidden = runner.hidden(pack_rows([pages.row(0, tokens, start, end)], BLOCK, device), pages.cache)
        assert close(hidden, expected[start:end])


def test_a_family_that_ignores_our_attention_is_refused() -> None:
    from transformers import MPNetConfig, MPNetModel

    model = MPNetModel(MPNetConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(UnknownArchitecture, match="MPNetModel does not take a registered attention function"):
        interface.install(model)


def test_attention_with_arguments_that_we_do_not_know_is_refused() -> None:
    tensor = torch.zeros(1, 1, 2, 4)
    with pytest.raises(UnknownArchitecture, match="Linear asks for attention with s_aux"):
        interface.packed_attention(torch.nn.Linear(1, 1), tensor, tensor, tensor, None, s_aux=tensor)
    with pytest.raises(UnknownArchitecture, match="attention_mask"):
        interface.packed_attention(torch.nn.Linear(1, 1), tensor, tensor, tensor, tensor)


@pytest.mark.parametrize("family", ["llama", "minilm"])
def test_the_self_test_finds_texts_that_see_each_other(
    family: str, tiny: Callable[..., Path], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_long_text(self: SelfTest, runner: Runner) -> list[torch.Tensor]:
        whole = torch.cat(self._texts)
        batch = pack_items([Item(0, 0, tuple(whole.tolist()))], runner.facts.position_offset, device)
        return list(runner.hidden(batch).split([len(text) for text in self._texts]))

    monkeypatch.setattr(SelfTest, "_generating", one_long_text)
    monkeypatch.setattr(SelfTest, "_encoding", one_long_text)
    facts = inspect_folder(tiny(family))
    with pytest.raises(UnknownArchitecture, match="two texts in one forward differ from each alone by"):
        loading.load_runner(facts, GIB, [precision("float32", device)], device, lambda _: None)
