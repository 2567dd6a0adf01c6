"""langchain-xinference: chat, embeddings, rerank."""

from __future__ import annotations

import json
import sys

from langchain_core.documents import Document
from langchain_xinference import ChatXinference, XinferenceEmbeddings, XinferenceRerank

CASE = json.loads(sys.argv[1])


def chat() -> None:
    model = ChatXinference(server_url=CASE["url"], model_uid=CASE["chat"])
    settings = {"temperature": 0, "max_tokens": 64}
    assert "Paris" in model.invoke("What is the capital of France?", generate_config=settings).content
    pieces = list(model.stream("What is the capital of France?", generate_config=settings))
    assert "Paris" in "".join(piece.content for piece in pieces)


def embeddings() -> None:
    model = XinferenceEmbeddings(server_url=CASE["url"], model_uid=CASE["embedding"])
    assert len(model.embed_query("Hello")) == 384
    one, other = model.embed_documents(["Hello", "Bananas are yellow."])
    assert one != other


def rerank() -> None:
    model = XinferenceRerank(server_url=CASE["url"], model_uid=CASE["rerank"])
    documents = [Document(page_content=text) for text in ("Bananas are yellow.", "Beijing is the capital of China.")]
    best = model.compress_documents(documents, "What is the capital of China?")[0]
    assert best.page_content == "Beijing is the capital of China."


PARTS = (chat, embeddings, rerank)
