"""OpenAI's Responses API, without memory: every request holds the whole conversation."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from lodger.api import limits
from lodger.api.bodies import Body, json_response
from lodger.api.context import ServiceDep
from lodger.api.disconnect import unless_gone
from lodger.api.forms import form_of
from lodger.api.generation import check_tools, collect, generate
from lodger.api.responses.events import ResponseEvents
from lodger.api.responses.items import conversation_of
from lodger.api.responses.output import new_id, whole
from lodger.api.sampling_body import TokenCount
from lodger.api.sse import open_stream
from lodger.api.tool_choice import tools_of
from lodger.errors import Unsupported
from lodger.tasks import ChatTask, SamplingParams, StopRules

router = APIRouter(tags=["openai"])

_KEPT_NOWHERE = ("previous_response_id", "conversation", "background", "prompt")
_LOGPROBS = "message.output_text.logprobs"


class TextConfig(Body):
    format: Any = None
    verbosity: str | None = None


class Reasoning(Body):
    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(Body):
    """POST /v1/responses."""

    model: str = Field(min_length=1)
    input: Any
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: TokenCount = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=limits.ALTERNATIVES)
    metadata: dict[str, Any] | None = None
    user: str | None = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None

    def task(self) -> ChatTask:
        """
        Raises:
            Unsupported: it wants something from an earlier request, or for a later one.
        """
        for name in _KEPT_NOWHERE:
            if getattr(self, name) not in (None, False, ""):
                raise Unsupported(
                    f"{name} is not served: Lodger keeps nothing between requests.",
                    hint="Send the whole conversation as input.",
                    param=name,
                )
        tools = tools_of(self.tools, self.tool_choice)
        wants_logprobs = bool(self.top_logprobs) or _LOGPROBS in (self.include or ())
        return ChatTask(
            model=self.model,
            messages=conversation_of(self.input, self.instructions),
            tools=tools.tools,
            tool_choice=tools.choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            template_args={"enable_thinking": False} if self.reasoning and self.reasoning.effort == "none" else {},
            sampling=SamplingParams(temperature=self.temperature, top_p=self.top_p),
            stopping=StopRules(max_tokens=self.max_output_tokens),
            constraint=form_of(self.text.format if self.text else None, {}, "text"),
            logprobs=(self.top_logprobs or 0) if wants_logprobs else None,
        )

    def head(self) -> dict[str, Any]:
        """The response as far as the request makes it known."""
        reasoning = self.reasoning or Reasoning()
        text = self.text or TextConfig()
        return {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": reasoning.effort, "summary": None},
            "store": False,
            "temperature": self.temperature,
            "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": self.user,
        }


@router.post("/v1/responses", summary="Answer a conversation, in items")
async def responses(body: ResponsesRequest, request: Request, service: ServiceDep) -> Response:
    task = body.task()
    check_tools(service, task)
    deltas = generate(service, [task])
    if body.stream:
        return await open_stream(request, deltas, ResponseEvents(body.head()))
    (choice,), usage = await unless_gone(request, collect(deltas))
    return json_response(whole(body.head(), choice, usage))
