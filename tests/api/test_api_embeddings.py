"""Embeddings beyond OpenAI's own: sparse and colbert outputs, and what a text is for."""

from __future__ import annotations

import math
import struct
from base64 import b64decode
from typing import Any

import pytest
from api_server import Answer, Served
from openai import OpenAI

from lodger.api import limits
from lodger.api.dialects.embeddings import prompt_for
from lodger.spec import ModelSpec
from lodger.tasks import EmbedTask

M3, PLAIN, TOLD = "bge-m3-local", "plain", "qwen3-embedding"
QWEN = {"query": "Instruct: find it\nQuery:", "document": ""}


def ask(served: Served, model: str = M3, **fields: Any) -> Answer:
    return served.ask("POST", "/v1/embeddings", {"model": model, "input": ["红 红 apple", "apple"], **fields})


def items(served: Served, model: str = M3, **fields: Any) -> list[dict[str, Any]]:
    answer = ask(served, model, **fields)
    assert answer.status == 200, answer.json
    return answer.json["data"]


@pytest.fixture
def served(served: Served) -> Served:
    served.service.add(ModelSpec(uid=PLAIN, name="bge-small", kind="embedding"))
    served.service.add(
        ModelSpec(uid=TOLD, name="Qwen3-Embedding-0.6B", kind="embedding"), prompts=QWEN, matryoshka=True
    )
    return served


def last_task(served: Served) -> EmbedTask:
    task = served.service.tasks[-1]
    assert isinstance(task, EmbedTask)
    return task


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ("dense", {"embedding"}),
        (["sparse"], {"sparse"}),
        (["colbert", "dense"], {"embedding", "colbert"}),
        (["dense", "sparse", "colbert", "sparse"], {"embedding", "sparse", "colbert"}),
        ([], {"embedding"}),
        (None, {"embedding"}),
    ],
)
def test_each_item_has_the_outputs_asked_for_and_no_others(served: Served, asked: object, fields: set[str]) -> None:
    for index, item in enumerate(items(served, **{"return": asked})):
        assert item.keys() - {"object", "index"} == fields
        assert (item["object"], item["index"]) == ("embedding", index)
    outputs = last_task(served).outputs
    assert len(outputs) == len(fields), "each is made once, however often it is asked for"


def test_the_outputs_are_what_the_engine_made(served: Served) -> None:
    first, second = items(served, **{"return": ["dense", "sparse", "colbert"]})
    shares = sorted(first["sparse"].values())
    assert shares == pytest.approx([1 / 3, 2 / 3])
    (apple,) = second["sparse"]
    assert first["sparse"][apple] == pytest.approx(1 / 3), "a token has one id in all texts"
    assert int(apple) < 250_002
    assert [len(first["colbert"]), len(second["colbert"])] == [3, 1], "one vector for each token"
    assert first["colbert"][2] == second["colbert"][0]
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in first["colbert"])
    assert len(first["embedding"]) == len(first["colbert"][0]) == 1024


def test_dimensions_are_of_the_dense_vector(served: Served) -> None:
    served.service.add(ModelSpec(uid="cut", name="bge-m3", kind="embedding"), matryoshka=True)
    item, _ = items(served, model="cut", dimensions=8, **{"return": ["dense", "colbert"]})
    assert (len(item["embedding"]), len(item["colbert"][0])) == (8, 1024)


def test_dimensions_are_refused_where_a_cut_vector_means_nothing(served: Served) -> None:
    assert len(items(served, TOLD, dimensions=256)[0]["embedding"]) == 256
    for fine in ({}, {"dimensions": None}, {"dimensions": 1024}, {"dimensions": "1024"}):
        assert len(items(served, **fine)[0]["embedding"]) == 1024
    for asked in (64, 2048):
        answer = ask(served, dimensions=asked)
        assert (answer.status, answer.json["error"]["param"]) == (400, "dimensions")
        assert f"dimensions is {asked}, and the vectors of bge-m3-local have 1024 numbers" in answer.json["detail"]


def test_base64_holds_the_same_numbers_with_their_shape(served: Served) -> None:
    asked = {"return": ["dense", "sparse", "colbert"]}
    for plain, packed in zip(items(served, **asked), items(served, encoding_format="base64", **asked), strict=True):
        rows, columns = packed["colbert"]["shape"]
        numbers = struct.unpack(f"<{rows * columns}f", b64decode(packed["colbert"]["data"]))
        assert list(numbers) == [number for vector in plain["colbert"] for number in vector]
        assert b64decode(packed["embedding"]) == struct.pack("<1024f", *plain["embedding"])
        assert packed["sparse"] == plain["sparse"]


@pytest.mark.parametrize("flag", [True, "true"])
@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_xinferences_flag_has_xinferences_shape(served: Served, flag: object, encoding: str | None) -> None:
    answer = ask(served, return_sparse=flag, encoding_format=encoding)
    assert answer.json["object"] == "list"
    first, second = answer.json["data"]
    assert first.keys() == {"object", "index", "embedding"}
    assert first["object"] == "sparse_embedding"
    assert sorted(first["embedding"].values()) == pytest.approx([1 / 3, 2 / 3])
    assert list(second["embedding"].values()) == [1.0]
    assert answer.json["usage"]["total_tokens"] == 4


def test_without_the_flag_or_beside_return_the_usual_shape_stays(served: Served) -> None:
    assert isinstance(items(served, return_sparse=False)[0]["embedding"], list)
    both = items(served, return_sparse=True, **{"return": ["dense", "sparse"]})[0]
    assert isinstance(both["embedding"], list)
    assert isinstance(both["sparse"], dict)


def test_openais_client_passes_them_on(served: Served) -> None:
    with OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
        both = client.embeddings.create(model=M3, input="apple", extra_body={"return": ["dense", "sparse"]})
        assert list(both.data[0].model_extra["sparse"].values()) == [1.0]
        assert len(both.data[0].embedding) == 1024
        alone = client.embeddings.create(model=M3, input="apple", extra_body={"return": "sparse"})
        assert list(alone.data[0].model_extra["sparse"].values()) == [1.0]
        lexical = client.embeddings.create(model=M3, input="apple", extra_body={"return_sparse": True})
        assert list(lexical.data[0].embedding.values()) == [1.0]


@pytest.mark.parametrize(("field", "value"), [("return", ["dense", "colbert"]), ("return_sparse", True)])
def test_an_output_that_the_model_does_not_make_is_refused(served: Served, field: str, value: object) -> None:
    answer = ask(served, PLAIN, **{field: value})
    assert answer.status == 400
    assert (answer.json["error"]["code"], answer.json["error"]["param"]) == ("unsupported", "return")
    assert "it makes dense." in answer.json["detail"]


def test_a_model_of_another_kind_is_told_apart_first(served: Served) -> None:
    assert ask(served, "qwen3-4b-chat-local", **{"return": "sparse"}).json["error"]["code"] == "wrong_kind"
    assert ask(served, "nosuch", **{"return": "sparse"}).status == 404


@pytest.mark.parametrize("value", ["late", ["dense", "late"], 5, {"dense": True}, [["dense"]], [None]])
def test_unknown_outputs_are_named(served: Served, value: object) -> None:
    answer = ask(served, **{"return": value})
    assert (answer.status, answer.json["error"]["param"]) == (400, "return")
    assert "dense, sparse, colbert" in answer.json["detail"]


def test_an_answer_of_too_many_numbers_is_refused_with_both_sizes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.NUMBERS_BYTES >= 8192 * 1024 * 4, "the longest text of bge-m3 fits"
    monkeypatch.setattr(limits, "NUMBERS_BYTES", 12 * 1024)
    assert ask(served, input="one two three", **{"return": "colbert"}).status == 200
    answer = ask(served, input=["one two", "three four"], **{"return": ["dense", "colbert"]})
    assert answer.status == 400
    assert "these 4 tokens are 16 KiB of float32" in answer.json["detail"]
    assert "limit is 12 KiB" in answer.json["detail"]
    assert "base64" in answer.json["error"]["hint"]
    assert ask(served, input=["one two", "three four"], **{"return": "dense"}).status == 200
    packed = ask(served, input=["one two", "three four"], encoding_format="base64", **{"return": "colbert"})
    assert packed.json["data"][1]["colbert"]["shape"] == [2, 1024]


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, None),
        ({"input_type": "query"}, "query"),
        ({"input_type": "search_query"}, "query"),
        ({"input_type": "QUERY"}, "query"),
        ({"task": "retrieval.query"}, "query"),
        ({"input_type": "passage"}, "document"),
        ({"input_type": "search_document"}, "document"),
        ({"task": "retrieval.passage"}, "document"),
        ({"input_type": "classification"}, None),
        ({"input_type": "", "task": None}, None),
        ({"prompt_name": "query"}, "query"),
        ({"prompt_name": "", "input_type": "query"}, ""),
    ],
)
def test_what_a_text_is_for_chooses_the_models_prompt(served: Served, fields: dict[str, Any], prompt: str) -> None:
    items(served, model=TOLD, **fields)
    assert last_task(served).prompt_name == prompt


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({}, None, None),
        ({"query": "为这个句子生成表示以用于检索相关文章："}, "query", ""),
        ({"query": "query: ", "passage": "passage: "}, "query", "passage"),
        ({"retrieval.query": "q", "retrieval.passage": "p"}, "retrieval.query", "retrieval.passage"),
        ({"clustering": "c"}, "", ""),
    ],
)
def test_every_models_names_for_the_two_are_known(
    prompts: dict[str, str], query: str | None, document: str | None
) -> None:
    assert [prompt_for("search_query", prompts), prompt_for("document", prompts)] == [query, document]
    assert prompt_for("clustering", prompts) == ("clustering" if "clustering" in prompts else None)


def test_a_prompt_changes_the_vector_and_counts(served: Served) -> None:
    def of(**fields: Any) -> tuple[list[float], int]:
        answer = ask(served, TOLD, **fields)
        return answer.json["data"][0]["embedding"], answer.json["usage"]["prompt_tokens"]

    bare, query = of(), of(input_type="query")
    assert query[0] != bare[0]
    assert query[1] == bare[1] + 2 * 4
    assert of(input_type="document") == of(prompt_name="") == bare


def test_an_unknown_prompt_is_400_and_names_those_there_are(served: Served) -> None:
    answer = ask(served, TOLD, prompt_name="late")
    assert (answer.status, answer.json["error"]["param"]) == (400, "prompt_name")
    assert "query, document" in answer.json["detail"]
    assert ask(served, PLAIN, input_type="query").status == 200, "a model without prompts takes any text as it is"


def test_the_description_tells_outputs_and_prompts(served: Served) -> None:
    rows = {row["id"]: row for row in served.ask("GET", "/v1/models").json["data"]}
    for uid, outputs, prompts in (
        (M3, ["dense", "sparse", "colbert"], {}),
        (PLAIN, ["dense"], {}),
        (TOLD, ["dense"], QWEN),
    ):
        told = served.ask("GET", f"/v1/models/{uid}").json
        for about in (told, rows[uid]):
            assert (about["outputs"], about["prompts"], about["default_prompt"]) == (outputs, prompts, None)
            assert (about["dimensions"], about["max_tokens"]) == (1024, 8192)


def test_the_openapi_document_names_the_fields(served: Served) -> None:
    document = served.ask("GET", "/openapi.json").json
    fields = document["components"]["schemas"]["EmbeddingsRequest"]["properties"]
    assert {"return", "return_sparse", "prompt_name", "input_type", "task"} <= fields.keys()
    assert "outputs" not in fields
    assert fields["return"]["anyOf"][0]["enum"] == ["dense", "sparse", "colbert"]
