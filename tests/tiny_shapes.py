"""Names and shapes of the tensors that each published format stores."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def decoder_shapes(config: Config) -> Shapes:
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    kv = config["num_key_value_heads"] * head
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        for part, rows in (("q", heads * head), ("k", kv), ("v", kv)):
            shapes[f"{at}self_attn.{part}_proj.weight"] = (rows, hidden)
            if config["model_type"] == "qwen2":
                shapes[f"{at}self_attn.{part}_proj.bias"] = (rows,)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, heads * head)
        if config["model_type"] == "qwen3":
            shapes[at + "self_attn.q_norm.weight"] = shapes[at + "self_attn.k_norm.weight"] = (head,)
        shapes[at + "mlp.gate_proj.weight"] = shapes[at + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[at + "mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def encoder_shapes(config: Config) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    base: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    linear = {"attention.self.query": (hidden, hidden), "attention.self.key": (hidden, hidden),
              "attention.self.value": (hidden, hidden), "attention.output.dense": (hidden, hidden),
              "intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        for name, shape in linear.items():
            base[f"encoder.layer.{layer}.{name}.weight"] = shape
            base[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
        for name in ("attention.output", "output"):
            base[f"encoder.layer.{layer}.{name}.LayerNorm.weight"] = (hidden,)
            base[f"encoder.layer.{layer}.{name}.LayerNorm.bias"] = (hidden,)
    if config["architectures"] == ["XLMRobertaForSequenceClassification"]:
        labels = len(config["id2label"])
        return {f"roberta.{name}": shape for name, shape in base.items()} | {
            "classifier.dense.weight": (hidden, hidden),
            "classifier.dense.bias": (hidden,),
            "classifier.out_proj.weight": (labels, hidden),
            "classifier.out_proj.bias": (labels,),
        }
    if config["model_type"] == "bert":  # all-MiniLM-L6-v2 stores this buffer too
        base["embeddings.position_ids"] = (1, config["max_position_embeddings"])
    return base | {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}


def new_shapes(config: Config) -> Shapes:
    """Of Alibaba-NLP's own code: fused projections, and a classifier of tokens or of texts."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {"new.embeddings.word_embeddings.weight": (config["vocab_size"], hidden)}
    if config["type_vocab_size"]:
        shapes["new.embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], hidden)
    norms = ["new.embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        at = f"new.encoder.layer.{layer}."
        shapes |= {
            at + "attention.qkv_proj.weight": (3 * hidden, hidden),
            at + "attention.qkv_proj.bias": (3 * hidden,),
        }
        shapes |= {at + "attention.o_proj.weight": (hidden, hidden), at + "attention.o_proj.bias": (hidden,)}
        shapes |= {at + "mlp.down_proj.weight": (hidden, inner), at + "mlp.down_proj.bias": (hidden,)}
        shapes[at + "mlp.up_gate_proj.weight"] = (2 * inner, hidden)
        norms += [at + "attn_ln", at + "mlp_ln"]
    shapes |= {f"{norm}.{part}": (hidden,) for norm in norms for part in ("weight", "bias")}
    if "NewForSequenceClassification" in config["architectures"]:
        shapes |= {"new.pooler.dense.weight": (hidden, hidden), "new.pooler.dense.bias": (hidden,)}
    return shapes | {"classifier.weight": (1, hidden), "classifier.bias": (1,)}


def bare_decoder_shapes(config: Config) -> Shapes:
    """As the base model is saved, without the class around it."""
    return {
        name.removeprefix("model."): shape for name, shape in decoder_shapes(config).items() if name != "lm_head.weight"
    }


def token_head_shapes(hidden: int, dimensions: int) -> dict[str, Shapes]:
    """bge-m3's heads by the names of their files."""
    return {
        "sparse_linear": {"weight": (1, hidden), "bias": (1,)},
        "colbert_linear": {"weight": (dimensions, hidden), "bias": (dimensions,)},
    }
