"""litellm, through its providers for Xinference, OpenAI's likes and Cohere's rerank."""

from __future__ import annotations

import json
import sys

import litellm

CASE = json.loads(sys.argv[1])
BASE = CASE["url"] + "/v1"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
DOCUMENTS = ["Bananas are yellow.", "Beijing is the capital of China."]
litellm.num_retries = 0
litellm.telemetry = False


def chat() -> None:
    for provider in ("openai", "xinference", "hosted_vllm"):
        answer = litellm.completion(
            model=f"{provider}/{CASE['chat']}", messages=QUESTION, api_base=BASE, api_key="x", temperature=0
        )
        assert "Paris" in answer.choices[0].message.content, provider


def stream() -> None:
    chunks = litellm.completion(
        model=f"openai/{CASE['chat']}", messages=QUESTION, api_base=BASE, api_key="x", temperature=0, stream=True
    )
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def embedding() -> None:
    for provider in ("openai", "xinference"):
        answer = litellm.embedding(
            model=f"{provider}/{CASE['embedding']}", input=["Hello", "Bye"], api_base=BASE, api_key="x"
        )
        assert [row["index"] for row in answer.data] == [0, 1]
        assert abs(sum(x * x for x in answer.data[0]["embedding"]) - 1) < 1e-3


def rerank() -> None:
    for provider, base in (("cohere", CASE["url"]), ("hosted_vllm", BASE), ("jina_ai", BASE)):
        answer = litellm.rerank(
            model=f"{provider}/{CASE['rerank']}", query="What is the capital of China?", documents=DOCUMENTS,
            api_base=base if provider != "jina_ai" else base + "/rerank", api_key="x", top_n=2,
        )  # fmt: skip
        assert answer.results[0]["index"] == 1, provider


PARTS = (chat, stream, embedding, rerank)
