"""Bytes that a model needs, computed from its facts. Pure arithmetic; every formula names its source.

Symbols: h hidden size, i intermediate size, H attention heads, K key-value heads, D head dimension, T tokens of one
step, C tokens of the served context, b bytes of one element.
"""

from __future__ import annotations

from lodger.budget import CAPTURED_STEP, GRANULE, SEGMENTS, SMALL_CAPTURED, decode_steps, workspaces
from lodger.catalogue.facts import ModelFacts
from lodger.device.view import DeviceView
from lodger.units import MIB

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
# What products with weights of a byte or half of one take beside their results: a piece of the weight made dense for a
# long prompt, or the sums of programs that share the columns of one tile (at most 17 MiB on a card of 132 processors).
QUANTISED_WORKSPACE = 32 * MIB
HALF = ("bfloat16", "float16")

CUDA_CONTEXT = 529 * MIB  # measured on an H100 (driver 580, torch 2.11)
# What the driver has for kernels of torch, cuBLAS and Triton and for captured steps, beside CAPTURED_STEP: 304 MiB with
# three models that have served all kinds of requests, the chat model's weights of one byte; and 20 to 27 more for
# products of its weights in a half precision (H100, driver 580).
KERNELS, DENSE_KERNELS = 306 * MIB, 24 * MIB
KEPT = 1 * MIB  # tables, counters and inputs that a model's captured steps keep: 2.4 MiB measured for three models
# Resident set of a worker on a CPU after one float32 and one bfloat16 forward: 391 MiB, of which torch 2.13 is 206 and
# transformers' modelling code 140 (psutil, Linux x86-64, Python 3.11). The rest is for sockets, threads and buffers.
WORKER_CPU = 420 * MIB
# Resident bytes that `tokenizers` 0.23 takes for one vocabulary entry: 711 measured for a BPE of 151,936 entries with
# its merges, 664 for a Unigram of 250,002.
TOKENIZER_ENTRY = 720
LOGITS_ROWS = {"cpu": 64, "cuda": 256}  # rows of logits at once: a step's sequences in the runtime (MAX_RUNNING)
SAMPLED_ROWS = 32  # of them that are not simply the best token, and go through sampling together (AT_ONCE)
GATHERED = 2**25  # numbers of keys and values that are laid end to end for attention, of a layer at a time
CAPTURED_PARTS = 17 * MIB  # at most, of products and attention that programs share, on a card of 132 processors
CAPTURED_CHUNK, CAPTURED_TEXTS = 512, 4224  # most tokens of a captured prefill step, and of a captured forward of texts
# A vector for every token: a worker on a CPU held 330 MiB more while its largest answer, 63 MiB of them, went out (as
# tensors, as bytes, as a message, as a frame and in the socket's buffer; psutil, 16,000 tokens of 1,024 dimensions).
ANSWER = 330 * MIB
PLAIN_MLP = frozenset({"bert", "roberta", "xlm-roberta"})  # the other families' feed-forward has a gate
FUSED = PLAIN_MLP | {"llama", "mistral", "qwen2", "qwen3"}  # served by our own forward; others by transformers' classes


def choose_dtype(device: DeviceView, facts: ModelFacts, asked: str | None) -> str:
    """The dtype of weights and activations to plan with.

    On a GPU the stored dtype when it is a half precision, else bfloat16 for decoders and float16 for encoders (which
    need the mantissa more than the range); without bfloat16 units (compute capability under 8.0) float16. On a CPU the
    worker measures which dtype is faster, so the plan takes float32, the upper bound of what it may choose.
    """
    if asked:
        return asked
    if device.kind == "cpu":
        return "float32"
    if (device.compute_capability or (8, 0)) < (8, 0):
        return "float16"
    if facts.stored_dtype in HALF:
        return facts.stored_dtype
    return "bfloat16" if facts.causal else "float16"


def weights(facts: ModelFacts, dtype: str, device: DeviceView, *, int8: bool = False) -> int:
    """Bytes of the parameters on the device, each converted to `dtype`, tied tensors once.

    A CPU that stores float16 looks tokens up in one table and multiplies with another, so tied tensors count twice.
    The heads of an encoder are float32 whatever the model is: bge-m3's are h + 1 and, with vectors of h dimensions as
    published, h * (h + 1) of its parameters; a "yes-no" reranker keeps two rows of its output projection. Matrices that
    are stored in four bits are `dtype` too where no kernel multiplies with them.
    """
    twice = device.kind == "cpu" and dtype == "float16" and facts.generates and facts.tied_embeddings
    table = facts.vocab_size * facts.hidden_size if twice else 0
    rows = {"sparse": 1, "colbert": facts.hidden_size}
    heads = sum(rows[head] for head in facts.token_heads) * (facts.hidden_size + 1) * (4 - ITEMSIZE[dtype])
    answers = 2 * facts.hidden_size * 4 if facts.rerank_method == "yes-no" else 0
    saved = int8_saves(facts, dtype) if int8 else 0
    if facts.int4 is not None and stays_int4(facts, dtype, device):
        saved = facts.int4.parameters * ITEMSIZE[dtype] - facts.int4.resident
    return (facts.parameters + table) * ITEMSIZE[dtype] + heads + answers - saved


def stays_int4(facts: ModelFacts, dtype: str, device: DeviceView) -> bool:
    """Whether a checkpoint of four-bit matrices is served as it is."""
    return facts.int4 is not None and _captures(device, _computed(dtype, device))


def int8_saves(facts: ModelFacts, dtype: str) -> int:
    """Bytes by which weights of one byte are fewer: those of a decoder's four products a layer, less a float32 scale
    for each row. Its layers are h x (H + 2K)D, HD x h, h x 2i and i x h."""
    h, i = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.attention_heads * facts.head_dim, facts.kv_heads * facts.head_dim
    numbers = h * (2 * queries + 2 * keys + 3 * i)
    rows = queries + 2 * keys + h + 2 * i + h
    return facts.layers * (numbers * (ITEMSIZE[dtype] - 1) - rows * 4)


def kv_bytes_per_token(facts: ModelFacts, dtype: str, device: DeviceView) -> int:
    """2 (key and value) * layers * K * D * b; 144 KiB for Qwen3-4B in bfloat16, nothing for an encoder."""
    if not facts.generates:
        return 0
    return 2 * facts.layers * facts.kv_heads * facts.head_dim * _computed(dtype, device)


def _computed(dtype: str, device: DeviceView) -> int:
    """Bytes of one number of activations and KV cache: CPUs store weights in float16 but compute in float32."""
    return ITEMSIZE["float32" if device.kind == "cpu" and dtype == "float16" else dtype]


def activations(
    facts: ModelFacts, dtype: str, device: DeviceView, *, step_tokens: int, context: int, kv_tokens: int
) -> int:
    """Peak bytes of the intermediate tensors of one step.

    The larger of the two halves of a layer, for T tokens: attention 3h + 6HD + 6KD (residual, normed input, q, k, v,
    and in turn their normed, rolled and rotated copies) and feed-forward 3h + 4i, or 3h + 3i without a gate. Compared
    with the allocations under torch's profiler (XLM-RoBERTa and BERT by transformers' own classes, Qwen3 by ours; 512
    and 2,048 tokens): the float32 peak is 3h + 3i (gated) and 3h + 2i (plain). bfloat16 on a CPU takes 3h + 6i (gated)
    and 3h + 3i (plain), because oneDNN makes a product in float32 first, the widest one with all gates.
    BERT by ours takes less than by transformers' classes (i = 4h, 512 tokens): 8h and not 11h, in bfloat16 14h and not
    15h.

    An encoder's heads run when the layers are done and take less than its attention: the hidden states, their float32
    copy and two float32 numbers for each of a bge-m3 vector are 4h in float32 and 7h in a half precision (measured 3h
    and 6h, late interaction with a query of 2,000 tokens included).
    """
    b = _computed(dtype, device)
    h, i = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.attention_heads * facts.head_dim, facts.kv_heads * facts.head_dim
    attention = 3 * h + 6 * queries + 6 * keys
    gated = 6 if device.kind == "cpu" and b == 2 else 4
    feed_forward = 3 * h + (3 if facts.model_type in PLAIN_MLP else gated) * i
    peak = step_tokens * max(attention, feed_forward) * b
    if _captures(device, b) and facts.model_type in FUSED:
        peak = max(step_tokens * _fused(facts), _over_cache(facts, step_tokens) if facts.generates else 0) * b
    if not facts.generates:
        answers = device.kind == "cpu" and facts.kind == "embedding" and "colbert" in facts.token_heads
        return peak + (ANSWER if answers else 0)
    if _captures(device, b):
        return max(peak, facts.vocab_size * SAMPLED_ROWS * b)
    return peak + _logits(facts, b, LOGITS_ROWS[device.kind]) + _attention(keys, b, step_tokens, context, kv_tokens)


def _fused(facts: ModelFacts) -> int:
    """Numbers for each token at the peak of a step of our own kernels, where nothing of a layer is kept for long.

    A decoder's feed-forward: residual, normed input, attention's output and its norm, both gates and their product; and
    two float32 tables of angles. 156.0 MiB for 2,048 tokens of Qwen3-4B in bfloat16, 156.1 measured (H100, torch 2.11).
    An encoder's: input, what is up, and down again. 96.0 MiB for 8,192 tokens of XLM-RoBERTa-large, 96.1 measured; with
    sparse or multi-vector heads 7h at the end.
    """
    return max(_fused_layers(facts), 7 * facts.hidden_size if facts.token_heads else 0)


def _over_cache(facts: ModelFacts, step_tokens: int) -> int:
    """Numbers at the peak of a decoder's attention over its cache: residual, normed input, queries with keys and
    values, the queries rotated, what is found, two float32 tables of angles; and all keys and values of some of the
    step's sequences, copied to lie end to end (`most_keys` in `lodger.runtime.attention.paged`)."""
    queries, keys = facts.attention_heads * facts.head_dim, facts.kv_heads * facts.head_dim
    each = 2 * facts.hidden_size + 3 * queries + 2 * keys + 4 * facts.head_dim
    return step_tokens * each + 2 * keys * max(step_tokens, min(8 * step_tokens, GATHERED // (2 * keys)))


def _fused_layers(facts: ModelFacts) -> int:
    """`_fused` without the heads, which are not captured."""
    h, i, d = facts.hidden_size, facts.intermediate_size, facts.head_dim
    queries, keys = facts.attention_heads * d, facts.kv_heads * d
    if facts.causal:
        return max(2 * h + 3 * queries + 4 * keys, 4 * h + 3 * i) + 4 * d
    return max(h + 2 * queries + 2 * keys, 2 * h + i)


def unfinished(facts: ModelFacts, dtype: str, device: DeviceView, *, step_tokens: int, sequences: int) -> int:
    """Bytes that requests hold on a GPU between their steps: texts that pause between two layers the hidden states of
    one step, a chat whose repetitions are penalised how often it had each token of the vocabulary."""
    if device.kind == "cpu":
        return 0
    if facts.generates:
        return sequences * _piece(facts.vocab_size * 4)
    return step_tokens * facts.hidden_size * _computed(dtype, device)


def _piece(size: int) -> int:
    """What `size` bytes take of torch's allocator: pieces of up to 1 MiB share segments of 2 MiB."""
    size = -(-size // 512) * 512
    return size if size > MIB else 2 * MIB // (2 * MIB // size) // 512 * 512


def captured(facts: ModelFacts, dtype: str, device: DeviceView, *, sequences: int, kv_tokens: int) -> int:
    """Bytes that captured steps read and write: a decoder's a row of logits for each of `sequences`, a table of their
    blocks (4 bytes for every 16 tokens of the cache), and like an encoder's the last hidden states. For each of a
    decoder's steps the driver has memory too."""
    b = _computed(dtype, device)
    if not _captures(device, b):
        return 0
    if facts.generates:
        logits, table = sequences * facts.vocab_size * b, sequences * kv_tokens // 16 * 4
        driver = len(decode_steps(sequences)) * CAPTURED_STEP
        return _upwards(logits) + table + _upwards(CAPTURED_CHUNK * facts.hidden_size * b) + KEPT + driver
    return _upwards(CAPTURED_TEXTS * facts.hidden_size * b) + KEPT if facts.model_type in PLAIN_MLP else 0


def graphs(facts: ModelFacts, dtype: str, device: DeviceView, *, step_tokens: int, sequences: int) -> int:
    """Bytes that captured steps work in, one after the other: the layers' activations in the largest, in one piece that
    all others are cut from. 48 MiB for 4,096 tokens of XLM-RoBERTa-large, and 39 for 512 of Qwen3-4B. Of a decoder's,
    those of half as many tokens or fewer share products and attention among programs."""
    b = _computed(dtype, device)
    if not _captures(device, b) or not (facts.generates or facts.model_type in PLAIN_MLP):
        return 0
    tokens = max(sequences, CAPTURED_CHUNK) if facts.generates else min(step_tokens, CAPTURED_TEXTS)
    whole = tokens * _fused_layers(facts) * b
    shared = whole // 2 + CAPTURED_PARTS if facts.generates else 0
    return _upwards(max(whole, shared)) + SMALL_CAPTURED


def beside(facts: ModelFacts, dtype: str, device: DeviceView) -> tuple[int, int, int]:
    """Bytes for texts that are computed beside chats: what captured steps of all models work in, one after the other;
    the last hidden states of this one's; and what is made of them, on a stream of its own, where nothing else finds
    memory that it has left. (0, 0, 0) where they cannot be.

    7h in a half precision with sparse or multi-vector heads, and a float32 copy where a vector is a mean. With neither,
    12 to 15 MiB of tensors of up to 1 MiB were measured for two models (H100, torch 2.11).
    """
    b = _computed(dtype, device)
    if not _captures(device, b) or facts.model_type not in PLAIN_MLP:
        return 0, 0, 0
    each = 7 * b if facts.token_heads else 4 if facts.pooling == "mean" else 0
    states, made = (CAPTURED_TEXTS * facts.hidden_size * size for size in (b, each))
    work = CAPTURED_TEXTS * _fused_layers(facts) * b
    return _upwards(work) + SMALL_CAPTURED, _upwards(states), _upwards(made) + SMALL_CAPTURED


def gaps(facts: ModelFacts, dtype: str, device: DeviceView, *, step_tokens: int) -> int:
    """Bytes that lie unused between tensors where steps of this model and of others share one piece of memory: a text
    that pauses leaves its hidden states amid it, and tensors that follow each other are of many sizes. The queries
    twice, of up to 1,280 tokens, and half of a text's hidden states: by simulation of torch's allocator (best fit) over
    random orders of such steps, in the shapes of Qwen3-4B and XLM-RoBERTa-large. Without it 84 MiB more were held.
    """
    b = _computed(dtype, device)
    if not _captures(device, b) or facts.model_type not in FUSED:
        return 0
    if facts.generates:
        return min(step_tokens, 1280) * 2 * facts.attention_heads * facts.head_dim * b
    return step_tokens * facts.hidden_size * b // 2


def _upwards(size: int) -> int:
    return -(-size // GRANULE) * GRANULE


def _captures(device: DeviceView, b: int) -> bool:
    """Whether our own kernels run there, and steps are captured. Where they lack a compiler, the rest is slower."""
    return device.kind == "cuda" and (device.compute_capability or (8, 0)) >= (8, 0) and b == 2


def _attention(keys: int, b: int, step_tokens: int, context: int, kv_tokens: int) -> int:
    """Workspace of a decoder's attention over its cache, with torch's own kernels (`lodger.runtime.attention.sdpa`).

    They never materialise the T * C scores (measured on a CPU: 2 MiB beyond the output at T = C = 2,048 and 32 heads,
    in float32 and bfloat16, causal, masked and grouped alike). What it takes is the mask of a prefill chunk that
    continues a sequence, 1 + b bytes for each of T * C, and one layer's keys and values gathered from their blocks: at
    most all of the cache, padded to at most twice its length.
    """
    return step_tokens * context * (1 + b) + 2 * (2 * kv_tokens * keys * b)


def _logits(facts: ModelFacts, b: int, rows: int) -> int:
    """Rows of logits in b bytes, and what sampling without our kernels makes of SAMPLED_ROWS of them at a time: in
    float32 a copy, and of the rows that are penalised how often each token was there (twice) and four steps of the
    penalties (4 bytes each). 139 MiB for 32 of Qwen3's, 140 measured (H100, torch 2.11)."""
    return facts.vocab_size * (rows * b + SAMPLED_ROWS * 7 * 4)


def process(device: DeviceView, vocabularies: tuple[int, ...], *, dense: bool = True) -> int:
    """Bytes of the worker itself on `device`: on a GPU its context and cuBLAS; on a CPU libraries, and the tokenizer of
    each model. `dense`: a chat model has weights in a half precision.

    The whole plan was checked against a worker with random weights in SmolLM2-135M's and MiniLM's shapes in float32,
    through a prompt of 8,000 tokens and 64 streams at once: 1.81 GiB planned, 1.66 GiB resident at most.
    """
    if device.kind == "cuda":
        kernels = KERNELS + (DENSE_KERNELS if dense else 0)
        return CUDA_CONTEXT + kernels + workspaces(device.compute_capability) + SEGMENTS
    return WORKER_CPU + sum(size * TOKENIZER_ENTRY for size in vocabularies)
