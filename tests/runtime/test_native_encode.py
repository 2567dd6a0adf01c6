"""What embedding and rerank models of the native engine promise, with sentence-transformers as the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_requests import run, texts, vectors
from msgspec.structs import replace

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import EmptyInput, InvalidRequest, WrongKind
from lodger.tasks import ChatTask, EmbedResult, EmbedTask, RerankTask, TokensTask, Usage


@pytest.fixture(scope="session")
def sentence_oracle(tiny: Callable[..., Path], device: torch.device) -> Callable[[str], Any]:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    loaded: dict[str, Any] = {}

    def load(family: str) -> Any:
        if family not in loaded:
            cls = CrossEncoder if family == "bge-reranker" else SentenceTransformer
            loaded[family] = cls(str(tiny(family)), device=str(device))
            if family == "bge-reranker":
                loaded[family].max_seq_length = 512
        return loaded[family]

    return load


@pytest.mark.parametrize("family", ["bge-m3", "minilm"])
def test_embeddings_are_those_of_sentence_transformers(
    family: str, serve: Callable[..., Any], sentence_oracle: Callable[[str], Any]
) -> None:
    inputs = (*texts(40), "", "word " * 900)
    oracle = sentence_oracle(family)
    result = run(serve(family).embed(EmbedTask(model="m", inputs=inputs)))
    assert np.abs(vectors(result) - oracle.encode(list(inputs), batch_size=8)).max() < 1e-5
    assert result.truncated == 1
    lengths = [
        len(oracle.tokenizer(text, truncation=True, max_length=oracle.max_seq_length).input_ids) for text in inputs
    ]
    assert result.usage == Usage(sum(lengths))


def test_callers_at_the_same_time_get_what_each_gets_alone(serve: Callable[..., Any]) -> None:
    model = serve("minilm")
    requests = [EmbedTask(model="m", inputs=texts(30)[3 * n : 3 * n + 3]) for n in range(10)]

    async def ask() -> list[EmbedResult]:
        return await asyncio.gather(*(model.embed(request) for request in requests))

    for request, together in zip(requests, run(ask()), strict=True):
        alone = run(model.embed(request))
        assert np.abs(vectors(together) - vectors(alone)).max() < 1e-5
        assert together.usage == alone.usage


def test_fewer_dimensions_are_the_first_ones_at_length_1(serve: Callable[..., Any]) -> None:
    model = serve("bge-m3")
    whole = vectors(run(model.embed(EmbedTask(model="m", inputs=("a b c",)))))[0]
    cut = vectors(run(model.embed(EmbedTask(model="m", inputs=("a b c",), dimensions=16))))[0]
    assert np.allclose(cut, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)
    with pytest.raises(InvalidRequest, match="dimensions is 65, and .* makes 1 to 64"):
        run(model.embed(EmbedTask(model="m", inputs=("a",), dimensions=65)))


def test_token_ids_are_embedded_as_they_are(serve: Callable[..., Any]) -> None:
    model = serve("minilm")
    ids = tuple(model._serving.tokenizer.encode("time person year", special=True))
    mixed = run(model.embed(EmbedTask(model="m", inputs=(ids, "time person year"))))
    assert np.array_equal(*vectors(mixed).round(5))
    with pytest.raises(InvalidRequest, match="is not in the vocabulary"):
        run(model.embed(EmbedTask(model="m", inputs=((-1,),))))


def test_tokens_are_spelt_as_the_vocabulary_spells_them(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny("minilm"))
    ids = tuple(theirs("time person year")["input_ids"])
    found = run(serve("minilm").tokens(TokensTask(model="m", ids=(ids, (99999,)))))
    assert found == (tuple(theirs.convert_ids_to_tokens(ids)), ("",))


@pytest.mark.parametrize("inputs", [(), ((),)])
def test_nothing_to_embed_is_refused(inputs: Any, serve: Callable[..., Any]) -> None:
    with pytest.raises(EmptyInput, match="nothing to embed"):
        run(serve("minilm").embed(EmbedTask(model="m", inputs=inputs)))


def test_cross_encoder_scores_are_those_of_sentence_transformers(
    serve: Callable[..., Any], sentence_oracle: Callable[[str], Any]
) -> None:
    documents = (*texts(25), "", "word " * 900)
    result = run(serve("bge-reranker").rerank(RerankTask(model="m", query="time 世界", documents=documents)))
    pairs = [("time 世界", document) for document in documents]
    expected = sentence_oracle("bge-reranker").predict(pairs, activation_fn=torch.nn.Identity())
    assert np.abs(np.array(result.logits) - expected).max() < 1e-5
    assert np.allclose(result.scores, 1 / (1 + np.exp(-np.array(result.logits))), atol=1e-12)
    assert result.truncated == 1
    assert result.usage.prompt_tokens > 25 * 4


def test_a_bi_encoder_ranks_by_cosine_mapped_to_0_and_1(
    serve: Callable[..., Any], sentence_oracle: Callable[[str], Any]
) -> None:
    documents = texts(6)
    result = run(serve("minilm", "rerank").rerank(RerankTask(model="m", query="a hand", documents=documents)))
    query, *others = sentence_oracle("minilm").encode(["a hand", *documents])
    cosines = np.stack(others) @ query
    assert np.abs(np.array(result.logits) - cosines).max() < 1e-5
    assert np.allclose(result.scores, (1 + np.array(result.logits)) / 2)


def test_a_bi_encoder_puts_the_models_prompts_before_query_and_documents(
    serve: Callable[..., Any], tiny: Callable[..., Path], sentence_oracle: Callable[[str], Any]
) -> None:
    prompts = {"query": "work place: ", "document": "year "}
    model = serve.fresh(replace(inspect_folder(tiny("minilm"), "rerank"), prompts=prompts))
    result = run(model.rerank(RerankTask(model="m", query="eye", documents=("woman",))))
    query, document = sentence_oracle("minilm").encode(["work place: eye", "year woman"])
    assert abs(result.logits[0] - float(query @ document)) < 1e-5
    model.close()


@pytest.mark.parametrize(("family", "kind"), [("bge-reranker", None), ("minilm", "rerank")])
def test_no_documents_give_no_scores(family: str, kind: Any, serve: Callable[..., Any]) -> None:
    result = run(serve(family, kind).rerank(RerankTask(model="m", query="a", documents=())))
    assert (result.scores, result.logits, result.usage) == ((), (), Usage())


def test_encoders_refuse_the_other_kinds(serve: Callable[..., Any]) -> None:
    with pytest.raises(WrongKind, match="is a model for embedding, not for chat"):
        serve("minilm").generate(ChatTask(model="m", messages=()))
    with pytest.raises(WrongKind, match="is a model for rerank, not for embeddings"):
        run(serve("minilm", "rerank").embed(EmbedTask(model="m", inputs=("a",))))


def test_two_models_of_one_folder_hold_its_weights_once(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    facts = inspect_folder(tiny("minilm", num_hidden_layers=1))
    rerank = inspect_folder(tiny("minilm", num_hidden_layers=1), "rerank")
    embedding, reranker = serve.fresh(facts), serve.fresh(rerank, weights=0)
    assert embedding.info.memory["weights"] > 0
    assert reranker.info.memory["weights"] == 0
    embedding.close()
    assert run(reranker.rerank(RerankTask(model="m", query="a", documents=("b",)))).scores
    reranker.close()
    assert not any(key.path == facts.path for key in serve.engine._weights)


def test_a_cancelled_request_is_forgotten(serve: Callable[..., Any]) -> None:
    model = serve("bge-m3")

    async def leave() -> None:
        request = asyncio.create_task(model.embed(EmbedTask(model="m", inputs=texts(200))))
        while not model.running():
            await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.to_thread(model._serving.loop.wait)
        assert not model._lane._open
        assert not model._lane._queue.has_work()

    run(leave())
