"""Facts of published models, written by hand from their model cards and config.json."""

from __future__ import annotations

from lodger.catalogue.facts import ModelFacts
from lodger.plan.values import Candidate
from lodger.spec import ModelSpec

QWEN3_4B = ModelFacts(
    path="/models/Qwen3-4B-Instruct-2507",
    kind="chat",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    parameters=4_022_468_096,
    stored_bytes={"bfloat16": 8_044_936_192},
    layers=36,
    hidden_size=2560,
    intermediate_size=9728,
    attention_heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=151_936,
    context_length=262_144,
    tied_embeddings=True,
    causal=True,
    chat_template=True,
)
BGE_M3 = ModelFacts(
    path="/models/bge-m3",
    kind="embedding",
    architecture="XLMRobertaModel",
    model_type="xlm-roberta",
    parameters=567_754_752,
    stored_bytes={"float32": 2_271_019_008},
    layers=24,
    hidden_size=1024,
    intermediate_size=4096,
    attention_heads=16,
    kv_heads=16,
    head_dim=64,
    vocab_size=250_002,
    context_length=8192,
    position_offset=2,
    pooling="cls",
    normalize=True,
    dimensions=1024,
)
RERANKER = ModelFacts(
    path="/models/bge-reranker-v2-m3",
    kind="rerank",
    architecture="XLMRobertaForSequenceClassification",
    model_type="xlm-roberta",
    parameters=567_755_777,
    stored_bytes={"float32": 2_271_023_108},
    layers=24,
    hidden_size=1024,
    intermediate_size=4096,
    attention_heads=16,
    kv_heads=16,
    head_dim=64,
    vocab_size=250_002,
    context_length=8192,
    position_offset=2,
    num_labels=1,
    rerank_method="cross-encoder",
)
SMOLLM2 = ModelFacts(
    path="/models/SmolLM2-135M-Instruct",
    kind="chat",
    architecture="LlamaForCausalLM",
    model_type="llama",
    parameters=134_515_008,
    stored_bytes={"bfloat16": 269_030_016},
    layers=30,
    hidden_size=576,
    intermediate_size=1536,
    attention_heads=9,
    kv_heads=3,
    head_dim=64,
    vocab_size=49_152,
    context_length=8192,
    tied_embeddings=True,
    causal=True,
    chat_template=True,
)
MINILM = ModelFacts(
    path="/models/all-MiniLM-L6-v2",
    kind="embedding",
    architecture="BertModel",
    model_type="bert",
    parameters=22_713_216,
    stored_bytes={"float32": 90_852_864},
    layers=6,
    hidden_size=384,
    intermediate_size=1536,
    attention_heads=12,
    kv_heads=12,
    head_dim=32,
    vocab_size=30_522,
    context_length=256,
    pooling="mean",
    normalize=True,
    dimensions=384,
)


def candidate(uid: str, facts: ModelFacts, **asked: object) -> Candidate:
    return Candidate(ModelSpec(uid=uid, path=facts.path, **asked), facts)  # type: ignore[arg-type]


def trio(**chat: object) -> tuple[Candidate, ...]:
    """The guide's three models; `chat` are options of the chat model."""
    return (
        candidate("qwen3-4b-chat-local", QWEN3_4B, **chat),
        candidate("bge-m3-local", BGE_M3),
        candidate("bge-reranker-v2-m3-local", RERANKER),
    )
