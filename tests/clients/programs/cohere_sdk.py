"""The cohere package's rerank, of both its generations; RAGFlow's provider VLLM sends it too."""

from __future__ import annotations

import json
import sys

import cohere

CASE = json.loads(sys.argv[1])
DOCUMENTS = ["Bananas are yellow.", "Beijing is the capital of China.", "The weather is fine."]
ASKED = {"model": CASE["rerank"], "query": "What is the capital of China?", "documents": DOCUMENTS}


def second() -> None:
    client = cohere.ClientV2(api_key="x", base_url=CASE["url"])
    results = client.rerank(**ASKED, top_n=2).results
    assert [result.index for result in results][0] == 1
    assert len(results) == 2
    assert results[0].relevance_score >= results[1].relevance_score


def first() -> None:
    for base in (CASE["url"], CASE["url"] + "/v1"):  # the second makes /v1/v1/rerank of it
        client = cohere.Client(api_key="x", base_url=base)
        answer = client.rerank(**ASKED, return_documents=True)
        assert answer.results[0].index == 1
        assert answer.results[0].document.text == DOCUMENTS[1]


PARTS = (second, first)
