"""xinference-client: launch, list, describe, ask, terminate."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from run import refusal
from xinference_client import RESTfulClient

CASE = json.loads(sys.argv[1])
client = RESTfulClient(CASE["url"])
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
DOCUMENTS = ["Bananas are yellow.", "Beijing is the capital of China."]


def models() -> None:
    listed = client.list_models()
    assert {CASE["chat"], CASE["embedding"], CASE["rerank"]} <= set(listed)
    assert client.describe_model(CASE["embedding"])["dimensions"] == 384


def chat() -> None:
    model = client.get_model(CASE["chat"])
    answer = model.chat(QUESTION, generate_config={"temperature": 0, "max_tokens": 64})
    assert "Paris" in answer["choices"][0]["message"]["content"]
    pieces = model.chat(QUESTION, generate_config={"temperature": 0, "max_tokens": 64, "stream": True})
    assert "Paris" in "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces if piece["choices"])


def generate() -> None:
    answer = client.get_model(CASE["chat"]).generate("The capital of France is", {"max_tokens": 5})
    assert answer["choices"][0]["text"]


def embedding() -> None:
    model = client.get_model(CASE["embedding"])
    answer = model.create_embedding(["Hello", "Bye"])
    assert [row["index"] for row in answer["data"]] == [0, 1]
    assert answer["usage"]["total_tokens"] > 0
    words = model.convert_ids_to_tokens([[101, 7592, 102]])
    assert words == [["[CLS]", "hello", "[SEP]"]]


def rerank() -> None:
    model = client.get_model(CASE["rerank"])
    answer = model.rerank(DOCUMENTS, "What is the capital of China?", return_documents=True, return_len=True)
    assert [row["index"] for row in answer["results"]] == [1, 0]
    assert answer["results"][0]["document"]["text"] == DOCUMENTS[1]
    assert answer["meta"]["tokens"]["input_tokens"] > 0


def launch() -> None:
    uid = client.launch_model("bge-m3", model_type="embedding", model_uid="launched", model_path=CASE["folder"])
    assert uid == "launched"
    assert client.describe_model(uid)["model_type"] == "embedding"
    if not version("xinference-client").startswith("1."):
        assert client.get_instance_info("bge-m3", uid)[0]["status"] == "READY"
    client.terminate_model(uid)
    assert uid not in client.list_models()


def registrations() -> None:
    assert any(row["model_name"] == "bge-m3" for row in client.list_model_registrations("embedding"))


def errors() -> None:
    for call in (client.get_model, client.terminate_model):
        assert "nosuch" in str(refusal(lambda: call("nosuch"), RuntimeError))  # noqa: B023


PARTS = (models, chat, generate, embedding, rerank, launch, registrations, errors)
