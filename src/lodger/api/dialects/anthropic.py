"""Anthropic's Messages API, which coding agents speak."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from lodger.api.anthropic.answers import MessageEvents, head_of, whole
from lodger.api.anthropic.blocks import conversation_of
from lodger.api.bodies import Body, Stops, json_response
from lodger.api.context import ServiceDep
from lodger.api.disconnect import unless_gone
from lodger.api.forms import form_of
from lodger.api.generation import check_tools, collect, generate
from lodger.api.sampling_body import TokenCount
from lodger.api.sse import open_stream
from lodger.api.tool_choice import Tools, tools_of
from lodger.errors import Unsupported
from lodger.tasks import ChatTask, SamplingParams, StopRules

router = APIRouter(tags=["anthropic"])


class OutputConfig(Body):
    format: Any = None


class MessagesRequest(Body):
    """POST /v1/messages. Without `max_tokens` an answer ends where it or the context does."""

    model: str = Field(min_length=1)
    messages: Any
    max_tokens: TokenCount = None
    system: Any = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    output_format: Any = None
    stop_sequences: Stops = ()
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    stream: bool | None = None

    def task(self) -> ChatTask:
        choice = self.tool_choice or {}
        tools = self._tools(choice)
        form = self.output_config.format if self.output_config else self.output_format
        return ChatTask(
            model=self.model,
            messages=conversation_of(self.system, self.messages),
            tools=tools.tools,
            tool_choice=tools.choice,
            parallel_tool_calls=choice.get("disable_parallel_tool_use") is not True,
            template_args={"enable_thinking": self._thinks()},
            sampling=SamplingParams(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=None if self.top_k is None else max(self.top_k, 0),
            ),
            stopping=StopRules(max_tokens=self.max_tokens, stop=self.stop_sequences),
            constraint=form_of(form, {}, "output_config"),
        )

    def _thinks(self) -> bool:
        """Only who asks for it, as at Anthropic's."""
        return self.thinking is not None and self.thinking.get("type") != "disabled"

    def _tools(self, choice: dict[str, Any]) -> Tools:
        functions = [_function(tool, place) for place, tool in enumerate(self.tools or ())]
        named = choice.get("type") == "tool"
        return tools_of(functions, {"type": "function", "name": choice.get("name")} if named else choice.get("type"))


@router.post("/v1/messages", summary="Answer a conversation, in blocks")
async def messages(body: MessagesRequest, request: Request, service: ServiceDep) -> Response:
    task = body.task()
    check_tools(service, task)
    deltas = generate(service, [task])
    if body.stream:
        return await open_stream(request, deltas, MessageEvents(head_of(body.model)))
    (choice,), usage = await unless_gone(request, collect(deltas))
    return json_response(whole(head_of(body.model), choice, usage))


@router.post("/v1/messages/count_tokens", summary="Count the tokens of a conversation")
async def count_tokens(body: MessagesRequest, request: Request, service: ServiceDep) -> Response:
    """The model reads the conversation for it and answers one token, so the number is the one that will be billed to
    the context; the request that follows finds the conversation in the prefix cache."""
    task = msgspec.structs.replace(body.task(), stopping=StopRules(max_tokens=1), tool_choice="auto", constraint=None)
    check_tools(service, task)
    async with aclosing(generate(service, [task])) as deltas:
        _, usage = await unless_gone(request, collect(deltas))
    return json_response({"input_tokens": usage.prompt_tokens})


def _function(tool: dict[str, Any], place: int) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind not in ("custom", "function"):
        raise Unsupported(
            f"tools.{place} is of type {str(kind)[:50]!r}, which Anthropic's own servers run.",
            hint="Leave it out.",
            param="tools",
        )
    known = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema")}
    return {"type": "function", "function": known}
