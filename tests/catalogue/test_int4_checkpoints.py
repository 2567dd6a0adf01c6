"""What a folder of four-bit weights holds is read from its headers, and what cannot be served is said by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_int4 import FORMS, dense_folder, quantised, read_tensors, write_tensors

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.catalogue.inventory import inventory
from lodger.errors import DamagedWeights, ModelProblem

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    found: dict[str, Path] = {}

    def make(form: str) -> Path:
        if form not in found:
            found[form] = quantised(tiny("qwen3"), tmp_path_factory.mktemp("int4") / form, FORMS[form])
        return found[form]

    return make


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made("gptq"), tmp_path / "my-model"))


def said(folder: Path, **values: Any) -> None:
    """Change fields of quantization_config; None takes one away."""
    config = json.loads((folder / "config.json").read_text())
    own = config["quantization_config"] | values
    config["quantization_config"] = {name: value for name, value in own.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("form", FORMS)
def test_parameters_are_those_of_the_same_model_in_floats(form: str, made: Made) -> None:
    found, dense = inspect_folder(made(form)), inspect_folder(dense_folder(made(form)))
    assert found.parameters == dense.parameters
    assert found.int4 is not None
    assert dense.int4 is None
    assert found.int4.method == FORMS[form].method
    assert found.int4.group == max(FORMS[form].group, 0)
    assert (found.int4.symmetric, found.int4.zeros_less_one) == (FORMS[form].symmetric, FORMS[form].layout == "gptq")
    products = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 128)
    assert found.int4.parameters == products
    assert found.stored_dtype == "float32"
    assert found.stored_bytes["float32"] == 4 * (found.parameters - products)
    files = (made(form) / "model.safetensors").stat().st_size
    assert sum(found.stored_bytes.values()) == pytest.approx(files, rel=0.15)
    assert without_weights(found) == without_weights(dense)


def without_weights(facts: ModelFacts) -> dict[str, Any]:
    about = ("path", "stored_bytes", "int4")
    return {name: getattr(facts, name) for name in facts.__struct_fields__ if name not in about}


def test_bytes_on_a_gpu_are_half_of_one_for_each_number_and_four_for_each_group(made: Made) -> None:
    """Of every 128 columns: the tiny model's 64 take a whole block."""
    numbers = 2 * (64 + 2 * 32 + 64 + 2 * 128 + 64) * 128  # rows of q, k and v, o, gate and up, down
    int4 = inspect_folder(made("awq")).int4
    assert int4 is not None
    assert int4.resident == numbers // 2 + numbers // 32 * 4
    wide = inspect_folder(made("gptq-wide")).int4
    assert wide is not None
    assert wide.resident == numbers // 2 + numbers // 128 * 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quant_method": "compressed-tensors"}, "my-model holds weights quantised by 'compressed-tensors'"),
        ({"quant_method": "fp8"}, "quantised by 'fp8'"),
        ({"quant_method": "bitsandbytes"}, "quantised by 'bitsandbytes'"),
        ({"quant_method": ["gptq"]}, "quantised by"),
        ({"quant_method": None}, "quantised by ''"),
        ({"bits": 8}, "of 8 bits"),
        ({"bits": 3}, "of 3 bits"),
        ({"bits": "4"}, "bits is '4', expected a whole number"),
        ({"bits": None}, "bits is missing, expected a whole number"),
        ({"bits": True}, "bits is 'True'"),
        ({"group_size": 0}, "in groups of 0 columns"),
        ({"group_size": 16}, "in groups of 16 columns"),
        ({"group_size": -128}, "in groups of -128 columns"),
        ({"group_size": 10**30 + 1}, "in groups of"),
        ({"group_size": None}, "group_size is missing"),
        ({"checkpoint_format": "marlin"}, "in gptq's layout 'marlin'"),
        ({"is_marlin_format": True}, "in gptq's layout 'marlin'"),
        ({"dynamic": {"+:.*down.*": {"bits": 8}}}, "other settings for some of its layers"),
        ({"lm_head": True}, "the output projection among them"),
        ({"pack_dtype": "int16"}, "packed into 'int16'"),
        ({"sym": "yes"}, "sym is 'yes', expected true or false"),
        ({"quant_method": "awq", "version": "gemv"}, "in awq's layout 'gemv'"),
        ({"quant_method": "awq", "checkpoint_format": None, "zero_point": False}, "by AWQ without zero points"),
    ],
)
def test_what_is_not_served_is_named(values: dict[str, Any], message: str, folder: Path) -> None:
    said(folder, **values)
    with pytest.raises(ModelProblem) as caught:
        inspect_folder(folder)
    assert message in caught.value.message


def test_not_an_object(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": "gptq"}))
    with pytest.raises(ModelProblem, match="quantised by ''"):
        inspect_folder(folder)


def test_awq_as_older_tools_spell_it(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("awq"), tmp_path / "older"))
    said(folder, bits=None, group_size=None, w_bit=4, q_group_size=32, version="GEMM", zero_point=None)
    assert inspect_folder(folder).int4 == inspect_folder(made("awq")).int4


def change(folder: Path, changed: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = read_tensors(folder / "model.safetensors")
    changed(tensors)
    write_tensors(folder / "model.safetensors", tensors)


GATE = "model.layers.1.mlp.gate_proj"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda own: own.pop(f"{GATE}.scales"), "lacks qzeros or scales"),
        (lambda own: own.pop(f"{GATE}.qzeros"), "lacks qzeros or scales"),
        (lambda own: own.update({f"{GATE}.scales": own[f"{GATE}.scales"][:1]}), r"scales is \[1, 128, 'float16'\]"),
        (lambda own: own.update({f"{GATE}.qzeros": own[f"{GATE}.qzeros"][:, 1:]}), r"expected \[2, 16\] of int32"),
        (lambda own: own.update({f"{GATE}.g_idx": own[f"{GATE}.g_idx"][1:]}), r"g_idx is \[63, 'int32'\]"),
        (lambda own: own.update({f"{GATE}.qweight": own[f"{GATE}.qweight"].view(np.float32)}), "of int32"),
        (lambda own: own.update({f"{GATE}.qweight": own[f"{GATE}.qweight"].reshape(-1)}), "two dimensions"),
        (lambda own: own.update({f"{GATE}.qweight": own[f"{GATE}.qweight"][:0]}), "gate_proj"),
        (lambda own: [own.pop(name) for name in list(own) if "qweight" in name], "the files hold none"),
    ],
)
def test_parts_that_do_not_fit_are_damage(changed: Any, message: str, folder: Path) -> None:
    change(folder, changed)
    with pytest.raises(DamagedWeights, match=message):
        inspect_folder(folder)


def plain(tensors: dict[str, np.ndarray], stem: str, rows: int, columns: int) -> None:
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        del tensors[f"{stem}.{part}"]
    tensors[f"{stem}.weight"] = np.zeros((rows, columns), np.float32)


def test_a_whole_product_may_be_left_as_it_is(folder: Path) -> None:
    before = inspect_folder(folder)
    change(folder, lambda own: plain(own, "model.layers.1.mlp.down_proj", 64, 128))
    found = inspect_folder(folder)
    assert before.int4 is not None
    assert found.int4 is not None
    assert found.parameters == before.parameters
    assert before.int4.parameters - found.int4.parameters == 64 * 128


def test_part_of_a_product_may_not(folder: Path) -> None:
    change(folder, lambda own: plain(own, "model.layers.1.self_attn.k_proj", 32, 64))
    with pytest.raises(ModelProblem, match="model.layers.1.self_attn.k_proj is not quantised and ._proj beside it is"):
        inspect_folder(folder)


def test_a_quantised_output_projection_is_named(folder: Path) -> None:
    def add(own: dict[str, np.ndarray]) -> None:
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            own[f"lm_head.{part}"] = own[f"{GATE}.{part}"]

    change(folder, add)
    with pytest.raises(ModelProblem, match="The output projection is quantised"):
        inspect_folder(folder)


def test_quantised_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelProblem):
        inspect_folder(folder)


def test_what_is_here_is_listed_with_how_it_is_quantised(made: Made) -> None:
    folder = made("awq")
    found = {model.folder: model.quantization for model in inventory(folder.parent) if model.folder}
    assert found == {folder.name: "awq", dense_folder(folder).name: None}
