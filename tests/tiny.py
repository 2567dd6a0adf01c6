"""Small random models in exactly the formats that are published on the hubs, and weightless ones of any size.

`make_*` write a whole folder (config, tokenizer, chat template, weights) in about 0.2 s without importing torch.
Tensor names, file names and config keys are those of the published models; only the sizes differ, and the weights are
random with a fixed seed and a standard deviation of 0.2, so that the tokens a model prefers are well apart.
`write_fake_folder` writes the same folder with a sparse file of zeros for weights: any size, no memory, no time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiny_tokenizers
from tiny_shapes import (
    Config,
    Shapes,
    bare_decoder_shapes,
    decoder_shapes,
    encoder_shapes,
    new_shapes,
    token_head_shapes,
)
from tiny_templates import CHATML, QWEN2, QWEN3

ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}

_DECODER = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.51.0",
    "use_cache": True,
}
_ENCODER = {
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "transformers_version": "4.33.0",
    "use_cache": True,
}
_XLM_R = {**_ENCODER, "model_type": "xlm-roberta", "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
          "max_position_embeddings": 514, "type_vocab_size": 1, "output_past": True}  # fmt: skip
_NEW = {**_ENCODER, "model_type": "new", "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0,
        "layer_norm_eps": 1e-12, "layer_norm_type": "layer_norm", "logn_attention_clip1": False,
        "logn_attention_scale": False, "max_position_embeddings": 512, "pack_qkv": True, "pad_token_id": 1,
        "position_embedding_type": "rope", "rope_scaling": {"factor": 8.0, "type": "ntk"}, "rope_theta": 20000,
        "type_vocab_size": 1, "unpad_inputs": False, "use_memory_efficient_attention": False,
        "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
                     "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"}}  # fmt: skip

# Shapes of the guide's models, for `write_fake_folder`.
QWEN3_4B = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
            "torch_dtype": "bfloat16"}  # fmt: skip
XLM_R_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
               "vocab_size": 250002, "max_position_embeddings": 8194}  # fmt: skip


class _Family(NamedTuple):
    """One published format: how its config, tokenizer and other files look, and which tensors it stores."""

    config: Callable[[dict[str, int]], Config]  # token name -> id
    tokenizer: Callable[[], Any]
    shapes: Callable[[Config], Shapes]
    extras: Callable[[Config, dict[str, int]], dict[str, Any]]  # file name -> JSON value


def make_qwen3(folder: Path, **overrides: Any) -> Path:
    """Qwen3ForCausalLM as Qwen3-4B-Instruct-2507 is published: GQA, q and k norms, tied embeddings."""
    return _write("qwen3", folder, overrides)


def make_qwen2(folder: Path, **overrides: Any) -> Path:
    """Qwen2ForCausalLM as Qwen2.5-0.5B-Instruct is published: biases on q, k and v."""
    return _write("qwen2", folder, overrides)


def make_llama(folder: Path, **overrides: Any) -> Path:
    """LlamaForCausalLM as SmolLM2-135M-Instruct is published."""
    return _write("llama", folder, overrides)


def make_qwen3_embedding(folder: Path, **overrides: Any) -> Path:
    """Qwen3ForCausalLM as Qwen3-Embedding-0.6B is published: the base model's tensors, last-token pooling, Normalize, a
    prompt for queries, and a tokenizer that ends every text with <|endoftext|>."""
    return _write("qwen3-embedding", folder, overrides)


def make_qwen3_reranker(folder: Path, **overrides: Any) -> Path:
    """Qwen3ForCausalLM as Qwen3-Reranker-0.6B is published: a chat model's files, "yes" and "no" one token each."""
    return _write("qwen3-reranker", folder, overrides)


def make_bge_m3(folder: Path, **overrides: Any) -> Path:
    """XLMRobertaModel as bge-m3 is published: CLS pooling, Normalize, a Unigram tokenizer."""
    return _write("bge-m3", folder, overrides)


def make_bge_m3_heads(folder: Path, colbert_dimensions: int | None = None, **overrides: Any) -> Path:
    """bge-m3 after its conversion: its two heads beside it, as safetensors in float16."""
    _write("bge-m3", folder, overrides)
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    for name, shapes in token_head_shapes(hidden, colbert_dimensions or hidden).items():
        halves = (tensor.astype(np.float16) for tensor in _random(shapes, 0))
        write_safetensors(folder / f"{name}.safetensors", shapes, "F16", halves)
    return folder


def make_bge_reranker(folder: Path, **overrides: Any) -> Path:
    """XLMRobertaForSequenceClassification with one label as bge-reranker-v2-m3 is published."""
    return _write("bge-reranker", folder, overrides)


def make_minilm(folder: Path, **overrides: Any) -> Path:
    """BertModel as all-MiniLM-L6-v2 is published: mean pooling, Normalize, a WordPiece tokenizer."""
    return _write("minilm", folder, overrides)


def make_gte_multilingual(folder: Path, **overrides: Any) -> Path:
    """NewModel as gte-multilingual-base is published: fused tensors, NTK scaling, a classifier of tokens beside it."""
    return _write("gte-multilingual", folder, overrides)


def make_gte_reranker(folder: Path, **overrides: Any) -> Path:
    """NewForSequenceClassification with one label as gte-multilingual-reranker-base is published."""
    return _write("gte-reranker", folder, overrides)


def write_fake_folder(
    folder: Path, family: str = "qwen3", dtype: str = "F32", *, shards: int = 1, **overrides: Any
) -> Path:
    """A valid folder whose weights are sparse files of zeros; `dtype` as safetensors spells it.

    `write_fake_folder(path, "qwen3", "BF16", **QWEN3_4B)` looks like the real 8 GB model and takes 50 KB of disk.
    """
    shapes, _ = _write_but_weights(family, folder, overrides)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", shapes, dtype)
        return folder
    names = list(shapes)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        weight_map |= dict.fromkeys(names[shard::shards], file)
        write_safetensors(folder / file, {name: shapes[name] for name in names[shard::shards]}, dtype)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _write(family: str, folder: Path, overrides: dict[str, Any]) -> Path:
    shapes, tokens = _write_but_weights(family, folder, overrides)
    write_safetensors(folder / "model.safetensors", shapes, "F32", _random(shapes, tokens))
    return folder


def _write_but_weights(family: str, folder: Path, overrides: dict[str, Any]) -> tuple[Shapes, int]:
    """Shapes of the tensors still to write, and how many tokens there are."""
    row = FAMILIES[family]
    tokenizer = row.tokenizer()
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    config = {"vocab_size": -(-len(ids) // 16) * 16, **row.config(ids), **overrides}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in {"config.json": config, **row.extras(config, ids)}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
    return row.shapes(config), len(ids)


def _random(shapes: Shapes, tokens: int) -> Iterator[np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(20261122))
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("position_ids"):
            yield np.arange(shape[-1], dtype=np.int64)[None]
        elif "norm" in name.lower() and name.endswith("weight"):
            yield 1 + 0.1 * noise
        elif name.endswith("bias"):
            yield 0.1 * noise
        else:
            noise *= 0.2
            if shape[0] > tokens and ("embed_tokens" in name or "lm_head" in name):
                noise[tokens:] = 0  # ids without a token are never preferred
            yield noise


def write_safetensors(path: Path, shapes: Shapes, dtype: str, data: Iterable[np.ndarray] = ()) -> None:
    """One safetensors file; without `data` a sparse file of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        own = "I64" if name.endswith("position_ids") else dtype
        end = offset + int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[own]
        header[name] = {"dtype": own, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in data:
            file.write(tensor.tobytes())
        file.truncate(8 + len(text) + offset)


def _qwen3_config(ids: dict[str, int]) -> Config:
    return {**_DECODER, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
            "head_dim": 16, "max_window_layers": 2, "sliding_window": None, "use_sliding_window": False,
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}  # fmt: skip


def _qwen2_config(ids: dict[str, int]) -> Config:
    return {**_DECODER, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "max_window_layers": 2,
            "sliding_window": 512, "use_sliding_window": False,
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}  # fmt: skip


def _llama_config(ids: dict[str, int]) -> Config:
    return {**_DECODER, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
            "mlp_bias": False, "rms_norm_eps": 1e-5, "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|im_end|>"]}  # fmt: skip


def _bert_config(ids: dict[str, int]) -> Config:
    return {**_ENCODER, "architectures": ["BertModel"], "model_type": "bert", "layer_norm_eps": 1e-12,
            "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0}  # fmt: skip


def _bge_m3_config(ids: dict[str, int]) -> Config:
    return {**_XLM_R, "architectures": ["XLMRobertaModel"]}


def _bge_reranker_config(ids: dict[str, int]) -> Config:
    return {**_XLM_R, "architectures": ["XLMRobertaForSequenceClassification"],
            "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # fmt: skip


def _new_config(ids: dict[str, int]) -> Config:
    return {**_NEW, "architectures": ["NewModel", "NewForTokenClassification"],
            "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # fmt: skip


def _new_reranker_config(ids: dict[str, int]) -> Config:
    return {**_new_config(ids), "architectures": ["NewForSequenceClassification"]}


def _chat_files(template: str, stops: tuple[str, ...], **sampling: Any) -> Callable[..., dict[str, Any]]:
    def files(config: Config, ids: dict[str, int]) -> dict[str, Any]:
        generation = {"bos_token_id": config["bos_token_id"], "do_sample": bool(sampling),
                      "eos_token_id": [ids[stop] for stop in stops] if len(stops) > 1 else ids[stops[0]],
                      "pad_token_id": ids["<|endoftext|>"], **sampling}  # fmt: skip
        tokenizer = {"add_bos_token": False, "add_prefix_space": False, "bos_token": None, "chat_template": template,
                     "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
                     "model_max_length": 1010000, "pad_token": "<|endoftext|>", "split_special_tokens": False,
                     "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None}  # fmt: skip
        return {"generation_config.json": generation, "tokenizer_config.json": tokenizer}

    return files


_MODULES = [
    {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
    for index, (name, path) in enumerate((("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")))
]


def _qwen3_embedding_files(config: Config, ids: dict[str, int]) -> dict[str, Any]:
    modes = {f"pooling_mode_{mode}": mode == "lasttoken"
             for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens",
                          "lasttoken")}  # fmt: skip
    query = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
    return _QWEN3_FILES(config, ids) | {
        "modules.json": _MODULES,
        "1_Pooling/config.json": {"word_embedding_dimension": config["hidden_size"], **modes, "include_prompt": True},
        "config_sentence_transformers.json": {"prompts": {"query": query, "document": ""}, "default_prompt_name": None,
                                              "similarity_fn_name": "cosine"},
    }  # fmt: skip


def _sentence_files(pooling: str, share: float, tokenizer: dict[str, Any]) -> Callable[..., dict[str, Any]]:

    def files(config: Config, ids: dict[str, int]) -> dict[str, Any]:
        length = int(share * (config["max_position_embeddings"] - (2 if config["model_type"] == "xlm-roberta" else 0)))
        modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")}
        return {
            "modules.json": _MODULES,
            "1_Pooling/config.json": {"word_embedding_dimension": config["hidden_size"], **modes},
            "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
            "config_sentence_transformers.json": {"__version__": {"sentence_transformers": "2.2.2"}},
            "tokenizer_config.json": tokenizer,
        }

    return files


_XLM_R_TOKENIZER = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>",
                    "model_max_length": 8192, "pad_token": "<pad>", "sep_token": "</s>",
                    "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}  # fmt: skip
_BERT_TOKENIZER = {"cls_token": "[CLS]", "do_lower_case": True, "mask_token": "[MASK]", "model_max_length": 512,
                   "pad_token": "[PAD]", "sep_token": "[SEP]", "tokenizer_class": "BertTokenizer",
                   "unk_token": "[UNK]"}  # fmt: skip

_QWEN3_FILES = _chat_files(QWEN3, ("<|im_end|>", "<|endoftext|>"), temperature=0.7, top_k=20, top_p=0.8)

FAMILIES: dict[str, _Family] = {
    "qwen3": _Family(_qwen3_config, tiny_tokenizers.qwen, decoder_shapes, _QWEN3_FILES),
    "qwen3-embedding": _Family(_qwen3_config, tiny_tokenizers.qwen_embedding, bare_decoder_shapes,
                               _qwen3_embedding_files),
    "qwen3-reranker": _Family(_qwen3_config, tiny_tokenizers.qwen_reranker, decoder_shapes, _QWEN3_FILES),
    "qwen2": _Family(_qwen2_config, tiny_tokenizers.qwen, decoder_shapes,
                     _chat_files(QWEN2, ("<|im_end|>", "<|endoftext|>"), temperature=0.7, top_k=20, top_p=0.8,
                                 repetition_penalty=1.05)),
    "llama": _Family(_llama_config, tiny_tokenizers.smollm, decoder_shapes, _chat_files(CHATML, ("<|im_end|>",))),
    "bge-m3": _Family(_bge_m3_config, tiny_tokenizers.xlm_roberta, encoder_shapes,
                      _sentence_files("cls_token", 1.0, _XLM_R_TOKENIZER)),
    "bge-reranker": _Family(_bge_reranker_config, tiny_tokenizers.xlm_roberta, encoder_shapes,
                            lambda config, ids: {"tokenizer_config.json": _XLM_R_TOKENIZER}),
    "gte-multilingual": _Family(_new_config, tiny_tokenizers.xlm_roberta, new_shapes,
                                _sentence_files("cls_token", 1.0, _XLM_R_TOKENIZER)),
    "gte-reranker": _Family(_new_reranker_config, tiny_tokenizers.xlm_roberta, new_shapes,
                            lambda config, ids: {"tokenizer_config.json": _XLM_R_TOKENIZER}),
    "minilm": _Family(_bert_config, tiny_tokenizers.bert, encoder_shapes,
                      _sentence_files("mean_tokens", 0.5, _BERT_TOKENIZER)),
}  # fmt: skip
