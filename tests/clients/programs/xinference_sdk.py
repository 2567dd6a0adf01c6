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
    spec = {"model_format": "pytorch", "quantization": "none", "model_uri": f"file://{CASE['folder']}"}
    client.register_model("embedding", json.dumps({"model_name": "mine", "model_specs": [spec]}), persist=False)
    assert client.get_model_registration("embedding", "mine")["model_specs"] == [spec]
    assert "sentence_transformers" in client.query_engine_by_model_name("mine", model_type="embedding")
    uid = client.launch_model("mine", model_type="embedding", model_uid="by-name")
    assert client.describe_model(uid)["model_name"] == "mine"
    client.terminate_model(uid)
    client.unregister_model("embedding", "mine")


def aborts() -> None:
    endless = {"stream": True, "ignore_eos": True, "request_id": "mine", "max_tokens": 2000}
    pieces = iter(client.get_model(CASE["chat"]).chat(QUESTION, generate_config=endless))
    next(pieces)
    assert client.abort_request(CASE["chat"], "mine") == {"msg": "DONE"}
    said = ""
    try:
        list(pieces)
    except Exception as error:
        said = str(error)
    assert "aborted" in said
    assert client.abort_request(CASE["chat"], "nothing", 0) == {"msg": "NOT_FOUND"}


def errors() -> None:
    for call in (client.get_model, client.terminate_model):
        assert "nosuch" in str(refusal(lambda: call("nosuch"), RuntimeError))  # noqa: B023


PARTS = (models, chat, generate, embedding, rerank, launch, registrations, aborts, errors)
