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
from lodger.api.bodies import TextsOrTokens, at_most, json_response
from lodger.api.chunks import ChatChunks, TextChunks, chat_choice, count, text_choice
from lodger.api.context import ServiceDep
from lodger.api.conversation import messages_of
from lodger.api.disconnect import unless_gone
from lodger.api.generation import check_tools, collect, generate
from lodger.api.sampling_body import SamplingBody, TokenCount, refuse_unserved
from lodger.api.sse import open_stream
from lodger.api.tool_choice import old_functions, tools_of
from lodger.errors import InvalidRequest, MalformedBody, Unsupported
from lodger.tasks import ChatTask, CompletionTask

router = APIRouter(tags=["openai"])

Messages = Annotated[
    tuple[dict[str, Any], ...],
    PlainValidator(messages_of),
    WithJsonSchema({"type": "array", "items": {"type": "object", "required": ["role"]}}),
]
_RESERVED = {"messages", "tools", "chat_template", "add_generation_prompt"}  # names that are not a caller's to set


class ChatRequest(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: TokenCount = None  # wins over max_tokens
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = Field(None, description="OpenAI's older name of tools")
    function_call: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=limits.ALTERNATIVES)
    enable_thinking: bool | None = None
    thinking: Any = None
    reasoning_effort: str | None = None
    separate_reasoning: bool | None = Field(None, description="False: thoughts stay in `content`, with their marks")
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def old_calls(self) -> bool:
        """Whether the caller knows functions and not yet tools."""
        return bool(self.functions) and not self.tools

    def task(self) -> ChatTask:
        refuse_unserved(self, "lora_name")
        given = old_functions(self.functions, self.function_call) if self.old_calls else (self.tools, self.tool_choice)
        tools = tools_of(*given)
        return ChatTask(
            model=self.model,
            messages=self.messages,
            tools=tools.tools,
            tool_choice=tools.choice,
            parallel_tool_calls=self.parallel_tool_calls is not False and not self.old_calls,
            separate_reasoning=self.separate_reasoning is not False,
            template_args=self._template_args(),
            sampling=self.sampling(),
            stopping=self.stopping(self.max_completion_tokens or self.max_tokens),
            constraint=self.constraint(),
            logprobs=self._logprobs(),
            n=self.n or 1,
        )

    def _logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def _template_args(self) -> dict[str, Any]:
        """RAGFlow sends enable_thinking, vLLM's clients chat_template_kwargs, Dify thinking beside either."""
        given = self.chat_template_kwargs or {}
        if taken := sorted(_RESERVED & given.keys()):
            raise MalformedBody(f"chat_template_kwargs may not set {taken[0]}.", param="chat_template_kwargs")
        thinking = self.enable_thinking
        if thinking is None and self.thinking is not None:
            kind = self.thinking.get("type") if isinstance(self.thinking, dict) else self.thinking
            thinking = kind == "enabled" or kind is True
        if thinking is None and self.reasoning_effort == "none":
            thinking = False
        return {"enable_thinking": thinking, **given} if thinking is not None else given


class CompletionRequest(SamplingBody):
    """POST /v1/completions."""

    prompt: TextsOrTokens
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=limits.ALTERNATIVES)
    suffix: Any = None
    best_of: Any = None

    def tasks(self) -> list[CompletionTask]:
        refuse_unserved(self, "suffix", "lora_name")
        if self.best_of not in (None, 1, self.n or 1):
            raise Unsupported("best_of other than n is not served.", param="best_of")
        if self.echo and self.logprobs is not None:
            raise Unsupported("echo with logprobs is not served: a prompt's tokens have none here.", param="echo")
        at_most(len(self.prompt), limits.PROMPTS, "prompt")
        sampling, stopping, constraint = self.sampling(), self.stopping(self.max_tokens), self.constraint()
        return [
            CompletionTask(
                model=self.model,
                prompt=prompt,
                echo=bool(self.echo),
                sampling=sampling,
                stopping=stopping,
                constraint=constraint,
                logprobs=self.logprobs,
                n=self.n or 1,
            )
            for prompt in self.prompt
        ]


@router.post("/v1/chat/completions", summary="Answer a conversation")
async def chat_completions(body: ChatRequest, request: Request, service: ServiceDep) -> Response:
    task = body.task()
    check_tools(service, task)
    deltas = generate(service, [task])
    head = _head("chatcmpl", body.model)
    if body.stream:
        return await open_stream(request, deltas, ChatChunks(head, body.include_usage(), old_calls=body.old_calls))
    choices, usage = await unless_gone(request, collect(deltas))
    listed = [chat_choice(index, choice, old_calls=body.old_calls) for index, choice in enumerate(choices)]
    return json_response(head | {"object": "chat.completion", "choices": listed, "usage": count(usage)})


@router.post("/v1/completions", summary="Continue a prompt")
async def completions(body: CompletionRequest, request: Request, service: ServiceDep) -> Response:
    deltas = generate(service, body.tasks())
    head = _head("cmpl", body.model) | {"object": "text_completion"}
    if body.stream:
        return await open_stream(request, deltas, TextChunks(head, body.include_usage()))
    choices, usage = await unless_gone(request, collect(deltas))
    listed = [text_choice(index, choice) for index, choice in enumerate(choices)]
    return json_response(head | {"choices": listed, "usage": count(usage)})


def _head(prefix: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": "", "created": int(time.time()), "model": model}
