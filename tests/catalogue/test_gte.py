"""gte's published config.json, which is for code of its own, is understood or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny as maker

from lodger.catalogue.config_files import Fields
from lodger.catalogue.gte import as_gte
from lodger.catalogue.inspect import inspect_folder
from lodger.errors import ModelProblem

Tiny = Callable[..., Path]
PUBLISHED = {"model_type": "new", "hidden_size": 768, "num_attention_heads": 12, "rope_theta": 20000,
             "rope_scaling": {"factor": 8.0, "type": "ntk"}, "layer_norm_eps": 1e-12}  # fmt: skip


def test_gte_multilingual_as_published(tiny: Tiny) -> None:
    facts = inspect_folder(tiny("gte-multilingual"))
    assert (facts.kind, facts.architecture, facts.model_type) == ("embedding", "NewModel", "new")
    assert (facts.pooling, facts.normalize, facts.dimensions) == ("cls", True, 64)
    assert (facts.position_offset, facts.context_length) == (0, 512)  # scaling is in max_position_embeddings already
    reranker = inspect_folder(tiny("gte-reranker"))
    assert (reranker.kind, reranker.rerank_method, reranker.num_labels) == ("rerank", "cross-encoder", 1)


def test_a_reranker_of_the_published_shape_has_the_published_number_of_parameters(tmp_path: Path) -> None:
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
             "vocab_size": 250048, "max_position_embeddings": 8192}  # fmt: skip
    facts = inspect_folder(maker.write_fake_folder(tmp_path / "m", "gte-reranker", "F16", **shape))
    assert (facts.parameters, facts.context_length) == (305_959_681, 8192)


def test_ntk_scaling_becomes_a_longer_base_and_slower_angles() -> None:
    """transformers' documentation of Gte: "linear", with the base scaled by the factor."""
    found = as_gte(Fields("config.json", PUBLISHED)).values
    assert found.pop("rope_parameters") == {"rope_type": "linear", "rope_theta": 160_000.0, "factor": 8 ** (2 / 64)}
    assert found == {"model_type": "gte", "hidden_size": 768, "num_attention_heads": 12, "layer_norm_eps": 1e-12}


def test_a_base_without_scaling_stays() -> None:
    found = as_gte(Fields("config.json", {**PUBLISHED, "rope_scaling": None})).values
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 20000.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type is 'rms_norm'"),
        ({"logn_attention_scale": True}, "scales attention by the text's length"),
        ({"position_embedding_type": "absolute"}, "has 'absolute' positions, served of its type are 'rope' ones"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.75}}, "without 'mixed_b'"),
        ({"rope_scaling": {"type": "yarn", "factor": 8.0}}, "expected of type 'ntk'"),
        ({"rope_scaling": {"type": "ntk"}}, "factor is missing"),
        ({"rope_scaling": {"type": "ntk", "factor": 0.5}}, "a factor from 1 on"),
        ({"rope_scaling": "ntk"}, "expected of type 'ntk'"),
        ({"num_attention_heads": 5}, "hidden_size is '64', expected a multiple of its 5 heads"),
        ({"num_attention_heads": 2**40, "hidden_size": 1}, "a multiple of its"),
    ],
)
def test_what_gte_models_are_not_served_with_is_named(tiny: Tiny, tmp_path: Path, change: Any, said: str) -> None:
    folder = shutil.copytree(tiny("gte-multilingual"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelProblem, match=said):
        inspect_folder(folder)


def test_a_converted_folder_with_scaling_that_transformers_does_not_know_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("gte-multilingual"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gte", "architectures": ["GteModel"]}))
    with pytest.raises(ModelProblem, match="rope scaling 'ntk', which is not served"):
        inspect_folder(folder)
