"""The real OpenAI client, against the app under uvicorn."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from api_server import Served
from openai import OpenAI

from lodger.tasks import ChatTask, CompletionTask, SamplingParams, StopRules

CHAT = "qwen3-4b-chat-local"
SAID = [{"role": "user", "content": "请用中文介绍一下你自己"}]


@pytest.fixture
def client(openai_client: OpenAI, served: Served) -> OpenAI:
    """The server is fresh for each test."""
    return openai_client


def test_a_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=SAID)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "请用中文介绍一下你自己"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 11, 22)


def test_a_stream_in_the_form_that_every_client_survives(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=CHAT, messages=SAID, stream=True))
    first, *middle, last = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == "请用中文介绍一下你自己"
    assert (last.choices[0].delta.content, last.choices[0].finish_reason) == ("", "stop")
    assert {len(chunk.choices) for chunk in chunks} == {1}
    assert {chunk.usage for chunk in chunks} == {None}
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_ends_a_stream_only_for_who_asks(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT, messages=SAID, stream=True, stream_options={"include_usage": True}
    )
    *_, last = list(stream)
    assert last.choices == []
    assert last.usage.total_tokens == 22


def test_several_choices_are_counted_together(client: OpenAI) -> None:
    said = [{"role": "user", "content": "one two"}]
    answer = client.chat.completions.create(model=CHAT, messages=said, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"one two"}
    assert answer.usage.completion_tokens == 6
    chunks = list(client.chat.completions.create(model=CHAT, messages=said, n=2, stream=True))
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content for choice in mine) == "one two"
        assert mine[-1].finish_reason == "stop"


def test_limits_and_stops_end_an_answer(client: OpenAI) -> None:
    said = [{"role": "user", "content": "a b c d e"}]
    by_length = client.chat.completions.create(model=CHAT, messages=said, max_tokens=4, max_completion_tokens=2)
    assert by_length.choices[0].finish_reason == "length"
    assert by_length.usage.completion_tokens == 2
    by_stop = client.chat.completions.create(model=CHAT, messages=said, stop=" c")
    assert by_stop.choices[0].finish_reason == "stop"
    assert "c" not in by_stop.choices[0].message.content


def test_a_request_becomes_the_task_that_it_describes(client: OpenAI, served: Served) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    client.chat.completions.create(
        model=CHAT,
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]},
            {"role": "user", "content": "hello", "name": "me"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
            {"role": "tool", "content": "ok", "tool_call_id": "1"},
        ],
        tools=[tool],
        temperature=0.5,
        top_p=0.9,
        seed=7,
        presence_penalty=1,
        frequency_penalty=None,
        stop=["END", ""],
        max_tokens=9,
        extra_body={"enable_thinking": False, "chat_template_kwargs": {"style": "plain"}, "top_k": -1, "bogus": 1},
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert served.service.tasks == [
        ChatTask(
            model=CHAT,
            messages=(
                {"role": "system", "content": "Be\nbrief"},
                {"role": "user", "content": "hello", "name": "me"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "ok", "tool_call_id": "1"},
            ),
            tools=(tool,),
            template_args={"enable_thinking": False, "style": "plain"},
            sampling=SamplingParams(temperature=0.5, top_p=0.9, top_k=0, seed=7, presence_penalty=1.0),
            stopping=StopRules(max_tokens=9, stop=("END",)),
        )
    ]


def test_nothing_asked_means_the_models_own_defaults_and_no_limit(client: OpenAI, served: Served) -> None:
    client.chat.completions.create(model=CHAT, messages=SAID, tool_choice="none", tools=[])
    (task,) = served.service.tasks
    assert task.sampling == SamplingParams()
    assert task.stopping == StopRules()
    assert task.tools == ()
    assert task.template_args == {}


@pytest.mark.parametrize(
    ("option", "name", "code"),
    [
        ({"tool_choice": "required", "tools": []}, "tool_choice", "invalid_request"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_request"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "malformed_body"),
        ({"logit_bias": {"word": 1}}, "logit_bias", "malformed_body"),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "unsupported"),
        ({"tools": [{"type": "web_search"}]}, "tools", "unsupported"),
        ({"extra_body": {"stop_token_ids": ["a"]}}, "stop_token_ids", "malformed_body"),
        ({"extra_body": {"lora_name": "mine"}}, "lora_name", "unsupported"),
    ],
)
def test_what_is_not_served_is_refused_by_name(client: OpenAI, option: dict[str, object], name: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=CHAT, messages=SAID, **option)
    assert (caught.value.param, caught.value.code) == (name, code)
    assert name in caught.value.body["message"]


@pytest.mark.parametrize("option", [{"suffix": "end"}, {"best_of": 3}, {"echo": True, "logprobs": 1}])
def test_what_completions_do_not_serve_is_refused_by_name(client: OpenAI, option: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=CHAT, prompt="a", **option)
    assert (caught.value.param, caught.value.code) == (next(iter(option)), "unsupported")


def test_asking_for_nothing_in_a_field_is_fine(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=SAID, logprobs=False, logit_bias={}, response_format={"type": "text"}, tool_choice="auto"
    )
    assert answer.choices[0].finish_reason == "stop"


def test_an_image_is_refused_and_never_fetched(client: OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    with pytest.raises(openai.BadRequestError, match="image_url"):
        client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": [image]}])


def test_completions_of_one_and_of_several_prompts(client: OpenAI, served: Served) -> None:
    one = client.completions.create(model=CHAT, prompt="Once upon a time")
    assert (one.object, one.choices[0].text) == ("text_completion", "Once upon a time")
    many = client.completions.create(model=CHAT, prompt=["a b", "c d e"], n=2)
    assert [(choice.index, choice.text) for choice in many.choices] == list(enumerate(["a b", "a b", "c d e", "c d e"]))
    assert (many.usage.prompt_tokens, many.usage.completion_tokens) == (5, 10)
    client.completions.create(model=CHAT, prompt=[1, 2, 3])
    client.completions.create(model=CHAT, prompt=[[1, 2], [3]])
    ids = [task.prompt for task in served.service.tasks if isinstance(task, CompletionTask)][-3:]
    assert ids == [(1, 2, 3), (1, 2), (3,)]


def test_a_stream_of_several_prompts_keeps_them_apart(client: OpenAI) -> None:
    stream = client.completions.create(
        model=CHAT, prompt=["a b", "c d e"], stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "a b", 1: "c d e"}
    assert (last.choices, last.usage.total_tokens) == ([], 10)


def test_embeddings_are_the_same_as_floats_and_as_base64(client: OpenAI) -> None:
    texts = ["你好，Xinference", "hello world"]
    by_default = client.embeddings.create(model="bge-m3-local", input=texts)  # this client asks for base64
    floats = client.embeddings.create(model="bge-m3-local", input=texts, encoding_format="float")
    assert [item.index for item in floats.data] == [0, 1]
    for packed, plain in zip(by_default.data, floats.data, strict=True):
        assert len(plain.embedding) == 1024
        assert struct.pack("<1024f", *packed.embedding) == struct.pack("<1024f", *plain.embedding)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 0


def test_embeddings_take_every_shape_of_input(client: OpenAI, served: Served) -> None:
    for given, inputs in (
        ("ping", ("ping",)),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ):
        answer = client.embeddings.create(model="bge-m3-local", input=given, dimensions=1024)
        assert len(answer.data) == len(inputs)
        assert len(answer.data[0].embedding) == 1024
        assert served.service.tasks[-1].inputs == inputs


def test_over_long_inputs_are_cut_and_counted(client: OpenAI) -> None:
    answer = client.embeddings.with_raw_response.create(model="bge-m3-local", input=["word " * 9000, "short"])
    assert answer.headers["x-lodger-truncated"] == "1"
    assert answer.parse().usage.prompt_tokens == 8192 + 1


def test_models_are_listed_and_described(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [CHAT, "bge-m3-local", "bge-reranker-v2-m3-local"]
    assert client.models.retrieve("bge-m3-local").id == "bge-m3-local"


def test_errors_are_raised_as_the_client_knows_them(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nosuch"):
        client.chat.completions.create(model="nosuch", messages=SAID)
    with pytest.raises(openai.BadRequestError, match="for embedding, not for chat"):
        client.chat.completions.create(model="bge-m3-local", messages=SAID)
    with pytest.raises(openai.BadRequestError, match="nothing to answer"):
        client.chat.completions.create(model=CHAT, messages=[])
    with pytest.raises(openai.BadRequestError, match="input is empty"):
        client.embeddings.create(model="bge-m3-local", input=[])


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_400_even_for_a_stream(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "word " * 8200}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"
    assert "8,192" in str(caught.value)


def test_each_of_many_requests_counts_only_its_own_tokens(client: OpenAI) -> None:
    def ask(words: int) -> tuple[int, int, int]:
        text = " ".join(["word"] * words)
        chat = client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": text}])
        vectors = client.embeddings.create(model="bge-m3-local", input=[text, "one"])
        return words, chat.usage.completion_tokens, vectors.usage.total_tokens - 1

    with ThreadPoolExecutor(8) as pool:
        for words, chatted, embedded in pool.map(ask, range(1, 25)):
            assert words == chatted == embedded
