"""A folder becomes a model inside its budget, or an error that says what is wrong with it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lodger.budget import Budget
from lodger.catalogue.inspect import inspect_folder
from lodger.errors import DamagedWeights, MissingDependency, OutOfMemory, UnknownArchitecture, Unsupported
from lodger.runtime import dtype, families, kv, loading
from lodger.runtime.layers import PIECE_ROWS, make_linear
from lodger.runtime.precision import precision
from lodger.runtime.selftest import SelfTest
from lodger.runtime.weights import Checkpoint
from lodger.units import GIB

CPU = torch.device("cpu")


def load(folder: Path, name: str = "float32", device: torch.device = CPU, budget: int = GIB) -> Any:
    return loading.load_runner(inspect_folder(folder), budget, [precision(name, device)], device, lambda _: None)


@pytest.fixture
def copy(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A model folder that the test may change; `tensors` maps its weights to new ones."""

    def make(family: str, tensors: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found) -> Path:
        folder = shutil.copytree(tiny(family), tmp_path / family)
        changed = tensors(load_file(folder / "model.safetensors"))
        save_file(changed, folder / "model.safetensors")
        return folder

    return make


def test_missing_and_unexpected_tensors_are_named(copy: Callable[..., Path]) -> None:
    def rename(found: dict[str, Any]) -> dict[str, Any]:
        return {("model.extra.weight" if name == "model.norm.weight" else name): t for name, t in found.items()}

    message = r"do not match Qwen3Model: 1 missing \(norm.weight\) and 1 unexpected \(model.extra.weight\)"
    with pytest.raises(DamagedWeights, match=message):
        load(copy("qwen3", rename))


def test_tensors_of_another_shape_are_named_with_both_shapes(copy: Callable[..., Path]) -> None:
    def cut(found: dict[str, Any]) -> dict[str, Any]:
        return found | {"model.norm.weight": found["model.norm.weight"][:32]}

    with pytest.raises(
        DamagedWeights, match=r"'model.norm.weight' has the shape \[32\] of floats?\d*, .* \[64\] of floats"
    ):
        load(copy("llama", cut))


def test_a_decoder_without_its_output_projection_is_damaged(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(DamagedWeights, match="lack lm_head.weight"):
        load(folder)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_tensor_names_of_related_checkpoints_are_understood(prefix: str, copy: Callable[..., Path]) -> None:
    """Saved from a class around the base model, with a masked-language head, or by a very old version."""

    def old(found: dict[str, Any]) -> dict[str, Any]:
        renamed = {
            prefix + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
            for name, t in found.items()
        }
        return renamed | {"cls.predictions.bias": np.zeros(3, dtype=np.float32)}

    assert load(copy("minilm", old)).weight_bytes > 0


def test_what_a_folder_says_about_code_and_implementations_is_not_heard(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    config = json.loads((folder / "config.json").read_text())
    foreign = {"auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation": "eager", "attn_implementation": "eager",
               "_name_or_path": "x", "trust_remote_code": True}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | foreign))
    (folder / "evil.py").write_text("raise SystemExit('code of a model folder was run')")
    assert not foreign.keys() & families.clean_config(folder).keys()
    assert load(folder).weight_bytes > 0


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_every_precision_passes_the_self_test_and_counts_its_bytes(
    name: str, tiny: Callable[..., Path], device: torch.device
) -> None:
    for family in ("qwen3", "bge-reranker"):
        facts = inspect_folder(tiny(family))
        runner = load(tiny(family), name, device)
        stored = loading.read_stored(facts, Checkpoint(tiny(family)))
        assert runner.weight_bytes == loading.weight_bytes(stored, facts, runner.precision, device)


def test_weights_beyond_the_budget_are_refused_with_both_numbers(tiny: Callable[..., Path]) -> None:
    with pytest.raises(OutOfMemory, match="the weights of qwen3 need .* KiB in float32, and 1 KiB were granted"):
        load(tiny("qwen3"), budget=1024)


def test_a_coarser_precision_is_taken_where_only_that_fits(tiny: Callable[..., Path]) -> None:
    facts = inspect_folder(tiny("llama"))
    choices = [precision(name, CPU) for name in ("float32", "bfloat16")]
    runner = loading.load_runner(facts, loading_size(tiny("llama")) // 2, choices, CPU, lambda _: None)
    assert runner.precision.name == "bfloat16"


def loading_size(folder: Path) -> int:
    size: int = load(folder).weight_bytes
    return size


def test_weights_that_make_no_numbers_are_damaged(copy: Callable[..., Path]) -> None:
    def spoil(found: dict[str, Any]) -> dict[str, Any]:
        found["model.layers.0.mlp.down_proj.weight"][0, 0] = np.nan
        return found

    message = "llama failed its self-test: in float32 the hidden states of 26 of 26 tokens are not finite, each"
    with pytest.raises(DamagedWeights, match=message):
        load(copy("llama", spoil))


@pytest.mark.parametrize("family", ["llama", "bge-m3"])
def test_hidden_states_of_zeros_are_as_good_as_others(family: str, copy: Callable[..., Path]) -> None:
    """Equal to what is expected, and not off by the quotient of nothing and nothing."""

    def silence(found: dict[str, Any]) -> dict[str, Any]:
        last = sorted(
            name for name in found if "norm" in name.lower() and (".1." in name or name == "model.norm.weight")
        )
        return found | {name: np.zeros_like(found[name]) for name in last}

    assert load(copy(family, silence)).weight_bytes > 0


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (torch.inf, "in float32: the hidden states of 1 of 26 tokens are not finite, and in float32 they are"),
        (torch.nan, "in float32: the hidden states of 1 of 26 tokens are not finite, and in float32 they are"),
        (0, r"in float32: two texts in one forward differ from each alone by 1.0e\+00 \(at most 2.0e-04\)"),
    ],
)
def test_a_failed_self_test_says_what_was_measured(
    spoilt: float, said: str, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoils(self: SelfTest, runner: Any) -> torch.Tensor:
        hidden = found(self, runner).clone()
        hidden[3] = spoilt
        return hidden

    found = SelfTest._found
    monkeypatch.setattr(SelfTest, "_found", spoils)
    with pytest.raises(UnknownArchitecture, match=f"llama failed its self-test {said}"):
        load(tiny("llama"))


def test_a_precision_that_fails_the_self_test_gives_way_to_the_next(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {"bfloat16": 0.5, "float32": 1e-6}
    monkeypatch.setattr(SelfTest, "error", lambda self, runner: errors[runner.precision.name])
    choices = [precision(name, CPU) for name in errors]
    runner = loading.load_runner(inspect_folder(tiny("llama")), GIB, choices, CPU, lambda _: None)
    assert runner.precision.name == "float32"
    with pytest.raises(
        UnknownArchitecture, match=r"failed its self-test in bfloat16: .* by 5.0e-01 \(at most 1.6e-01\)"
    ):
        loading.load_runner(inspect_folder(tiny("llama")), GIB, choices[:1], CPU, lambda _: None)


def test_progress_rises_to_1(tiny: Callable[..., Path]) -> None:
    told: list[float] = []
    loading.load_runner(inspect_folder(tiny("minilm")), GIB, [precision("float32", CPU)], CPU, told.append)
    assert told == sorted(told)
    assert told[0] < 0.5
    assert told[-1] == 1.0


def test_the_kv_cache_holds_as_many_blocks_as_its_bytes_allow(tiny: Callable[..., Path], device: torch.device) -> None:
    facts = inspect_folder(tiny("qwen3"))
    block = 2 * 2 * 2 * 16 * 16 * 4  # keys and values, layers, kv heads, head dim, tokens, bytes
    cache = kv.allocate(facts, Budget(weights=0, kv_cache=5 * block + block // 2), torch.float32, device)
    assert (cache.blocks, cache.nbytes) == (5, 5 * block)
    with pytest.raises(OutOfMemory, match="the KV cache has 7 KiB, and one block of 16 tokens needs 8 KiB"):
        kv.allocate(facts, Budget(weights=0, kv_cache=block - 1024), torch.float32, device)


def test_without_a_dtype_all_that_the_machine_can_are_candidates(tiny: Callable[..., Path]) -> None:
    facts = inspect_folder(tiny("llama"))
    assert {choice.name for choice in dtype.precisions(facts, None, CPU)} >= {"float32", "bfloat16"}
    assert [choice.name for choice in dtype.precisions(facts, "bfloat16", CPU)] == ["bfloat16"]
    with pytest.raises(Unsupported, match="dtype 'int3' is not served"):
        dtype.precisions(facts, "int3", CPU)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rows", [PIECE_ROWS + 40, 72])
def test_reordered_layers_multiply_like_plain_ones(name: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(6)
    how = precision(name, CPU)
    weight, bias = torch.randn(rows, 80, generator=generator), torch.randn(rows, generator=generator)
    x = torch.randn(3, 80, generator=generator)
    layer = make_linear(weight.to(how.weights), bias.to(how.compute), CPU, how)
    expected = torch.nn.functional.linear(x.to(how.compute).float(), weight.to(how.weights).float(), bias)
    error = (layer(x.to(how.compute)).float() - expected).abs().max() / expected.abs().max()
    assert error < (1e-2 if name == "bfloat16" else 1e-5)


def test_a_transformers_without_gte_is_told_which_has_it(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "__version__", "5.17.0")
    monkeypatch.setitem(sys.modules, "transformers.models.gte", None)
    for module in ("configuration_gte", "modeling_gte"):
        monkeypatch.delitem(sys.modules, f"transformers.models.gte.{module}", raising=False)
    with pytest.raises(
        MissingDependency, match=r"type 'new' need transformers 5.18 or newer; 5.17.0 is installed"
    ) as refused:
        families.build(inspect_folder(tiny("gte-multilingual")))
    assert refused.value.hint == 'Run: pip install "transformers>=5.18"'
