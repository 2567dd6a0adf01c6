"""Every message arrives as it was sent, however the bytes are cut; one bad frame costs one frame."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_world import make_facts, run

from lodger.budget import Budget
from lodger.engines.base import LoadedInfo, LoadRequest
from lodger.errors import BodyTooLarge, ErrorInfo, InternalError, MalformedBody
from lodger.ipc import channel as channel_module
from lodger.ipc import messages as m
from lodger.ipc.channel import Channel, encode
from lodger.spec import ModelSpec
from lodger.tasks import (
    ChatTask,
    CompletionTask,
    Constraint,
    Delta,
    EmbedOutput,
    EmbedResult,
    EmbedTask,
    Likely,
    RerankResult,
    RerankTask,
    SamplingParams,
    SparseVector,
    StopRules,
    TokenLogprobs,
    TokensTask,
    ToolCall,
    Usage,
)

text = st.text(st.characters(codec="utf-8"), max_size=20)
ids = st.integers(0, 2**31)
sizes = st.integers(0, 2**50)
numbers = st.floats(allow_nan=False, width=64)
json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
maps = st.dictionaries(text, json, max_size=3)
tuples = {"messages": st.lists(maps, max_size=3).map(tuple), "tools": st.lists(maps, max_size=2).map(tuple)}
biases = st.dictionaries(ids, numbers, max_size=3)
sampling = st.builds(
    SamplingParams, temperature=st.none() | numbers, top_k=st.none() | ids, seed=st.none() | ids, logit_bias=biases
)
constraints = st.none() | st.builds(Constraint, kind=st.sampled_from(["json", "regex", "lark"]), text=text)
stopping = st.builds(StopRules, max_tokens=st.none() | ids, stop=st.lists(text, max_size=2).map(tuple))
tokens = st.lists(ids, max_size=5).map(tuple)
chats = st.builds(
    ChatTask,
    model=text,
    template_args=maps,
    sampling=sampling,
    stopping=stopping,
    constraint=constraints,
    n=st.integers(1, 9),
    **tuples,
)
completions = st.builds(CompletionTask, model=text, prompt=text | tokens, sampling=sampling, stopping=stopping)
outputs = st.lists(st.sampled_from(get_args(EmbedOutput)), max_size=3).map(tuple)
inputs = st.lists(text | tokens, max_size=3).map(tuple)
embeds = st.builds(EmbedTask, model=text, inputs=inputs, outputs=outputs, prompt_name=st.none() | text)
documents = st.lists(text, max_size=3).map(tuple)
reranks = st.builds(RerankTask, model=text, query=text, documents=documents, instruction=st.none() | text)
specs = st.builds(ModelSpec, uid=text, path=st.none() | text, memory=st.none() | sizes, notes=st.tuples(text))
budgets = st.builds(Budget, weights=sizes, kv_cache=sizes, context_length=ids)
loads = st.builds(
    LoadRequest, spec=specs, facts=st.just(make_facts()), budget=budgets, device=text, dtype=st.none() | text
)
infos = st.builds(LoadedInfo, dtype=text, context_length=ids, memory=st.dictionaries(text, sizes), load_seconds=numbers)
usages = st.builds(Usage, ids, ids, ids, ids)
raw = st.binary(max_size=64)
likely = st.builds(Likely, ids, raw, numbers)
told = st.builds(TokenLogprobs, likely, st.lists(likely, max_size=2).map(tuple))
deltas = st.builds(
    Delta,
    index=ids,
    text=text,
    finish_reason=st.sampled_from([None, "stop", "length", "tool_calls"]),
    usage=st.none() | usages,
    reasoning=text,
    calls=st.lists(st.builds(ToolCall, text, text), max_size=2).map(tuple),
    logprobs=st.lists(told, max_size=2).map(tuple),
)
sparse = st.lists(st.builds(SparseVector, ids=raw, weights=raw), max_size=3).map(tuple)
vectors = st.builds(
    EmbedResult,
    vectors=raw,
    count=ids,
    dimensions=ids,
    sparse=sparse,
    colbert=st.lists(raw, max_size=3).map(tuple),
    colbert_dimensions=ids,
    usage=usages,
)
scores = st.builds(RerankResult, scores=st.lists(numbers).map(tuple), logits=st.lists(numbers).map(tuple), usage=usages)
errors = st.builds(
    ErrorInfo, code=text, message=text, hint=st.none() | text, retry_after=st.none() | ids, param=st.none() | text
)
MESSAGES: dict[type[msgspec.Struct], st.SearchStrategy[Any]] = {
    m.Load: st.builds(m.Load, ids, loads),
    m.Unload: st.builds(m.Unload, ids, text),
    m.Sleep: st.builds(m.Sleep, ids, text, st.booleans()),
    m.Wake: st.builds(m.Wake, ids, text),
    m.Generate: st.builds(m.Generate, ids, chats | completions),
    m.Embed: st.builds(m.Embed, ids, embeds),
    m.Rerank: st.builds(m.Rerank, ids, reranks),
    m.Spell: st.builds(m.Spell, ids, st.builds(TokensTask, model=text, ids=st.lists(tokens, max_size=3).map(tuple))),
    m.Cancel: st.builds(m.Cancel, ids),
    m.Shutdown: st.builds(m.Shutdown),
    m.Hello: st.builds(m.Hello, ids, ids),
    m.Progress: st.builds(m.Progress, ids, numbers),
    m.Loaded: st.builds(m.Loaded, ids, infos),
    m.Tokens: st.builds(m.Tokens, st.lists(st.tuples(ids, deltas), max_size=3).map(tuple)),
    m.Vectors: st.builds(m.Vectors, ids, vectors),
    m.Scores: st.builds(m.Scores, ids, scores),
    m.Spelt: st.builds(m.Spelt, ids, st.lists(st.lists(text, max_size=3).map(tuple), max_size=3).map(tuple)),
    m.Done: st.builds(m.Done, ids),
    m.Held: st.builds(m.Held, ids, st.dictionaries(text, st.dictionaries(text, sizes))),
    m.Failed: st.builds(m.Failed, ids, errors),
    m.Heartbeat: st.builds(m.Heartbeat, sizes, st.dictionaries(text, ids)),
}


def union(kind: type[msgspec.Struct]) -> Any:
    return m.ToWorker if kind in get_args(m.ToWorker) else m.ToGateway


async def received(incoming: Any, pieces: Iterator[bytes] | list[bytes]) -> list[Any]:
    """What a channel makes of these pieces of a stream; an unreadable frame as the error that it is."""
    channel: Channel[Any] = Channel(incoming)
    for piece in pieces:
        channel.data_received(piece)
    channel.connection_lost(None)
    found: list[Any] = []
    while True:
        try:
            message = await channel.receive()
        except InternalError as error:
            message = error
        if message is None:
            return found
        found.append(message)


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def test_the_list_of_messages_is_complete() -> None:
    assert set(MESSAGES) == set(get_args(m.ToWorker)) | set(get_args(m.ToGateway))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.integers(1, 200))
def test_every_message_arrives_as_it_was_sent(kind: type[msgspec.Struct], data: st.DataObject, size: int) -> None:
    sent = data.draw(st.lists(MESSAGES[kind], min_size=1, max_size=3))
    stream = b"".join(map(encode, sent))
    assert asyncio.run(received(union(kind), cut(stream, size))) == sent


@settings(max_examples=50, deadline=None)
@given(junk=st.binary(max_size=40), size=st.integers(1, 60))
def test_a_frame_of_junk_costs_one_frame(junk: bytes, size: int) -> None:
    stream = len(junk).to_bytes(4, "big") + junk + encode(m.Cancel(7))
    bad, good = asyncio.run(received(m.ToWorker, cut(stream, size)))
    assert isinstance(bad, InternalError)
    assert good == m.Cancel(7)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_oversize_frame_is_skipped_and_the_next_one_read(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_FRAME", 100)
    stream = encode(m.Cancel(1)) + (101).to_bytes(4, "big") + b"x" * 101 + encode(m.Cancel(2))
    first, bad, second = asyncio.run(received(m.ToWorker, cut(stream, size)))
    assert (first, second) == (m.Cancel(1), m.Cancel(2))
    assert isinstance(bad, InternalError)
    assert "101 B is over the 100 B allowed" in bad.message


def test_what_cannot_be_sent_is_refused_and_nothing_of_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_FRAME", 100)
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"deeper": deep}
    bad = [
        (m.Unload(1, "x" * 200), BodyTooLarge),
        (m.Unload(1, "\ud800"), MalformedBody),
        (m.Generate(1, ChatTask(model="a", messages=({"n": 2**64},))), MalformedBody),
        (m.Generate(1, ChatTask(model="a", messages=(deep,))), MalformedBody),
    ]

    async def main() -> None:
        ours, theirs = await pair()
        for message, error in bad:
            with pytest.raises(error):
                await ours.send(message)
        await ours.send(m.Cancel(3))
        assert await theirs.receive() == m.Cancel(3)
        await ours.close()
        await theirs.close()

    run(main())
    while deep:  # or its end would recurse, too
        deep = deep.pop("deeper")


async def pair() -> tuple[Channel[m.ToGateway], Channel[m.ToWorker]]:
    one, two = socket.socketpair()
    return await Channel.open(one, m.ToGateway), await Channel.open(two, m.ToWorker)


def test_a_slow_reader_makes_the_writer_wait_and_loses_nothing() -> None:
    async def main() -> None:
        ours, theirs = await pair()
        sent = 0

        async def write() -> None:
            nonlocal sent
            for number in range(20_000):
                await ours.send(m.Unload(number, "x" * 100))
                sent = number + 1
            await ours.close()

        writing = asyncio.create_task(write())
        while True:  # nobody reads: the writer comes to a halt
            before = sent
            await asyncio.sleep(0.05)
            if sent == before:
                break
        assert sent < 20_000
        numbers = []
        while (message := await theirs.receive()) is not None:
            assert isinstance(message, m.Unload)
            numbers.append(message.id)
        await writing
        assert numbers == list(range(20_000))

    run(main())


def test_the_end_of_the_stream_comes_after_all_that_was_sent() -> None:
    async def main() -> None:
        ours, theirs = await pair()
        ours.post(m.Cancel(1))
        await ours.close()
        assert [await theirs.receive(), await theirs.receive(), await theirs.receive()] == [m.Cancel(1), None, None]
        with pytest.raises(ConnectionResetError):
            await theirs.send(m.Done(1))
        theirs.post(m.Done(1))  # nobody is there to care

    run(main())
