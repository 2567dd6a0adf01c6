"""The nouns: what is asked of a model and what it answers.

API dialects parse foreign JSON into these; engines know only these. They are frozen values, and they are also what
crosses the socket between the gateway and a worker (msgpack).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Kind = Literal["chat", "embedding", "rerank"]
FinishReason = Literal["stop", "length", "tool_calls"]
EmbedOutput = Literal["dense", "sparse", "colbert"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. ``None`` means what the model's generation_config.json says, else off."""

    temperature: float | None = None  # 0 is greedy
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = {}  # by token id, added to the logits


class StopRules(msgspec.Struct, frozen=True, kw_only=True):
    """When a generation ends. Without `max_tokens` it ends at end of text or at the end of the context."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """What the text of an answer must match."""

    kind: Literal["json", "regex", "lark"]
    text: str  # a JSON schema (as JSON text), a regular expression, or a grammar as llguidance reads it


class ChatTask(msgspec.Struct, frozen=True, kw_only=True, tag="chat"):
    """Answer a conversation. The model's own chat template turns `messages` into a prompt."""

    model: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Literal["auto", "required"] = "auto"  # "required": at least one call
    parallel_tool_calls: bool = True
    separate_reasoning: bool = True  # what stands between the model's marks of thought is not part of the text
    template_args: dict[str, Any] = {}  # more names for the template, such as enable_thinking
    sampling: SamplingParams = SamplingParams()
    stopping: StopRules = StopRules()
    constraint: Constraint | None = None
    logprobs: int | None = None  # how many alternatives of each token are told; 0 for the token alone
    n: int = 1


class CompletionTask(msgspec.Struct, frozen=True, kw_only=True, tag="completion"):
    """Continue a prompt, given as text or as the model's own token ids."""

    model: str
    prompt: str | tuple[int, ...]
    echo: bool = False  # the text begins with the prompt's
    sampling: SamplingParams = SamplingParams()
    stopping: StopRules = StopRules()
    constraint: Constraint | None = None
    logprobs: int | None = None
    n: int = 1


class EmbedTask(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """Embed texts, or sequences of the model's own token ids. Over-long inputs are cut and counted."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None  # of the dense vectors
    outputs: tuple[EmbedOutput, ...] = ("dense",)
    prompt_name: str | None = None  # which of the model's prompts stands before each text; "" for none


class RerankTask(msgspec.Struct, frozen=True, kw_only=True, tag="rerank"):
    """Score each document against the query. Over-long documents are cut and counted."""

    model: str
    query: str
    documents: tuple[str, ...]
    instruction: str | None = None  # what counts as an answer, for rerankers that are told ("yes-no")


class TokensTask(msgspec.Struct, frozen=True, kw_only=True):
    """Say how tokens are spelt in the model's vocabulary."""

    model: str
    ids: tuple[tuple[int, ...], ...]


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one request, counted for that request alone."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's, those that the prefix cache held
    reasoning_tokens: int = 0  # of the completion's

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class ToolCall(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A call of a function, whole. `arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str


class Likely(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token that could stand at one place, and the natural logarithm of its probability there."""

    id: int
    text: bytes  # of the token alone, which need not be whole characters
    logprob: float


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The token that was chosen at one place, and the most probable ones there, best first."""

    chosen: Likely
    top: tuple[Likely, ...] = ()


class Delta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One increment of one choice. The last one of the last choice carries `usage` for the whole request."""

    index: int = 0  # which of the n choices
    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    reasoning: str = ""  # thought, which stands before the text
    calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()  # of the tokens made since the delta before
    stopped_by: str | None = None  # the stop string that ended it, which is not part of the text


class SparseVector(msgspec.Struct, frozen=True, kw_only=True):
    """A weight for each of some tokens of the vocabulary, none twice."""

    ids: bytes  # int32, little-endian
    weights: bytes  # float32, little-endian, above 0


class EmbedResult(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors in input order: float32, little-endian, row-major, shape [count, dimensions].

    `sparse` and `colbert` have one entry for each input where they were asked for; one of `colbert` has the shape
    [tokens, colbert_dimensions] in the same form. `vectors` is empty where "dense" was not asked for.
    """

    vectors: bytes
    count: int
    dimensions: int
    sparse: tuple[SparseVector, ...] = ()
    colbert: tuple[bytes, ...] = ()
    colbert_dimensions: int = 0
    usage: Usage
    truncated: int = 0  # how many inputs were cut to the model's limit


class RerankResult(msgspec.Struct, frozen=True, kw_only=True):
    """One score in 0..1 for each document, in the order they were sent, and the raw scores to sort by."""

    scores: tuple[float, ...]
    logits: tuple[float, ...]  # monotonic in `scores` and never saturated: sort by these
    usage: Usage
    truncated: int = 0


GenerateTask = ChatTask | CompletionTask
Task = ChatTask | CompletionTask | EmbedTask | RerankTask
