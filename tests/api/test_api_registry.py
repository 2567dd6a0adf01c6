"""Xinference's registry, as its client and its command line ask for it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from api_server import Served
from xinference_client import RESTfulClient

from lodger.api.dialects.registry import ENGINES
from lodger.engines import engine_name

MINE = json.dumps({"model_name": "mine", "model_specs": [{"model_uri": "/models/mine", "cache_status": True}]})


@pytest.fixture
def client(served: Served) -> Iterator[RESTfulClient]:
    client = RESTfulClient(served.url)
    yield client
    client.close()


def test_names_are_listed_described_registered_and_forgotten(client: RESTfulClient, served: Served) -> None:
    assert client.list_model_registrations("embedding") == [{"model_name": "bge-m3", "is_builtin": True}]
    client.register_model("embedding", MINE, persist=True)
    assert served.service.persisted == {"mine"}
    assert client.list_model_registrations("embedding")[1] == {"model_name": "mine", "is_builtin": False}
    assert client.get_model_registration("embedding", "mine") == json.loads(MINE)
    detailed = served.ask("GET", "/v1/model_registrations/embedding?detailed=true").json
    assert detailed[0]["dimensions"] == 1024
    assert detailed[1] == json.loads(MINE) | {"is_builtin": False}
    client.unregister_model("embedding", "mine")
    with pytest.raises(RuntimeError, match="Model mine not found"):
        client.unregister_model("embedding", "mine")


def test_unknown_types_and_names_are_said(client: RESTfulClient) -> None:
    with pytest.raises(RuntimeError, match="Unsupported model type: nosuch"):
        client.list_model_registrations("nosuch")
    with pytest.raises(RuntimeError, match="Unsupported model type: image"):
        client.register_model("image", MINE, persist=False)
    with pytest.raises(RuntimeError, match="Model x not found"):
        client.get_model_registration("LLM", "x")


@pytest.mark.parametrize("model", ["[" * 100 + "]" * 100, '{"a": NaN}', "{", '{"a": 99999999999999999999}'])
def test_the_json_inside_the_json_has_the_limits_of_every_body(served: Served, model: str) -> None:
    answer = served.ask("POST", "/v1/model_registrations/LLM", {"model": model, "persist": False, "worker_ip": None})
    assert (answer.status, answer.json["error"]["code"]) == (400, "malformed_body")
    assert served.service.registered == []


def test_engines_are_what_a_launch_takes(client: RESTfulClient, served: Served) -> None:
    for kind, names in ENGINES.items():
        assert {engine_name(name) for name in names} == {"native"}, kind
    chat = client.query_engine_by_model_name("Qwen3-Instruct")
    assert tuple(chat) == ENGINES["chat"]
    assert [row["quantizations"] for row in chat["vllm"]] == [["none", "int8"], ["Int4"]]
    assert [row["model_size_in_billions"] for row in chat["vllm"]] == [4, 8]
    assert served.ask("GET", "/v1/engines/Qwen3-Instruct").json == chat
    embedding = client.query_engine_by_model_name("bge-m3", model_type="embedding")
    assert embedding["sentence_transformers"] == [
        {"model_name": "bge-m3", "model_format": "pytorch", "quantization": "none"}
    ]
    assert client.query_engine_by_model_name("nosuch") == {}


def test_families_and_what_vllm_serves(client: RESTfulClient, served: Served) -> None:
    families = served.ask("GET", "/v1/models/families").json
    assert families["chat"] == families["tools"] == ["Qwen3-Instruct"]
    assert families["generate"] == families["vision"] == []
    assert client.vllm_models() == {"chat": ["Qwen3ForCausalLM"], "generate": []}
    assert served.ask("GET", "/v1/models/prompts").json == {}


def test_token_ids_are_spelt_in_the_shape_they_were_sent(client: RESTfulClient) -> None:
    model = client.get_model("bge-m3-local")
    assert model.convert_ids_to_tokens([101, 7592]) == ["101", "7592"]
    assert model.convert_ids_to_tokens([[101], [7592, 102], []]) == [["101"], ["7592", "102"], []]
    assert model.convert_ids_to_tokens([]) == []
    lexical = model.create_embedding("one two", return_sparse=True)["data"][0]["embedding"]
    assert model.convert_ids_to_tokens(list(lexical)) == list(lexical)
    with pytest.raises(RuntimeError, match="list of token ids"):
        model.convert_ids_to_tokens("101")


@pytest.mark.parametrize(
    "given", [[-1], [2**31], [1.5], [True], ["x"], ["٣"], ["9" * 30], [[1], 2], [[[1]]], {"1": 2}, None]
)
def test_what_are_no_token_ids_is_said(served: Served, given: object) -> None:
    answer = served.ask("POST", "/v1/convert_ids_to_tokens", {"model": "bge-m3-local", "input": given})
    assert (answer.status, answer.json["error"]["param"]) == (400, "input")


def test_what_is_on_the_machine_is_listed_and_never_deleted(client: RESTfulClient) -> None:
    cached = client.list_cached_models()
    assert [(row["model_name"], row["model_type"]) for row in cached] == [
        ("Qwen3-Instruct", "LLM"),
        ("bge-m3", "embedding"),
    ]
    assert [row["model_name"] for row in client.list_cached_models("bge-m3")] == ["bge-m3"]
    assert client.list_deletable_models("bge-m3")["paths"] == []
    with pytest.raises(RuntimeError, match="Lodger deletes no models"):
        client.confirm_and_remove_model("bge-m3")
