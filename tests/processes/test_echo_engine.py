"""The echo engine counts, stops and cancels like a real one."""

from __future__ import annotations

import asyncio
import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from service_world import chat, make_facts

from lodger.budget import Budget
from lodger.engines import engine_name, open_engine
from lodger.engines.base import LoadRequest
from lodger.engines.echo import EchoEngine, EchoModel
from lodger.errors import Cancelled, InvalidRequest, Unsupported
from lodger.spec import ModelSpec
from lodger.tasks import CompletionTask, Constraint, Delta, EmbedResult, EmbedTask, Kind, RerankTask, StopRules, Usage


def model(kind: Kind = "chat", context: int = 64, **facts: Any) -> EchoModel:
    request = LoadRequest(
        spec=ModelSpec(uid="m"),
        facts=msgspec.structs.replace(make_facts(kind), **facts),
        budget=Budget(weights=0, context_length=context),
        device="cpu",
        dtype=None,
    )
    return EchoEngine("cpu", word_seconds=0).load(request, lambda fraction: None)


def answer(task: Any) -> list[Delta]:
    async def main() -> list[Delta]:
        return [delta async for delta in model().generate(task)]

    return asyncio.run(main())


def said(text: str, **rules: Any) -> tuple[str, str | None, Usage | None]:
    deltas = answer(chat("m", text, stopping=StopRules(**rules)))
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason, deltas[-1].usage


@settings(deadline=None)
@given(st.text(max_size=60))
def test_what_is_said_comes_back_whole(text: str) -> None:
    back, reason, usage = said(text)
    assert (back, reason) == (text, "stop")
    assert usage is not None
    assert usage.prompt_tokens == usage.completion_tokens


def test_what_is_told_of_words_is_certain_and_what_cannot_be_kept_to_is_refused() -> None:
    deltas = answer(replace(chat("m", "one two"), logprobs=3))
    told = [one for delta in deltas for one in delta.logprobs]
    assert [(one.chosen.text, one.chosen.logprob, one.top) for one in told] == [
        (b"one", 0.0, (told[0].chosen,)),
        (b" two", 0.0, (told[1].chosen,)),
    ]
    assert not any(delta.logprobs for delta in answer(chat("m", "one two")))
    back = answer(CompletionTask(model="m", prompt="one two", echo=True, n=2))
    assert ["".join(d.text for d in back if d.index == n) for n in range(2)] == ["one twoone two"] * 2
    for wrong in ({"constraint": Constraint(kind="regex", text="a")}, {"tool_choice": "required"}):
        with pytest.raises(Unsupported, match="in no other form"):
            answer(replace(chat("m", "one"), **wrong))


def test_words_are_tokens() -> None:
    assert said("one two three", max_tokens=2) == ("one two", "length", Usage(3, 2))
    assert said("one two three", max_tokens=3)[1] == "stop"
    assert said("中文 too") == ("中文 too", "stop", Usage(3, 3))
    assert said("one two three", stop=("thr", "wo")) == ("one t", "stop", Usage(3, 2))
    assert said("one two", ignore_eos=True, max_tokens=5) == ("one twoone twoone", "length", Usage(2, 5))
    assert said("word " * 29 + "word", ignore_eos=True)[2] == Usage(30, 34)


def test_every_choice_ends_and_the_last_one_counts_for_all() -> None:
    deltas = answer(CompletionTask(model="m", prompt="a b", n=3))
    assert [delta.finish_reason for delta in deltas[-3:]] == ["stop"] * 3
    assert [delta.usage for delta in deltas] == [None] * 8 + [Usage(2, 6)]
    assert "".join(delta.text for delta in deltas if delta.index == 2) == "a b"


def test_the_conversation_may_have_parts_and_gaps() -> None:
    task = chat("m", "")
    messages = (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": " you"}]},
        {"role": "assistant", "content": None},
    )
    deltas = answer(type(task)(model="m", messages=messages))
    assert "".join(delta.text for delta in deltas) == "hello you"
    assert deltas[-1].usage == Usage(4, 2)
    assert answer(type(task)(model="m", messages=messages[:1]))[-1].usage == Usage(2, 0)


def vectors(result: EmbedResult) -> list[tuple[float, ...]]:
    rows = range(result.count)
    size = 4 * result.dimensions
    return [struct.unpack(f"<{result.dimensions}f", result.vectors[size * row : size * (row + 1)]) for row in rows]


def embed(*inputs: str | tuple[int, ...], **fields: Any) -> EmbedResult:
    return asyncio.run(model("embedding").embed(EmbedTask(model="m", inputs=inputs, **fields)))


def test_embeddings_are_unit_vectors_and_alike_for_like_texts() -> None:
    result = embed("a cat sat here", "a cat sat there", "stock markets fell", "", (1, 2))
    found = vectors(result)
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in found)
    near, far = (sum(a * b for a, b in zip(found[0], other, strict=True)) for other in found[1:3])
    assert near > far
    assert embed("a cat sat here", "a cat sat there", "stock markets fell", "", (1, 2)) == result
    assert result.usage == Usage(4 + 4 + 3 + 0 + 2)
    assert embed("one", dimensions=8).dimensions == 8
    long = embed("word " * 100 + "word", "short")
    assert (long.truncated, long.usage.prompt_tokens) == (1, 65)


def test_sparse_and_colbert_are_of_the_words() -> None:
    heads = model("embedding", token_heads=("sparse", "colbert"))
    task = EmbedTask(model="m", inputs=("red red Apple", "apple", ""), outputs=("sparse", "colbert"))
    result = asyncio.run(heads.embed(task))
    assert (result.vectors, result.count, result.dimensions) == (b"", 3, 32)
    red_apple, apple, nothing = (
        dict(zip(memoryview(sparse.ids).cast("i"), memoryview(sparse.weights).cast("f"), strict=True))
        for sparse in result.sparse
    )
    assert sorted(red_apple.values()) == pytest.approx([1 / 3, 2 / 3])
    assert (list(apple.values()), nothing) == ([1.0], {})
    assert apple.keys() < red_apple.keys() < set(range(1000))
    assert result.colbert_dimensions == 32
    assert [len(vectors) // (4 * 32) for vectors in result.colbert] == [3, 1, 1]
    assert result.colbert[0][-4 * 32 :] == result.colbert[1]
    assert asyncio.run(heads.embed(task)) == result
    with pytest.raises(Unsupported, match="no sparse output; it makes dense"):
        embed("red", outputs=("dense", "sparse"))


def test_prompts_stand_before_texts_and_count() -> None:
    told = model("embedding", prompts={"query": "find this: ", "document": ""}, default_prompt="query")

    def tokens(name: str | None) -> tuple[int, bytes]:
        result = asyncio.run(told.embed(EmbedTask(model="m", inputs=("a b", (7,)), prompt_name=name)))
        return result.usage.prompt_tokens, result.vectors

    assert tokens(None) == tokens("query")
    assert tokens("document") == tokens("")
    assert (tokens("query")[0], tokens("")[0]) == (3 + 3, 3)
    with pytest.raises(InvalidRequest, match="'late'") as caught:
        tokens("late")
    assert caught.value.hint == "There are: query, document."


def test_rerank_counts_common_words() -> None:
    task = RerankTask(model="m", query="capital of France", documents=("bananas", "Paris, capital of France", ""))
    result = asyncio.run(model("rerank").rerank(task))
    assert max(result.scores) == result.scores[1]
    assert all(0 <= score <= 1 for score in result.scores)
    assert result.usage == Usage(3 * 3 + 1 + 4 + 0)
    assert result.truncated == 0


def test_a_closed_model_ends_its_requests() -> None:
    async def main() -> None:
        loaded = model()
        deltas = loaded.generate(chat("m", "one two three"))
        await deltas.__anext__()
        assert loaded.running() == 1
        loaded.close()
        with pytest.raises(Cancelled):
            await deltas.__anext__()
        assert loaded.running() == 0

    asyncio.run(main())


def test_it_is_in_the_table_and_others_can_be_named_in_full() -> None:
    assert isinstance(open_engine(engine_name("Echo"), "cpu"), EchoEngine)
    assert type(open_engine("faulty_engine:FaultyEngine", "cpu")).__name__ == "FaultyEngine"
    engine = EchoEngine("cpu")
    assert engine.used() > 0
    engine.close()
    assert EchoEngine("cuda:0").used() == 0
