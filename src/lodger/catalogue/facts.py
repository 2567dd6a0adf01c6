"""`ModelFacts`: all that planner, runtime and API need to know of a model folder, read without loading it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from lodger.tasks import Kind

Pooling = Literal["cls", "mean", "last"]
WeightsFormat = Literal["safetensors", "pytorch"]  # "pytorch" is converted before it is loaded (`lodger.hub.prepare`)
# How documents are scored: by a classifier over the pair; by the cosine of two vectors; by bge-m3's vector of every
# token (late interaction); by a chat model's logits of "yes" and "no".
RerankMethod = Literal["cross-encoder", "bi-encoder", "multi-vector", "yes-no"]
TokenHead = Literal["sparse", "colbert"]  # bge-m3's: one weight for every token, one vector for every token


class RerankTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt of a "yes-no" reranker: `prefix`, then `body` with its three names filled in, then `suffix`.

    Over-long documents are cut inside of `body`; `prefix` and `suffix` always stay whole.
    """

    prefix: str
    body: str  # holds {instruction}, {query} and {document}
    suffix: str
    instruction: str  # where the request has none
    yes: str  # one token of the vocabulary each
    no: str


class Int4Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Matrices that a folder stores in four bits a number (`lodger.catalogue.int4`)."""

    method: Literal["awq", "gptq"]
    group: int  # columns that share a scale and a zero point; 0: all of a row
    symmetric: bool = False  # every zero point is 8, whatever the files say
    zeros_less_one: bool = False  # the files hold zero points less one
    parameters: int = 0  # numbers in these matrices
    resident: int = 0  # bytes that they take on a GPU as the runtime holds them


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of one model folder. Sizes are bytes, lengths are tokens."""

    path: str
    kind: Kind
    architecture: str  # as config.json has it: "Qwen3ForCausalLM"
    model_type: str  # "qwen3"
    parameters: int
    # dtype ("float32", "bfloat16", ...) -> bytes in the files, tied tensors once; "int4" with scales and zero points
    stored_bytes: dict[str, int]
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
    matryoshka: bool = False  # the first numbers of an embedding are one by themselves (arXiv 2205.13147)
    num_labels: int | None = None
    rerank_method: RerankMethod | None = None
    rerank_template: RerankTemplate | None = None  # of a "yes-no" reranker
    token_heads: tuple[TokenHead, ...] = ()  # what an embedding model makes beside its one vector
    prompts: dict[str, str] = {}  # text before a text, by what that is for: "query", "document"
    default_prompt: str | None = None  # which of `prompts` stands before texts of a request that names none
    chat_template: bool = False
    tools: bool = False  # the template knows the variable `tools`
    eos_token_ids: tuple[int, ...] = ()
    generation: dict[str, Any] = {}  # sampling defaults of generation_config.json
    lowercase: bool = False  # sentence_bert_config.json's do_lower_case

    causal: bool = False  # a token sees only those before it: decoders, whatever they are served as
    weights_format: WeightsFormat = "safetensors"
    int4: Int4Weights | None = None  # of a quantised checkpoint

    @property
    def generates(self) -> bool:
        """It makes tokens, and so has a KV cache and logits."""
        return self.kind == "chat"

    @property
    def stored_dtype(self) -> str:
        """Of most of what is not quantised."""
        floats = {name: size for name, size in self.stored_bytes.items() if name != "int4"}
        return max(floats, key=floats.__getitem__, default="float32")

    @property
    def output_rows(self) -> int:
        """Rows of the output projection that are needed: every token's, those of "yes" and "no", or none."""
        return self.vocab_size if self.generates else 2 if self.rerank_method == "yes-no" else 0

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]
