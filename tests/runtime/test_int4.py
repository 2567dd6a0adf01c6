"""Published checkpoints of four bits mean what their form's definition says, and the runtime's own form keeps that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_int4
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_int4 import FORMS, Form, dense_folder, pack_matrix, quantised, random_matrix
from transformers import AutoModelForCausalLM

from lodger.catalogue.facts import Int4Weights
from lodger.catalogue.inspect import inspect_folder
from lodger.catalogue.int4 import BLOCK, resident_bytes
from lodger.errors import DamagedWeights, ModelProblem
from lodger.runtime import dtype, int4, int4_stored, loading
from lodger.runtime.int4 import pack_again
from lodger.runtime.int4_stored import StoredInt4
from lodger.runtime.kernels.int4_tiling import MOST_TOKENS, tile_for
from lodger.runtime.kernels.product_tiling import MOST_TILES
from lodger.runtime.packed import pack_items
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.runtime.weights import Checkpoint
from lodger.sched.step import Item
from lodger.units import GIB

CPU = torch.device("cpu")
shapes = {"rows": st.integers(1, 5).map(lambda n: 8 * n), "columns": st.integers(1, 12).map(lambda n: 32 * n)}


def stored(form: Form, rows: int, columns: int, seed: int = 0) -> tuple[StoredInt4, torch.Tensor]:
    """A random matrix as its file has it, and what it means."""
    matrix = random_matrix(rows, columns, form, seed)
    parts = {name: torch.from_numpy(part) for name, part in pack_matrix(matrix, form).items()}
    packing = Int4Weights(
        method="awq" if form.method == "awq" else "gptq",
        group=max(form.group, 0),
        symmetric=form.symmetric,
        zeros_less_one=form.layout == "gptq",
    )
    return int4_stored.take({f"w.{name}": part for name, part in parts.items()}, "w", packing), torch.from_numpy(
        matrix.dense
    )


def unpacked(words: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 [rows, blocks * 128] of the runtime's form, by its description."""
    blocks, rows, _ = words.shape
    group = blocks * BLOCK // len(scales)
    found = torch.empty(rows, blocks * BLOCK)
    for column in range(found.shape[1]):
        inside = column % BLOCK
        quarter, odd = inside // 32, inside % 2
        number = (words[column // BLOCK, :, inside % 32 // 2] >> (4 * quarter + (0 if odd else 16))) & 15
        both = scales[column // group]
        scale = both.to(torch.int16).view(torch.float16).float()
        found[:, column] = (number - (both >> 16)).float() * scale
    return found


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=4)
@given(**shapes, seed=st.integers(0, 1000))
def test_a_stored_matrix_means_what_its_definition_says(name: str, rows: int, columns: int, seed: int) -> None:
    if FORMS[name].method == "awq" and columns % max(FORMS[name].group, 1):
        columns = 64
    weight, meant = stored(FORMS[name], rows, columns, seed)
    assert weight.shape == meant.shape
    assert torch.equal(weight.dense(), meant)
    assert torch.equal(weight.dense(torch.bfloat16), meant.bfloat16())


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=4)
@given(**shapes, seed=st.integers(0, 1000))
def test_packed_again_it_means_the_same(name: str, rows: int, columns: int, seed: int) -> None:
    if FORMS[name].method == "awq" and columns % max(FORMS[name].group, 1):
        columns = 64
    weights, meant = zip(*(stored(FORMS[name], rows * n, columns, seed + n) for n in (1, 2)), strict=True)
    words, scales = pack_again(weights, CPU)
    whole = unpacked(words, scales)
    assert torch.equal(whole[:, :columns], torch.cat(meant))
    assert words.nbytes + scales.nbytes == sum(resident_bytes(*own.shape, max(FORMS[name].group, 0)) for own in meant)


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, meant = stored(FORMS["awq"], 24, 640)
    whole = pack_again([weight], CPU)
    monkeypatch.setattr(int4, "_PIECE", 24 * BLOCK * 2)
    monkeypatch.setattr(int4_stored, "_PIECE", 24 * 40)
    assert all(torch.equal(one, other) for one, other in zip(pack_again([weight], CPU), whole, strict=True))
    assert torch.equal(weight.dense(), meant)


def test_a_symmetric_checkpoint_with_other_zero_points_is_damaged() -> None:
    weight, _ = stored(Form("gptq", 32, symmetric=False, layout="gptq"), 8, 64)
    wrong = StoredInt4(weight.words, weight.zeros, weight.scales, Int4Weights(method="gptq", group=32, symmetric=True))
    with pytest.raises(DamagedWeights, match="weights are symmetric"):
        wrong.dense()


def test_columns_in_an_order_of_their_own_are_refused() -> None:
    matrix = random_matrix(8, 64, FORMS["gptq"])
    parts = {f"w.{name}": torch.from_numpy(part) for name, part in pack_matrix(matrix, FORMS["gptq"]).items()}
    packing = Int4Weights(method="gptq", group=32, symmetric=True, zeros_less_one=True)
    assert int4_stored.take(parts, "w", packing).shape == (8, 64)
    parts["w.g_idx"] = parts["w.g_idx"].flip(0)
    with pytest.raises(ModelProblem, match=r"w has its columns grouped by their activations \(desc_act\)"):
        int4_stored.take(parts, "w", packing)


def load(folder: Path, name: str = "float32") -> Runner:
    facts = inspect_folder(folder)
    return loading.load_runner(facts, GIB, [precision(name, CPU)], CPU, lambda _: None)


@pytest.fixture(scope="module")
def made(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A family's tiny model in a published form, made once."""
    found: dict[tuple[str, str], Path] = {}

    def make(family: str, form: str) -> Path:
        if (family, form) not in found:
            path = tmp_path_factory.mktemp("int4") / f"{family}-{form}"
            found[family, form] = quantised(tiny(family), path, FORMS[form])
        return found[family, form]

    return make


@pytest.mark.parametrize(
    ("family", "form"),
    [*(("qwen3", form) for form in FORMS), ("qwen2", "awq"), ("qwen2", "gptq"), ("llama", "awq"), ("llama", "gptq")],
)
def test_a_checkpoint_computes_what_transformers_does_with_its_numbers(
    family: str, form: str, made: Callable[[str, str], Path]
) -> None:
    folder = made(family, form)
    runner = load(folder)
    tokens = list(range(3, 40))
    found = runner.hidden(pack_items([Item(0, 0, tuple(tokens))], 0, CPU))
    assert runner.lm_head is not None
    model: Any = AutoModelForCausalLM.from_pretrained(dense_folder(folder), dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
        assert torch.allclose(runner.lm_head(found), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", ["awq", "gptq-row"])
def test_where_no_kernel_runs_it_is_a_model_of_ordinary_weights(
    form: str, name: str, made: Callable[[str, str], Path]
) -> None:
    """The same bytes, and the same numbers, as of the folder whose numbers are stored as float32."""
    int4, dense = (load(folder, name) for folder in (made("qwen3", form), dense_folder(made("qwen3", form))))
    assert int4.weight_bytes == dense.weight_bytes
    batch = pack_items([Item(0, 0, tuple(range(5, 30)))], 0, CPU)
    assert torch.equal(int4.hidden(batch), dense.hidden(batch))
    facts = inspect_folder(made("qwen3", form))
    counted = loading.read_stored(facts, Checkpoint(Path(facts.path), facts.int4))
    assert int4.weight_bytes == loading.weight_bytes(counted, facts, int4.precision, CPU)
    assert not any(choice.int4 for choice in dtype.precisions(facts, None, CPU))


def test_progress_of_a_quantised_model_rises_to_1(made: Callable[[str, str], Path]) -> None:
    told: list[float] = []
    facts = inspect_folder(made("qwen3", "awq"))
    loading.load_runner(facts, GIB, [precision("float32", CPU)], CPU, told.append)
    assert told == sorted(told)
    assert told[0] < 0.6
    assert told[-2] < 1.0
    assert told[-1] == pytest.approx(1.0)


def changed(folder: Path, to: Path, change: Callable[[tiny_int4.Tensors], None]) -> Path:
    shutil.copytree(folder, to)
    tensors = tiny_int4.read_tensors(folder / "model.safetensors")
    change(tensors)
    tiny_int4.write_tensors(to / "model.safetensors", tensors)
    return to


def test_biases_of_zeros_that_gptq_adds_are_nothing(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.bias"

    def add(tensors: tiny_int4.Tensors) -> None:
        tensors[name] = tensors["model.layers.0.mlp.down_proj.scales"][0] * 0

    def not_zero(tensors: tiny_int4.Tensors) -> None:
        add(tensors)
        tensors[name][3] = 1

    folder = changed(made("qwen3", "gptq"), tmp_path / "zeros", add)
    batch = pack_items([Item(0, 0, (5, 6, 7))], 0, CPU)
    assert torch.equal(load(folder).hidden(batch), load(made("qwen3", "gptq")).hidden(batch))
    with pytest.raises(DamagedWeights, match="1 unexpected"):
        load(changed(made("qwen3", "gptq"), tmp_path / "ones", not_zero))


def test_a_matrix_of_another_model_is_named(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "wider"
    shutil.copytree(made("qwen3", "awq"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 160}))
    with pytest.raises(DamagedWeights, match=r"gate_proj.weight' has the shape \[128, 64\] in four bits.*\[160, 64\]"):
        load(folder)


@given(
    tokens=st.integers(1, MOST_TOKENS),
    rows=st.integers(1, 25_000).map(lambda n: 8 * n),
    blocks=st.integers(1, 240),
    processors=st.integers(1, 200),
)
def test_a_cut_shares_no_more_tiles_than_are_counted_and_gives_each_program_work(
    tokens: int, rows: int, blocks: int, processors: int
) -> None:
    tile = tile_for(tokens, rows, blocks, processors)
    assert 1 <= tile.splits <= blocks
    if tile.splits > 1:
        assert -(-rows // tile.rows) * -(-tokens // tile.tokens) <= MOST_TILES
        assert tile.splits * -(-rows // tile.rows) * -(-tokens // tile.tokens) <= 8 * processors
