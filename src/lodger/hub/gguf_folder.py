"""What a GGUF file's metadata says, as the small files of a transformers model folder."""

from __future__ import annotations

import json
from typing import Any

from lodger.errors import ModelProblem

_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_CONTROL = 3  # tokenizer.ggml.token_type of special tokens
# What HuggingFaceTB recommends for SmolLM2-Instruct; without it a model this small wanders.
_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}


def hf_name(name: str) -> str:
    """transformers' name of a Llama tensor: ``'blk.3.attn_q.weight'`` -> ``'model.layers.3.self_attn.q_proj.weight'``.

    Raises:
        ModelProblem: no such tensor in a Llama.
    """
    match name.split("."):
        case [part, "weight"] if part in _TENSORS:
            return f"{_TENSORS[part]}.weight"
        case ["blk", layer, part, "weight"] if part in _LAYER_TENSORS and layer.isdecimal():
            return f"model.layers.{layer}.{_LAYER_TENSORS[part]}.weight"
    raise ModelProblem(f"{name} is no tensor of a Llama model.")


def folder_files(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """File name -> text of all files but the weights. `shapes`: of the tensors, by GGUF's names.

    Raises:
        ModelProblem: another architecture or tokenizer, or a value is missing.
    """
    found = tuple(metadata.get(key) for key in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if found != ("llama", "gpt2", "smollm"):
        raise ModelProblem(f"It holds {found}; converted are ('llama', 'gpt2', 'smollm').")
    try:
        config = _config(metadata, shapes)
        eos = config["eos_token_id"]
        generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": eos, "pad_token_id": eos, **_SAMPLING}
        files = {
            "config.json": config,
            "generation_config.json": generation,
            "tokenizer_config.json": _tokenizer_config(metadata),
        }
        texts = {name: json.dumps(value, indent=2, ensure_ascii=False) for name, value in files.items()}
        return texts | {"tokenizer.json": _tokenizer(metadata)}
    except KeyError as error:
        raise ModelProblem(f"It lacks {error}.") from None


def _config(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    vocabulary, hidden = shapes["token_embd.weight"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": _float32(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_scaling": None,
        "rope_theta": _float32(metadata["llama.rope.freq_base"]),
        "tie_word_embeddings": "output.weight" not in shapes,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def _float32(value: float) -> float:
    """The short decimal that was rounded to float32: 9.999999747378752e-06 -> 1e-05."""
    return float(f"{value:.6g}")


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return {
        "add_bos_token": metadata["tokenizer.ggml.add_bos_token"],
        "add_prefix_space": metadata["tokenizer.ggml.add_space_prefix"],
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokens[metadata[f"tokenizer.ggml.{key}_token_id"]] for name, key in named.items()},
    }


def _tokenizer(metadata: dict[str, Any]) -> str:
    """tokenizer.json: byte-level BPE whose words are split at single digits first, as SmolLM's is."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    text: str = tokenizer.to_str(pretty=True)
    return text
