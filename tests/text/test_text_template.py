"""A conversation becomes the prompt that transformers' `apply_chat_template` writes with the same template."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_templates

from lodger.errors import EmptyInput, InvalidRequest, MalformedBody, ModelProblem, Unsupported
from lodger.text import template as template_module
from lodger.text.template import ChatTemplate

LLAMA3 = (
    "{% for message in messages %}"
    "{{ (bos_token if loop.first else '') + '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# What templates in the wild use: whitespace control, generation and loop controls, dates, JSON in every form.
MANY_FEATURES = """\
    {% set ns = namespace(count=0) %}
{{ bos_token }}{{ unk_token }}{{ missing }}
{%- for message in messages %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
    {% set ns.count = ns.count + 1 %}
    {% generation %}{{ message.content }}{% endgeneration %}
    {% if loop.index > 4 %}{% break %}{% endif %}
{% endfor %}
{{ ns.count }} {{ documents is none }} {{ tools is none }} {{ dict(a=1) | tojson }}
{{ messages[0] | tojson(indent=2) }} {{ {'ü': '<é>'} | tojson }} {{ [1, 2] | tojson(separators=(',', ':')) }}
"""
HELLO = [{"role": "user", "content": 'Hello <there> & "you" 你好'}]
TALK = [
    {"role": "system", "content": "Be brief.\n"},
    *HELLO,
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi."},
    {"role": "user", "content": "  And then?  "},
]
CALLS = [
    {"role": "user", "content": "Weather in Paris and Rome?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "two calls",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "größe": 1}}},
            {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        ],
    },
    {"role": "tool", "content": "sunny"},
    {"role": "tool", "content": "rain"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "note": "<ü>"}}}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@cache
def oracle() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)


def ours(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, TOKENS)


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("messages", [HELLO, TALK, CALLS], ids=["hello", "talk", "calls"])
@pytest.mark.parametrize("name", ["QWEN3", "QWEN2", "CHATML", "LLAMA3", "MANY_FEATURES"])
def test_the_prompt_is_that_of_transformers(name: str, messages: list[dict[str, Any]], generation: bool) -> None:
    source = globals().get(name) or getattr(tiny_templates, name)
    for tools in ([], TOOLS):
        for args in ({}, {"enable_thinking": False}, {"enable_thinking": True, "more": [1, "x"]}):
            prompt = ours(source).render(messages, tools=tools, add_generation_prompt=generation, **args)
            assert prompt == oracle().apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=source,
                add_generation_prompt=generation,
                tokenize=False,
                **args,
            )


def test_qwen3_with_tools_and_without_thinking() -> None:
    prompt = ours(tiny_templates.QWEN3).render(HELLO, tools=TOOLS, enable_thinking=False)
    assert '"note": "<ü>"' in prompt
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_value_that_is_null_is_as_if_it_were_not_there() -> None:
    message = {"role": "assistant", "content": None, "name": None}
    prompt = ours("{% for m in messages %}[{{ m.content }}|{{ 'name' in m }}]{% endfor %}").render([message])
    assert prompt == "[|False]"


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    prompt = ours(LLAMA3).render([{"role": "user", "content": parts}], add_generation_prompt=False)
    assert prompt == "<s><|start_header_id|>user<|end_header_id|>\n\none\ntwo<|eot_id|>"


def test_a_template_that_shows_only_parts_gets_parts() -> None:
    source = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %};{% endfor %}"
    assert ours(source).render(HELLO) == HELLO[0]["content"] + ";"


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ([], EmptyInput, "nothing to answer"),
        ([{"content": "x"}], MalformedBody, "messages.0 must be an object with a role"),
        ([*HELLO, {"role": "user", "content": 7}], MalformedBody, "messages.1.content must be a string"),
        ([{"role": "user", "content": [{"type": "text"}]}], MalformedBody, "a part without text"),
        ([{"role": "user", "content": ["x"]}], MalformedBody, "a part without text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], Unsupported, "type 'image_url'"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: list[Any], error: type[InvalidRequest], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        ours(LLAMA3).render(messages)
    assert caught.value.param == "messages"


def test_the_refusal_of_a_template_keeps_its_own_words() -> None:
    source = "{{ raise_exception('Conversation roles must alternate user/assistant') if messages | length > 1 }}"
    with pytest.raises(InvalidRequest, match="says: Conversation roles must alternate user/assistant"):
        ours(source).render(TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].role }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ lipsum.__globals__.os }}",
        "{% for i in range(99999999) %}{% endfor %}",
        "{% include 'other.txt' %}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_that_fails_or_breaks_out_ends_as_a_refused_request(source: str) -> None:
    with pytest.raises(InvalidRequest):
        ours(source).render(HELLO)


def test_a_template_cannot_write_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_PROMPT", 10_000)
    with pytest.raises(InvalidRequest, match="more than 10000 characters"):
        ours("{% for i in range(5000) %}{{ messages[0].content }}{% endfor %}").render(HELLO)


@pytest.mark.parametrize("name", ["messages", "documents", "chat_template"])
def test_a_request_cannot_replace_what_the_template_is_given(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name!r} cannot be set this way"):
        ours(LLAMA3).render(HELLO, **{name: "x"})


def test_the_clock_of_a_template_is_the_one_it_was_given() -> None:
    template = ChatTemplate(
        {"default": "{{ strftime_now('%d %b %Y') }}{{ messages[0].role }}"}, {}, now=lambda: datetime(2026, 11, 22)
    )
    assert template.render(HELLO) == "22 Nov 2026user"


def test_the_template_of_a_folder(tiny: Callable[..., Path], tmp_path: Path) -> None:
    template = ChatTemplate.load(tiny("qwen3"))
    assert template is not None
    assert template.render(HELLO) == ours(tiny_templates.QWEN3).render(HELLO)
    assert ChatTemplate.load(tiny("minilm")) is None
    assert ChatTemplate.load(tmp_path) is None


def write(folder: Path, **config: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_template_file_wins_over_the_config(tmp_path: Path) -> None:
    write(tmp_path, chat_template="config")
    (tmp_path / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render([{"role": "user", "content": "你"}]) == "file 你"


@pytest.mark.parametrize("as_files", [True, False])
def test_named_templates_are_chosen_by_whether_there_are_tools(tmp_path: Path, as_files: bool) -> None:
    named = {"default": "plain", "tool_use": "with tools", "rag": "rag"}
    if as_files:
        (tmp_path / "additional_chat_templates").mkdir()
        for name, source in named.items():
            path = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
            (tmp_path / path).write_text(source)
    else:
        write(tmp_path, chat_template=[{"name": name, "template": source} for name, source in named.items()])
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert (template.render(HELLO), template.render(HELLO, tools=TOOLS)) == ("plain", "with tools")


def test_special_tokens_are_read_in_every_form(tmp_path: Path) -> None:
    write(tmp_path, chat_template="{{ bos_token }}{{ eos_token }}{{ pad_token }}", bos_token={"content": "<b>"})
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<e>", "bos_token": "old"}')
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render(HELLO) == "<b><e>"


def test_a_broken_template_is_a_problem_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(ModelProblem, match=r"not valid Jinja: .* \(line 2\)"):
        ChatTemplate.load(write(tmp_path, chat_template="ok\n{% for %}"))
    with pytest.raises(ModelProblem, match="has 1048577 characters"):
        ChatTemplate.load(write(tmp_path, chat_template="x" * (2**20 + 1)))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "cut o')
    with pytest.raises(ModelProblem, match=r"tokenizer_config\.json of .* is damaged"):
        ChatTemplate.load(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    write(tmp_path)
    with pytest.raises(ModelProblem, match=r"chat_template\.jinja of .* is damaged"):
        ChatTemplate.load(tmp_path)
