"""Decoders that make vectors or judge, and bge-m3's heads over tokens: told by the files published with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as maker

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import DamagedWeights, ModelProblem, UnknownArchitecture, WrongKind

Tiny = Callable[..., Path]
PROMPTS = {"query": "Instruct: Given a web search query, retrieve relevant passages\nQuery:", "document": ""}


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def edit(folder: Path, name: str, **changes: Any) -> None:
    write(folder, name, {**json.loads((folder / name).read_text()), **changes})


def modules(folder: Path, *types: str) -> None:
    entries = [{"idx": at, "name": str(at), "path": f"{at}_{type_.rsplit('.')[-1]}" if at else "", "type": type_}
               for at, type_ in enumerate(types)]  # fmt: skip
    write(folder, "modules.json", entries)


@pytest.fixture
def embedder(tiny: Tiny, tmp_path: Path) -> Path:
    """As Qwen3-Embedding is published."""
    folder = shutil.copytree(tiny("qwen3"), tmp_path / "my-embedder")
    modules(folder, *(f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")))
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    write(folder, "1_Pooling/config.json", {"word_embedding_dimension": 64, **modes, "include_prompt": True})
    config = {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write(folder, "config_sentence_transformers.json", config)
    return folder


def test_an_embedder_made_of_a_decoder_as_published(embedder: Path) -> None:
    facts = inspect_folder(embedder)
    assert (facts.kind, facts.causal, facts.generates) == ("embedding", True, False)
    assert (facts.pooling, facts.normalize, facts.dimensions) == ("last", True, 64)
    assert (facts.prompts, facts.default_prompt) == (PROMPTS, None)
    assert (facts.context_length, facts.position_offset, facts.chat_template) == (512, 0, False)


def test_a_default_prompt_is_one_of_the_prompts(embedder: Path) -> None:
    edit(embedder, "config_sentence_transformers.json", default_prompt_name="query")
    assert inspect_folder(embedder).default_prompt == "query"
    for wrong in ("other", 7, ["query"]):
        edit(embedder, "config_sentence_transformers.json", default_prompt_name=wrong)
        with pytest.raises(ModelProblem, match="default_prompt_name"):
            inspect_folder(embedder)


@pytest.mark.parametrize(("file", "limit"), [("sentence_bert_config.json", "max_seq_length"),
                                             ("tokenizer_config.json", "model_max_length"),
                                             ("config.json", "max_position_embeddings")])  # fmt: skip
def test_the_least_of_three_limits_counts(embedder: Path, file: str, limit: str) -> None:
    values = json.loads((embedder / file).read_text()) if (embedder / file).exists() else {}
    write(embedder, file, {**values, limit: 100})
    assert inspect_folder(embedder).context_length == 100


def test_what_sentence_transformers_itself_saves_now(tiny: Tiny, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = Transformer(str(tiny("qwen3")))
    model = SentenceTransformer(modules=[transformer, Pooling(64, "lasttoken"), Normalize()], prompts=PROMPTS)
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    facts = inspect_folder(tmp_path / "saved")
    assert (facts.architecture, facts.kind, facts.causal, facts.pooling) == ("Qwen3Model", "embedding", True, "last")
    assert (facts.normalize, facts.dimensions, facts.prompts) == (True, 64, PROMPTS)
    assert facts.parameters == inspect_folder(tiny("qwen3")).parameters


def test_the_bare_decoder_embeds_without_any_files_for_it(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("qwen2"), tmp_path / "m")
    edit(folder, "config.json", architectures=["Qwen2Model"])
    facts = inspect_folder(folder)
    assert (facts.kind, facts.pooling, facts.normalize, facts.causal) == ("embedding", "last", True, True)


def test_an_embedder_is_nothing_to_chat_with_but_compares_texts(embedder: Path) -> None:
    facts = inspect_folder(embedder, kind="rerank")
    assert (facts.kind, facts.rerank_method, facts.pooling) == ("rerank", "bi-encoder", "last")
    with pytest.raises(WrongKind, match="serves embedding or rerank, not chat"):
        inspect_folder(embedder, kind="chat")


@pytest.mark.parametrize("changes", [{"is_causal": False}, {"auto_map": {"AutoModel": "modeling.Qwen3Model"}}])
def test_decoders_that_look_both_ways_are_refused(embedder: Path, changes: dict[str, Any]) -> None:
    edit(embedder, "config.json", **changes)
    with pytest.raises(ModelProblem, match="in both directions"):
        inspect_folder(embedder)


def test_the_output_projection_counts_only_where_tokens_are_made(tmp_path: Path) -> None:
    folder = maker.write_fake_folder(tmp_path / "m", "qwen3", tie_word_embeddings=False)
    chat, rerank = inspect_folder(folder), inspect_folder(folder, kind="rerank")
    assert chat.parameters - rerank.parameters == chat.vocab_size * chat.hidden_size
    assert sum(chat.stored_bytes.values()) - sum(rerank.stored_bytes.values()) == 4 * chat.vocab_size * 64


def test_prompts_that_are_left_out_of_the_pooling_are_refused(embedder: Path) -> None:
    edit(embedder, "1_Pooling/config.json", include_prompt=False)
    with pytest.raises(ModelProblem, match="leaves prompts out"):
        inspect_folder(embedder)


@pytest.mark.parametrize(
    ("types", "said"),
    [
        (("Transformer", "Pooling", "Dense", "Normalize"), "the module 'Dense'"),
        (("Transformer", "Pooling", "LayerNorm"), "the module 'LayerNorm'"),
        (("StaticEmbedding",), "the module 'StaticEmbedding'"),
        (("Transformer", "Normalize", "Pooling"), "the module 'Transformer then Normalize then Pooling'"),
        (("Transformer", "Transformer", "Pooling"), "the module 'Transformer then Transformer then Pooling'"),
    ],
)
def test_chains_that_are_not_served_are_named(embedder: Path, types: tuple[str, ...], said: str) -> None:
    modules(embedder, *(f"sentence_transformers.models.{name}" for name in types))
    with pytest.raises(ModelProblem, match=said):
        inspect_folder(embedder)


def test_a_module_of_the_folders_own_code_is_named(embedder: Path) -> None:
    modules(embedder, "custom_st.Transformer", "sentence_transformers.models.Pooling")
    with pytest.raises(ModelProblem, match=r"the module 'custom_st\.Transformer'"):
        inspect_folder(embedder)


def test_a_decoder_that_is_asked_to_rerank_says_yes_or_no(tiny: Tiny) -> None:
    facts = inspect_folder(tiny("qwen3"), kind="rerank")
    assert (facts.kind, facts.rerank_method, facts.rerank_template) == ("rerank", "yes-no", None)
    assert (facts.causal, facts.generates, facts.num_labels, facts.pooling) == (True, False, None, None)


@pytest.fixture
def judge(tiny: Tiny, tmp_path: Path) -> Path:
    """As sentence-transformers saves a CrossEncoder of Qwen3-Reranker, from version 5.4 on."""
    folder = shutil.copytree(tiny("qwen3"), tmp_path / "my-judge")
    modules(folder, "sentence_transformers.base.modules.transformer.Transformer",
            "sentence_transformers.cross_encoder.modules.logit_score.LogitScore")  # fmt: skip
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"yes": 9693, "no": 2152}
    write(folder, "tokenizer.json", tokenizer)
    write(folder, "1_LogitScore/config.json", {"true_token_id": 9693, "false_token_id": 2152})
    config = {"prompts": {"web": "Find passages that answer"}, "default_prompt_name": "web"}
    write(folder, "config_sentence_transformers.json", config)
    return folder


def test_a_logit_score_makes_a_reranker_unasked(judge: Path) -> None:
    facts = inspect_folder(judge)
    assert (facts.kind, facts.rerank_method, facts.causal) == ("rerank", "yes-no", True)
    assert (facts.prompts, facts.default_prompt) == ({"web": "Find passages that answer"}, "web")
    assert inspect_folder(judge, kind="rerank") == facts
    with pytest.raises(WrongKind, match="serves rerank, not chat"):
        inspect_folder(judge, kind="chat")


@pytest.mark.parametrize("ids", [{"true_token_id": 9693, "false_token_id": None}, {}, {"true_token_id": [9693]},
                                 {"true_token_id": 2152, "false_token_id": 9693}])  # fmt: skip
def test_a_logit_score_of_other_tokens_is_refused(judge: Path, ids: dict[str, Any]) -> None:
    write(judge, "1_LogitScore/config.json", ids)
    with pytest.raises(ModelProblem, match="other tokens than yes and no"):
        inspect_folder(judge)


def test_a_logit_score_of_tokens_that_the_vocabulary_lacks(judge: Path) -> None:
    write(judge, "tokenizer.json", {"model": {"vocab": {}}})
    for ids in ({}, {"true_token_id": 9693, "false_token_id": 2152}):
        write(judge, "1_LogitScore/config.json", ids)
        with pytest.raises(ModelProblem, match="other tokens than yes and no"):
            inspect_folder(judge)


def test_modules_that_do_not_fit_the_architecture(tiny: Tiny, tmp_path: Path) -> None:
    logits, pooling = "cross_encoder.modules.LogitScore", "models.Pooling"
    for family, last in (("minilm", logits), ("llama", logits), ("bge-reranker", pooling)):
        folder = shutil.copytree(tiny(family), tmp_path / family)
        modules(folder, "sentence_transformers.models.Transformer", f"sentence_transformers.{last}")
        with pytest.raises(ModelProblem, match=r"modules\.json is for .* is not served for"):
            inspect_folder(folder)


def test_a_cross_encoder_saved_with_modules(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bge-reranker"), tmp_path / "m")
    modules(folder, "sentence_transformers.base.modules.transformer.Transformer")
    assert inspect_folder(folder).rerank_method == "cross-encoder"


def test_a_classifier_on_a_decoder_is_refused_by_name(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("qwen3"), tmp_path / "m")
    edit(folder, "config.json", architectures=["Qwen3ForSequenceClassification"])
    with pytest.raises(UnknownArchitecture, match="Qwen3ForSequenceClassification"):
        inspect_folder(folder)


def head(path: Path, rows: int, hidden: int = 64) -> None:
    shapes = {"weight": (rows, hidden), "bias": (rows,)}
    maker.write_safetensors(path, shapes, "F32", [np.zeros(shape, np.float32) for shape in shapes.values()])


def torch_head(path: Path, rows: int) -> None:
    import torch

    torch.save(torch.nn.Linear(64, rows).state_dict(), path)


def test_bge_m3s_heads_are_found_beside_its_weights(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "m")
    plain = inspect_folder(folder, kind="rerank")
    assert (plain.token_heads, plain.rerank_method) == ((), "bi-encoder")
    head(folder / "sparse_linear.safetensors", 1)
    sparse = inspect_folder(folder, kind="rerank")
    assert (sparse.token_heads, sparse.rerank_method) == (("sparse",), "bi-encoder")
    head(folder / "colbert_linear.safetensors", 64)
    facts = inspect_folder(folder)
    assert (facts.token_heads, facts.kind, facts.rerank_method) == (("sparse", "colbert"), "embedding", None)
    assert inspect_folder(folder, kind="rerank").rerank_method == "multi-vector"
    assert facts.parameters == plain.parameters + 65 + 65 * 64
    assert facts.weights_format == "safetensors"


def test_heads_as_published_are_still_to_be_converted(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "m")
    torch_head(folder / "sparse_linear.pt", 1)
    torch_head(folder / "colbert_linear.pt", 64)
    facts = inspect_folder(folder)
    assert (facts.token_heads, facts.weights_format) == (("sparse", "colbert"), "pytorch")
    head(folder / "sparse_linear.safetensors", 1)
    head(folder / "colbert_linear.safetensors", 64)
    assert inspect_folder(folder).weights_format == "safetensors"
    assert inspect_folder(folder).parameters == facts.parameters


@pytest.mark.parametrize(("name", "rows", "hidden"), [("sparse", 2, 64), ("sparse", 1, 32), ("colbert", 64, 32)])
def test_a_head_of_another_model_is_named(tiny: Tiny, tmp_path: Path, name: str, rows: int, hidden: int) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "m")
    head(folder / f"{name}_linear.safetensors", rows, hidden)
    with pytest.raises(DamagedWeights, match=rf"{name}_linear\.safetensors is no linear layer over the 64"):
        inspect_folder(folder)


def test_damaged_heads_are_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "m")
    (folder / "sparse_linear.pt").write_bytes(b"x")
    with pytest.raises(DamagedWeights, match=r"sparse_linear\.pt \(1 bytes\)"):
        inspect_folder(folder)


@pytest.mark.parametrize("family", ["minilm", "bge-reranker", "qwen3"])
def test_other_models_have_no_token_heads(tiny: Tiny, tmp_path: Path, family: str) -> None:
    folder = shutil.copytree(tiny(family), tmp_path / "m")
    (folder / "sparse_linear.pt").write_bytes(b"x")
    facts = inspect_folder(folder)
    assert (facts.token_heads, facts.weights_format) == ((), "safetensors")
