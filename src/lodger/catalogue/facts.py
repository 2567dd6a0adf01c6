"""`ModelFacts`: all that planner, runtime and API need to know of a model folder, read without loading it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from lodger.tasks import Kind

Pooling = Literal["cls", "mean", "last"]
RerankMethod = Literal["cross-encoder", "bi-encoder"]


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of one model folder. Sizes are bytes, lengths are tokens."""

    path: str
    kind: Kind
    architecture: str  # as config.json has it: "Qwen3ForCausalLM"
    model_type: str  # "qwen3"
    parameters: int
    stored_bytes: dict[str, int]  # dtype ("float32", "bfloat16", ...) -> bytes in the files, tied tensors once
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int  # the most tokens of one sequence that the model really supports
    position_offset: int = 0  # first position id of a sequence (XLM-RoBERTa: padding_idx + 1)
    tied_embeddings: bool = False
    pooling: Pooling | None = None
    normalize: bool = False
    dimensions: int | None = None  # of an embedding
    num_labels: int | None = None
    rerank_method: RerankMethod | None = None
    prompts: dict[str, str] = {}  # sentence-transformers' prompts: "query", "document"
    chat_template: bool = False
    tools: bool = False  # the template knows the variable `tools`
    eos_token_ids: tuple[int, ...] = ()
    generation: dict[str, Any] = {}  # sampling defaults of generation_config.json
    lowercase: bool = False  # sentence_bert_config.json's do_lower_case

    @property
    def is_decoder(self) -> bool:
        return self.kind == "chat"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]
