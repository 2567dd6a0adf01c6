"""LlamaIndex's three packages for Xinference."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import xinference_client
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.xinference import XinferenceEmbedding
from llama_index.llms.xinference import Xinference
from llama_index.postprocessor.xinference_rerank import XinferenceRerank

CASE = json.loads(sys.argv[1])
# Its package for chat imports the whole server only for this class, which is the same one in clients before 0.14.
sys.modules["xinference"] = ModuleType("xinference")
sys.modules["xinference.client"] = xinference_client


def llm() -> None:
    model = Xinference(model_uid=CASE["chat"], endpoint=CASE["url"], temperature=0.0, max_tokens=64)
    assert model.metadata.context_window > 0
    assert "Paris" in model.complete("What is the capital of France?").text
    pieces = list(model.stream_complete("What is the capital of France?"))
    assert "Paris" in pieces[-1].text
    answer = model.chat([ChatMessage(role="user", content="What is the capital of France?")])
    assert "Paris" in (answer.message.content or "")


def embedding() -> None:
    model = XinferenceEmbedding(model_uid=CASE["embedding"], base_url=CASE["url"])
    assert len(model.get_query_embedding("Hello")) == 384
    one, other = model.get_text_embedding_batch(["Hello", "Bananas are yellow."])
    assert one != other


def rerank() -> None:
    model = XinferenceRerank(model=CASE["rerank"], base_url=CASE["url"], top_n=1)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("Bananas.", "Beijing is the capital of China.")]
    [best] = model.postprocess_nodes(nodes, QueryBundle("What is the capital of China?"))
    assert best.node.get_content() == "Beijing is the capital of China."


PARTS = (llm, embedding, rerank)
