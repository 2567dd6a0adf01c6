"""Of each repository exactly what serving needs: its lists of files are those that the hubs show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodger.errors import FolderWithoutWeights, ModelProblem
from lodger.hub.base import Listing, RemoteFile
from lodger.hub.select import select

ONNX = "onnx/config.json onnx/model.onnx onnx/model.onnx_data onnx/tokenizer.json onnx/tokenizer_config.json"
BERT = "config.json special_tokens_map.json tokenizer.json tokenizer_config.json"
ROBERTA = f"{BERT} sentencepiece.bpe.model"
SENTENCE = "modules.json sentence_bert_config.json 1_Pooling/config.json"
QWEN = "LICENSE README.md config.json generation_config.json merges.txt tokenizer.json tokenizer_config.json vocab.json"
LLAMA = "LICENSE.txt README.md USE_POLICY.md config.json generation_config.json special_tokens_map.json tokenizer.json"

# name -> what is wanted of it, what is not
MODELS: dict[str, tuple[str, str]] = {
    "BAAI/bge-m3": (
        f"README.md {ROBERTA} {SENTENCE} config_sentence_transformers.json pytorch_model.bin colbert_linear.pt"
        " sparse_linear.pt",
        f".gitattributes .DS_Store imgs/bm25.jpg imgs/long.jpg imgs/others.webp long.jpg {ONNX}"
        " onnx/Constant_7_attr__value onnx/sentencepiece.bpe.model configuration.json",
    ),
    "Qwen/Qwen3-4B-Instruct-2507": (
        f"{QWEN} model-00001-of-00003.safetensors model-00002-of-00003.safetensors model-00003-of-00003.safetensors"
        " model.safetensors.index.json",
        ".gitattributes configuration.json",
    ),
    "Qwen/Qwen3-Embedding-0.6B": (
        "README.md 1_Pooling/config.json config.json config_sentence_transformers.json generation_config.json"
        " merges.txt model.safetensors modules.json tokenizer.json tokenizer_config.json vocab.json",
        ".gitattributes",
    ),
    "BAAI/bge-reranker-v2-m3": (
        f"README.md {ROBERTA} model.safetensors",
        ".gitattributes assets/BEIR-bge-en-v1.5.png assets/llama-index.png assets/miracl-bge-m3.png",
    ),
    "BAAI/bge-reranker-base": (
        f"README.md {ROBERTA} model.safetensors",
        f".gitattributes pytorch_model.bin {ONNX} onnx/sentencepiece.bpe.model",
    ),
    "BAAI/bge-large-zh-v1.5": (
        f"README.md {BERT} {SENTENCE} config_sentence_transformers.json vocab.txt pytorch_model.bin",
        ".gitattributes",
    ),
    "intfloat/multilingual-e5-large": (
        f"README.md {ROBERTA} {SENTENCE} model.safetensors",
        f".gitattributes pytorch_model.bin {ONNX} onnx/sentencepiece.bpe.model openvino/openvino_model.bin"
        " openvino/openvino_model.xml",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": (
        f"README.md {BERT} {SENTENCE} config_sentence_transformers.json vocab.txt model.safetensors",
        ".gitattributes data_config.json pytorch_model.bin rust_model.ot tf_model.h5 train_script.py onnx/model.onnx"
        " onnx/model_qint8_avx512.onnx openvino/openvino_model.bin openvino/openvino_model.xml",
    ),
    "meta-llama/Llama-3.2-1B-Instruct": (
        f"{LLAMA} tokenizer_config.json model.safetensors",
        ".gitattributes original/consolidated.00.pth original/params.json original/tokenizer.model",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "README.md config.json generation_config.json merges.txt model.safetensors special_tokens_map.json"
        " tokenizer.json tokenizer_config.json vocab.json",
        ".gitattributes all_results.json eval_results.json train_results.json trainer_state.json training_args.bin"
        " instructions_function_calling.md onnx/model.onnx onnx/model_q4.onnx runs/Oct31/events.out.tfevents.1",
    ),
    "an old sentence-transformers model with a dense layer and its weights in a module's folder": (
        "README.md modules.json config_sentence_transformers.json 0_Transformer/config.json"
        " 0_Transformer/sentence_bert_config.json 0_Transformer/pytorch_model.bin 0_Transformer/vocab.txt"
        " 1_Pooling/config.json 2_Dense/config.json 2_Dense/model.safetensors 3_Normalize/config.json",
        "2_Dense/pytorch_model.bin 0_Transformer/tf_model.h5 similarity_evaluation_results.csv 10_x/notes.txt",
    ),
    "templates in files, shards of two formats, code": (
        "config.json chat_template.jinja additional_chat_templates/tool_use.jinja tokenizer.json"
        " model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json",
        "pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin pytorch_model.bin.index.json modeling.py"
        " consolidated.safetensors model.fp16.safetensors additional_chat_templates/evil.py README.py model.msgpack",
    ),
    "shards of pickles": (
        "config.json pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin pytorch_model.bin.index.json",
        "optimizer.bin scheduler.pt",
    ),
    "one file beside the shards that it was made of": (
        "config.json model.safetensors",
        "model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json",
    ),
    "shards that lost their index": (
        "config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors",
        "pytorch_model.bin",
    ),
}  # fmt: skip


def listing(*paths: str) -> Listing:
    return Listing("modelscope", "org/model", "r1", tuple(RemoteFile(path, 7) for path in paths))


@pytest.mark.parametrize("name", MODELS)
def test_what_serving_needs_and_nothing_else(name: str) -> None:
    wanted, unwanted = (words.split() for words in MODELS[name])
    assert [file.path for file in select(listing(*unwanted, *wanted))] == wanted


def test_no_path_leads_out_of_the_folder() -> None:
    paths = ["../config.json", "/config.json", "1_Pooling/../config.json", "1_Pooling//config.json", "./config.json",
             "1_Pooling\\config.json", "config.json\n", "1_Pooling/.", "\u202econfig.json"]  # fmt: skip
    chosen = select(listing(*paths, "config.json", "model.safetensors"))
    assert [file.path for file in chosen] == ["config.json", "model.safetensors"]


@given(st.lists(st.text("./\\ab1_\n\0", max_size=12)))
def test_no_list_of_names_is_a_way_out(paths: list[str]) -> None:
    for file in select(listing("config.json", "model.safetensors", *paths)):
        assert not file.path.startswith("/")
        assert ".." not in file.path.split("/")


def test_a_repository_of_another_format_says_what_it_holds() -> None:
    gguf = listing("README.md", "config.json", "m-Q8_0.gguf", "m-Q4_0.gguf", "m-Q6_K.gguf", "m-Q5_0.gguf")
    with pytest.raises(FolderWithoutWeights) as caught:
        select(gguf)
    assert caught.value.message == (
        "org/model has no safetensors and no pytorch_model.bin, only m-Q4_0.gguf, m-Q5_0.gguf, m-Q6_K.gguf and 1 more."
    )
    with pytest.raises(FolderWithoutWeights, match="has no weights"):
        select(listing("README.md", "data/train.csv"))


def test_weights_alone_are_no_model() -> None:
    with pytest.raises(ModelProblem, match=r"no config\.json"):
        select(listing("model.safetensors", "onnx/config.json"))
