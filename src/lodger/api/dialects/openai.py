"""OpenAI's API: chat completions and completions.

``/v1/models`` is OpenAI's and Xinference's at once; the file `xinference` has it, and `embeddings` the embeddings.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, PlainValidator, WithJsonSchema
from starlette.responses import Response

from lodger.api import limits
from lodger.api.bodies import Body, Stops, TextsOrTokens, at_most, json_response
from lodger.api.chunks import ChatChunks, TextChunks, chat_choice, count, text_choice
from lodger.api.context import ServiceDep
from lodger.api.conversation import messages_of
from lodger.api.disconnect import unless_gone
from lodger.api.generation import collect, generate
from lodger.api.sse import open_stream
from lodger.errors import MalformedBody, Unsupported
from lodger.tasks import ChatTask, CompletionTask, SamplingParams, StopRules

router = APIRouter(tags=["openai"])

Messages = Annotated[
    tuple[dict[str, Any], ...],
    PlainValidator(messages_of),
    WithJsonSchema({"type": "array", "items": {"type": "object", "required": ["role"]}}),
]
_RESERVED = {"messages", "tools", "chat_template", "add_generation_prompt"}  # names that are not a caller's to set


class StreamOptions(Body):
    include_usage: bool | None = None


class Generation(Body):
    """What chat completions and completions have in common. Unset sampling means the model's own defaults."""

    model: str = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=limits.CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    stop: Stops = ()
    ignore_eos: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    # Asked for by name because a silent "no" would be a wrong answer; see `refuse_unserved`.
    logprobs: Any = None
    top_logprobs: Any = None
    logit_bias: Any = None
    stop_token_ids: Any = None
    lora_name: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),  # -1 means off, as 0 does
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
        )

    def stopping(self, max_tokens: int | None) -> StopRules:
        return StopRules(max_tokens=max_tokens, stop=self.stop, ignore_eos=bool(self.ignore_eos))

    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)  # wins over max_tokens
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    enable_thinking: bool | None = None
    thinking: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: Any = None
    functions: Any = None

    def task(self) -> ChatTask:
        refuse_unserved(self, "functions")
        if _kind_of(self.response_format) not in ("text", None):
            raise Unsupported("response_format other than text is not served.", param="response_format")
        return ChatTask(
            model=self.model,
            messages=self.messages,
            tools=self._tools(),
            template_args=self._template_args(),
            sampling=self.sampling(),
            stopping=self.stopping(self.max_completion_tokens or self.max_tokens),
            n=self.n or 1,
        )

    def _tools(self) -> tuple[dict[str, Any], ...]:
        if self.tool_choice not in (None, "auto", "none"):
            raise Unsupported("tool_choice other than auto or none is not served.", param="tool_choice")
        return () if self.tool_choice == "none" else tuple(self.tools or ())

    def _template_args(self) -> dict[str, Any]:
        """RAGFlow sends enable_thinking, vLLM's clients chat_template_kwargs, Dify thinking beside either."""
        given = self.chat_template_kwargs or {}
        if taken := sorted(_RESERVED & given.keys()):
            raise MalformedBody(f"chat_template_kwargs may not set {taken[0]}.", param="chat_template_kwargs")
        thinking = self.enable_thinking
        if thinking is None and self.thinking is not None:
            thinking = _kind_of(self.thinking) == "enabled" or self.thinking is True
        return {"enable_thinking": thinking, **given} if thinking is not None else given


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: TextsOrTokens
    echo: Any = None
    suffix: Any = None
    best_of: Any = None

    def tasks(self) -> list[CompletionTask]:
        refuse_unserved(self, "echo", "suffix")
        if self.best_of not in (None, 1, self.n or 1):
            raise Unsupported("best_of other than n is not served.", param="best_of")
        at_most(len(self.prompt), limits.PROMPTS, "prompt")
        sampling, stopping = self.sampling(), self.stopping(self.max_tokens)
        return [
            CompletionTask(model=self.model, prompt=prompt, sampling=sampling, stopping=stopping, n=self.n or 1)
            for prompt in self.prompt
        ]


_UNSERVED = (
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "stop_token_ids",
    "lora_name",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)


def refuse_unserved(body: Generation, *more: str) -> None:
    """
    Raises:
        Unsupported: a field that Lodger does not serve asks for more than nothing.
    """
    for name in (*_UNSERVED, *more):
        if getattr(body, name) not in (None, False, 0, "", [], {}):
            raise Unsupported(f"{name} is not served.", hint="Leave it out.", param=name)


def _kind_of(value: Any) -> Any:
    """The `type` of a tagged object such as response_format, which some clients send bare."""
    return value.get("type") if isinstance(value, dict) else value


@router.post("/v1/chat/completions", summary="Answer a conversation")
async def chat_completions(body: ChatRequest, request: Request, service: ServiceDep) -> Response:
    deltas = generate(service, [body.task()])
    head = _head("chatcmpl", body.model)
    if body.stream:
        return await open_stream(request, deltas, ChatChunks(head, body.include_usage()))
    choices, usage = await unless_gone(request, collect(deltas))
    head["object"] = "chat.completion"
    return json_response(
        head | {"choices": list(map(chat_choice, range(len(choices)), choices)), "usage": count(usage)}
    )


@router.post("/v1/completions", summary="Continue a prompt")
async def completions(body: CompletionRequest, request: Request, service: ServiceDep) -> Response:
    deltas = generate(service, body.tasks())
    head = _head("cmpl", body.model) | {"object": "text_completion"}
    if body.stream:
        return await open_stream(request, deltas, TextChunks(head, body.include_usage()))
    choices, usage = await unless_gone(request, collect(deltas))
    listed = [text_choice(index, choice.text, choice.finish_reason) for index, choice in enumerate(choices)]
    return json_response(head | {"choices": listed, "usage": count(usage)})


def _head(prefix: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": "", "created": int(time.time()), "model": model}
