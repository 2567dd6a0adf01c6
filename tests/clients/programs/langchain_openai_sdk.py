"""langchain-openai: chat, tools, structured answers, embeddings."""

from __future__ import annotations

import json
import sys
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

CASE = json.loads(sys.argv[1])
BASE = {"base_url": CASE["url"] + "/v1", "api_key": "x", "max_retries": 0}


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


def chat() -> None:
    model = ChatOpenAI(model=CASE["chat"], temperature=0, stream_usage=True, **BASE)
    assert "Paris" in model.invoke("What is the capital of France?").content
    pieces = list(model.stream("What is the capital of France?"))
    assert "Paris" in "".join(piece.content for piece in pieces)
    assert any(piece.usage_metadata for piece in pieces)


def tools() -> None:
    model = ChatOpenAI(model=CASE["tools"], max_tokens=1000, temperature=0, **BASE)
    model = model.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False)
    answer = model.invoke("Weather in Paris?")
    assert answer.tool_calls[0]["name"] == "weather"
    assert answer.tool_calls[0]["args"]["city"] in ("Paris", "Rome")


def structured() -> None:
    form = {
        "title": "Size",
        "type": "object",
        "properties": {"size": {"enum": ["big", "small"]}},
        "required": ["size"],
        "additionalProperties": False,
    }
    model = ChatOpenAI(model=CASE["chat"], max_tokens=200, temperature=0, **BASE).with_structured_output(
        form, method="json_schema"
    )
    assert model.invoke("How big is an ant? Answer in JSON.")["size"] in ("big", "small")


def embeddings() -> None:
    model = OpenAIEmbeddings(model=CASE["embedding"], check_embedding_ctx_length=False, **BASE)
    one, other = model.embed_documents(["Hello", "Bananas are yellow."])
    assert len(one) == 384
    assert abs(sum(x * x for x in one) - 1) < 1e-3
    again = model.embed_query("Hello")
    assert all(abs(a - b) < 1e-4 for a, b in zip(one, again, strict=True))
    assert one != other


PARTS = (chat, tools, structured, embeddings)
