from __future__ import annotations

import openai
import pytest
from api_server import Served
from openai import OpenAI


@pytest.fixture
def client(served: Served):
    with OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
        yield client


SAID = [{"role": "user", "content": "请用中文介绍一下你自己"}]


def test_the_openai_client_gets_a_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="qwen3-4b-chat-local", messages=SAID)
    assert answer.choices[0].message.content == "请用中文介绍一下你自己"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens == 11
    assert answer.usage.total_tokens == 22


def test_the_openai_client_gets_a_stream(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="qwen3-4b-chat-local", messages=SAID, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "请用中文介绍一下你自己"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_openai_client_gets_its_errors(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nosuch"):
        client.chat.completions.create(model="nosuch", messages=SAID)
    with pytest.raises(openai.BadRequestError, match="embedding"):
        client.chat.completions.create(model="bge-m3-local", messages=SAID)
