"""`inspect_folder` reads kind, limits and sizes of every served family from the folder alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny as maker

from lodger.catalogue.families import FAMILIES
from lodger.catalogue.inspect import inspect_folder
from lodger.errors import ModelProblem

Tiny = Callable[..., Path]


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change top-level keys of a JSON file; a value of None removes the key."""
    values = {**json.loads((folder / name).read_text()), **changes}
    (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize(
    ("family", "architecture", "tools", "eos"),
    [
        ("qwen3", "Qwen3ForCausalLM", True, 2),
        ("qwen2", "Qwen2ForCausalLM", True, 2),
        ("llama", "LlamaForCausalLM", False, 1),
    ],
)
def test_decoders_are_chat_models(tiny: Tiny, family: str, architecture: str, tools: bool, eos: int) -> None:
    facts = inspect_folder(tiny(family))
    assert (facts.kind, facts.architecture, facts.model_type, facts.generates) == ("chat", architecture, family, True)
    assert (facts.layers, facts.hidden_size, facts.attention_heads, facts.kv_heads, facts.head_dim) == (2, 64, 4, 2, 16)
    assert facts.context_length == 512
    assert facts.chat_template
    assert facts.tools is tools
    assert len(facts.eos_token_ids) == eos
    assert facts.pooling is None
    assert facts.position_offset == 0


def test_sampling_defaults_come_from_generation_config(tiny: Tiny) -> None:
    assert inspect_folder(tiny("qwen3")).generation == {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert inspect_folder(tiny("llama")).generation == {}


def test_bge_m3_as_published(tiny: Tiny) -> None:
    facts = inspect_folder(tiny("bge-m3"))
    assert (facts.kind, facts.pooling, facts.normalize, facts.dimensions) == ("embedding", "cls", True, 64)
    assert (facts.position_offset, facts.context_length) == (2, 512)  # 514 positions, two of them before the text


def test_bge_m3_needs_no_sentence_transformers_files(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "m")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "1_Pooling")
    bare, full = inspect_folder(folder), inspect_folder(tiny("bge-m3"))
    assert (bare.pooling, bare.normalize, bare.context_length) == (full.pooling, full.normalize, full.context_length)


def test_minilm_as_published(tiny: Tiny) -> None:
    facts = inspect_folder(tiny("minilm"))
    assert (facts.kind, facts.pooling, facts.normalize, facts.dimensions) == ("embedding", "mean", True, 64)
    assert (facts.position_offset, facts.context_length) == (0, 256)  # of 512 positions, by sentence_bert_config.json


def test_bert_without_sentence_transformers_files_takes_the_mean_and_normalises(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("minilm"), tmp_path / "m")
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    facts = inspect_folder(folder)
    assert (facts.pooling, facts.normalize) == ("mean", True)


def test_vectors_stay_as_they_are_when_modules_json_lists_no_normalize(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("minilm"), tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    assert not inspect_folder(folder).normalize


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "lasttoken", "embedding_dimension": 64}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
    ],
)
def test_poolings_old_and_new(tiny: Tiny, tmp_path: Path, config: dict[str, Any], pooling: str) -> None:
    folder = shutil.copytree(tiny("minilm"), tmp_path / "m")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert inspect_folder(folder).pooling == pooling


def test_prompts_and_lower_casing_are_read(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("minilm"), tmp_path / "m")
    edit(folder, "config_sentence_transformers.json", prompts={"query": "query: ", "document": "", "odd": None})
    edit(folder, "sentence_bert_config.json", do_lower_case=True)
    facts = inspect_folder(folder)
    assert facts.prompts == {"query": "query: ", "document": ""}
    assert facts.lowercase


def test_reranker_as_published(tiny: Tiny) -> None:
    facts = inspect_folder(tiny("bge-reranker"))
    assert (facts.kind, facts.rerank_method, facts.num_labels) == ("rerank", "cross-encoder", 1)
    assert (facts.position_offset, facts.context_length, facts.pooling) == (2, 512, None)


def test_an_embedding_model_reranks_as_a_bi_encoder(tiny: Tiny) -> None:
    facts = inspect_folder(tiny("minilm"), kind="rerank")
    assert (facts.kind, facts.rerank_method, facts.pooling) == ("rerank", "bi-encoder", "mean")
    assert facts.num_labels is None


@pytest.mark.parametrize("prefix", ["Bert", "Roberta", "XLMRoberta"])
def test_masked_language_models_embed(tiny: Tiny, tmp_path: Path, prefix: str) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "m")
    model_type = {"Bert": "bert", "Roberta": "roberta", "XLMRoberta": "xlm-roberta"}[prefix]
    edit(folder, "config.json", architectures=[f"{prefix}ForMaskedLM"], model_type=model_type)
    facts = inspect_folder(folder)
    assert facts.kind == "embedding"
    assert facts.position_offset == (0 if prefix == "Bert" else 2)


def test_tied_tensors_count_once(tmp_path: Path) -> None:
    once = inspect_folder(maker.write_fake_folder(tmp_path / "tied", "llama"))
    folder = maker.write_fake_folder(tmp_path / "twice", "llama", tie_word_embeddings=False)
    untied = inspect_folder(folder)
    edit(folder, "config.json", tie_word_embeddings=True)
    twice = inspect_folder(folder)
    embedding = once.vocab_size * once.hidden_size
    assert untied.parameters == once.parameters + embedding
    assert (twice.parameters, twice.stored_bytes, twice.tied_embeddings) == (once.parameters, once.stored_bytes, True)


def test_bytes_are_told_by_dtype_and_buffers_are_no_parameters(tiny: Tiny) -> None:
    facts = inspect_folder(tiny("minilm"))
    assert facts.stored_bytes == {"float32": facts.parameters * 4}  # its position_ids are int64


def test_qwen3_4b_is_weighed_in_milliseconds(tmp_path: Path) -> None:
    folder = maker.write_fake_folder(tmp_path / "q", "qwen3", "BF16", **maker.QWEN3_4B)
    begin = time.perf_counter()
    facts = inspect_folder(folder)
    assert time.perf_counter() - begin < 0.05
    assert facts.parameters == 4_022_468_096  # as its model card says: 4.0 B
    assert facts.stored_bytes == {"bfloat16": 8_044_936_192}
    assert facts.context_length == 262144


def test_bge_m3_in_full_size(tmp_path: Path) -> None:
    facts = inspect_folder(maker.write_fake_folder(tmp_path / "m", "bge-m3", **maker.XLM_R_LARGE))
    assert (facts.context_length, facts.dimensions, facts.parameters) == (8192, 1024, 567_754_752)


def test_sharded_weights_are_read_through_their_index(tmp_path: Path) -> None:
    whole = maker.write_fake_folder(tmp_path / "whole", "qwen3")
    parts = maker.write_fake_folder(tmp_path / "parts", "qwen3", shards=3)
    assert len(list(parts.glob("model-*.safetensors"))) == 3
    assert inspect_folder(parts).stored_bytes == inspect_folder(whole).stored_bytes


@pytest.mark.parametrize(
    ("own", "in_config", "tools"),
    [
        ("{{ tools }}", "plain", True),
        (None, [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "{{ tools }}"}], True),
        ("own file wins", "{{ tools }}", False),
    ],
)
def test_chat_templates_wherever_they_are(tiny: Tiny, tmp_path: Path, own: str, in_config: Any, tools: bool) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    edit(folder, "tokenizer_config.json", chat_template=in_config)
    if own:
        (folder / "chat_template.jinja").write_text(own)
    facts = inspect_folder(folder)
    assert (facts.chat_template, facts.tools) == (True, tools)


def test_templates_in_a_folder_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "notes.txt").write_text("{{ tools }}")
    assert not inspect_folder(folder).tools
    (more / "tool_use.jinja").write_text("{{ tools }}")
    os.close(os.open(os.fsencode(more) + b"/\xff.jinja", os.O_CREAT))  # a name that is no text
    assert inspect_folder(folder).tools


@pytest.mark.parametrize("listed", [["x"], [{"name": "default"}], [{"name": 1, "template": "x"}]])
def test_a_list_of_templates_that_is_none(tiny: Tiny, tmp_path: Path, listed: Any) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    edit(folder, "tokenizer_config.json", chat_template=listed)
    with pytest.raises(ModelProblem, match=r"tokenizer_config\.json: chat_template is"):
        inspect_folder(folder)


def test_a_decoder_without_a_template_is_told(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    edit(folder, "tokenizer_config.json", chat_template=None)
    assert not inspect_folder(folder).chat_template


def test_the_tokenizers_limit_counts_where_it_says_something(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    for limit, expected in ((128, 128), (10**30, 512), (1e30, 512), (None, 512), (True, 512)):
        edit(folder, "tokenizer_config.json", model_max_length=limit)
        assert inspect_folder(folder).context_length == expected


def test_facts_name_the_folder_whatever_way_it_was_written(tiny: Tiny) -> None:
    folder = tiny("llama")
    facts = inspect_folder(str(folder) + "/./")
    assert (facts.path, facts.name) == (str(folder), "llama")


def test_each_family_is_one_row_whose_architectures_are_its_own() -> None:
    listed = [name for family in FAMILIES.values() for name in family.architectures]
    assert len(listed) == len(set(listed))
    assert {kind for family in FAMILIES.values() for kind in family.architectures.values()} == {
        "chat",
        "embedding",
        "rerank",
    }


def test_reading_a_folder_imports_no_heavy_library(tiny: Tiny) -> None:
    code = (
        "import sys; from lodger.catalogue.inspect import inspect_folder; inspect_folder(sys.argv[1]); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny("qwen3"))], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
