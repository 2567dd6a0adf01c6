"""Answers that must match a form do so, whatever the model would rather say, and nobody beside them notices."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_native_chat import PROMPTS, answers, collect, counts, preemptions_of, run, task, text
from test_out_of_memory import chats, fails_alone, same_text

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import InvalidRequest
from lodger.tasks import ChatTask, Constraint, Delta, SamplingParams, StopRules, ToolCall
from lodger.text import grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_pattern": " "},  # a random model likes nothing better
}
JSON = Constraint(kind="json", text=json.dumps(SCHEMA))
DATE = Constraint(kind="regex", text=r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
SUM = Constraint(kind="lark", text='start: TERM ("+" TERM){1,3}\nTERM: /[0-9]{1,3}/')
HOT = [SamplingParams(temperature=2.0, top_k=top_k, seed=seed) for seed, top_k in enumerate((0, 5, 0, 50, 0, 1))]


def formed(constraint: Constraint, prompt: tuple[int, ...] = PROMPTS[2], most: int = 200, **more: Any) -> Any:
    return task(prompt, most, more.pop("sampling", HOT[0]), constraint=constraint, ignore_eos=False, **more)


def check(answer: str) -> None:
    value = json.loads(answer)
    assert list(value) == list(SCHEMA["properties"])
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 6
    assert value["age"] in range(151)
    assert 1 <= len(value["tags"]) <= 3
    assert set(value["tags"]) <= {"red", "green"}
    assert value["ok"] in (True, False)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_whatever_the_seed_json_is_what_its_schema_says(family: str, serve: Callable[..., Any]) -> None:
    model = serve(family)
    tasks = [formed(JSON, PROMPTS[seed % 8], sampling=SamplingParams(temperature=1.5, seed=seed)) for seed in range(6)]
    found = answers(model, [*tasks, *(formed(JSON, sampling=sampling) for sampling in HOT)])
    for answer in found:
        check(answer)
    assert len(set(found)) > 5, "they are random"


@pytest.mark.parametrize("overlaps", [False, True], ids=["waiting", "overlapped"])
def test_regular_expressions_and_grammars_are_met_and_end_the_answer(
    overlaps: bool, serve: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")))
    model._lane._stepper.overlaps = overlaps

    async def ask() -> Any:
        tasks = [formed(form, sampling=one) for form in (DATE, SUM) for one in HOT]
        return await asyncio.gather(*(collect(model.generate(one)) for one in tasks))

    found = run(ask())
    for n, deltas in enumerate(found):
        pattern = DATE.text if n < len(HOT) else r"[0-9]{1,3}(\+[0-9]{1,3}){1,3}"
        assert re.fullmatch(pattern, text(deltas)), text(deltas)
        assert deltas[-1].finish_reason == "stop"
    assert not model._lane.decoding
    model.close()


_ALONE: dict[str, str] = {}


def alone(model: Any, tasks: list[Any]) -> list[str]:
    for one in tasks:
        if str(one) not in _ALONE:
            _ALONE[str(one)] = answers(model, [one])[0]
    return [_ALONE[str(one)] for one in tasks]


@pytest.mark.parametrize("overlaps", [False, True], ids=["waiting", "overlapped"])
@pytest.mark.parametrize("blocks", [256, 7], ids=["roomy", "preempting"])
def test_company_changes_nothing(
    overlaps: bool, blocks: int, serve: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    """Each answer beside others of both kinds is what it is alone, where chats are put back for want of room too.

    Which chats meet is a matter of time: where some must be put back, they are asked until some were.
    """
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=blocks)
    model._lane._stepper.overlaps = overlaps
    seen = preemptions_of(model)
    plain = [task(prompt, 16, HOT[n % 2]) for n, prompt in enumerate(PROMPTS[:4])]
    bound = [formed(JSON, prompt, 24, sampling=HOT[n % 3]) for n, prompt in enumerate(PROMPTS[:4])]
    mixed = [one for pair in zip(plain, bound, strict=True) for one in pair]
    tight = blocks == 7
    for _ in range(10 if tight else 1):
        assert answers(model, mixed) == alone(serve("qwen3"), mixed)
        if seen():
            break
    assert bool(seen()) == tight, "the cache is not as tight as it should be"
    assert not model._lane._guided
    model.close()


@pytest.mark.parametrize("overlaps", [False, True], ids=["waiting", "overlapped"])
def test_memory_that_runs_out_leaves_forms_and_what_is_told_as_they_were(
    overlaps: bool, serve: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    """Whichever allocation of their steps fails, the step is made again in parts, and no guide notices."""
    model = serve.fresh(inspect_folder(tiny("qwen3")))
    model._lane._stepper.overlaps = overlaps
    form = formed(Constraint(kind="regex", text="[a-f]{9}"), PROMPTS[4], 3, logprobs=2)
    requests = [*chats(model)[:2], lambda: collect(model.generate(form)), lambda: collect(model.generate(form))]
    fails_alone(model, requests, same_told, 0)
    model.close()


def same_told(mine: list[Delta], other: list[Delta]) -> bool:
    ids = [[one.chosen.id for delta in deltas for one in delta.logprobs] for deltas in (mine, other)]
    return same_text(mine, other) and ids[0] == ids[1]


def test_a_bound_answer_is_no_longer_than_it_may_be(serve: Callable[..., Any]) -> None:
    deltas = run(collect(serve("qwen3").generate(formed(JSON, most=5))))
    assert (deltas[-1].finish_reason, counts(deltas)) == ("length", [(len(PROMPTS[2]), 5)])
    deltas = run(collect(serve("qwen3").generate(formed(Constraint(kind="regex", text="[ab]{3}"), most=3))))
    assert deltas[-1].finish_reason in ("stop", "length")
    whole = re.fullmatch("[ab]{3}", text(deltas)) is not None
    assert (deltas[-1].finish_reason == "stop") is whole


def test_an_answer_ends_only_where_its_form_allows_it(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    """The model is told to end at once, by a bias; the form lets it after the third letter, or at the fifth."""
    facts = inspect_folder(tiny("qwen3"))
    eager = SamplingParams(temperature=0, logit_bias={facts.eos_token_ids[0]: 100.0})
    model = serve("qwen3")
    form = Constraint(kind="regex", text="[xy]{3,5}")
    deltas = run(collect(model.generate(formed(form, sampling=eager))))
    assert re.fullmatch("[xy]{3}", text(deltas))
    assert deltas[-1].finish_reason == "stop"
    for sampling in HOT[:3]:
        assert re.fullmatch("[xy]{3,5}", answers(model, [formed(form, sampling=sampling)])[0])


def test_a_ban_gives_way_to_the_form(serve: Callable[..., Any]) -> None:
    model = serve("qwen3")
    ids = model._serving.tokenizer.encode("abc", special=False)
    banned = SamplingParams(temperature=1.0, seed=1, logit_bias=dict.fromkeys(ids, -100.0))
    assert answers(model, [formed(Constraint(kind="regex", text="abc"), sampling=banned)]) == ["abc"]


def test_choices_are_each_bound(serve: Callable[..., Any]) -> None:
    deltas = run(collect(serve("qwen3").generate(formed(JSON, sampling=SamplingParams(temperature=1.5, seed=3), n=2))))
    found = [text(deltas, index) for index in range(2)]
    for answer in found:
        check(answer)
    assert len(set(found)) > 1


def test_penalties_and_probabilities_hold_within_a_form(serve: Callable[..., Any]) -> None:
    for sampling in (
        SamplingParams(temperature=0, repetition_penalty=1.5),
        SamplingParams(temperature=1.0, min_p=0.3, seed=1),
        SamplingParams(temperature=0.7, top_p=0.5, top_k=3, frequency_penalty=1.0, seed=2),
    ):
        check(answers(serve("qwen2"), [formed(JSON, sampling=sampling)])[0])


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint(kind="json", text="{"), "its schema is not JSON"),
        (Constraint(kind="json", text="[]"), "a JSON schema is an object"),
        (Constraint(kind="json", text='{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (Constraint(kind="json", text='{"$ref": "http://127.0.0.1:1/schema"}'), "does not fetch resources"),
        (Constraint(kind="json", text='{"$ref": "#"}'), "cannot be kept to"),
        (Constraint(kind="json", text='{"type":"array","items":' * 3000 + "{}" + "}" * 3000), "cannot be kept to"),
        (Constraint(kind="json", text='{"enum": []}'), "cannot be kept to"),
        (Constraint(kind="regex", text="(a"), "cannot be kept to"),
        (Constraint(kind="regex", text="(" * 2000 + ")" * 2000), "cannot be kept to"),
        (Constraint(kind="lark", text="no grammar"), "cannot be kept to"),
        (Constraint(kind="lark", text="start: " + "(" * 3000 + '"a"' + ")" * 3000), "too deeply nested"),
        (Constraint(kind="regex", text="a" * 300_000), "300,000 characters; at most 262,144"),
    ],
    ids=lambda value: value.text[:20] if isinstance(value, Constraint) else "",
)
def test_forms_that_are_none_are_refused_before_anything_is_made(
    constraint: Constraint, message: str, serve: Callable[..., Any]
) -> None:
    model = serve("qwen3")
    with pytest.raises(InvalidRequest, match=re.escape(message)) as caught:
        run(collect(model.generate(formed(constraint))))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert (model.running(), model._lane._generations) == (0, {})


def test_the_deepest_chain_of_rules_that_is_read_ends_no_process(serve: Callable[..., Any]) -> None:
    links = {f"d{n}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(2500)}
    chain = json.dumps({"$defs": links | {"d2500": {"type": "string"}}, "$ref": "#/$defs/d0"})
    rules = "\n".join(f"a{n}: a{n + 1}" for n in range(8000))
    for form in (Constraint(kind="json", text=chain), Constraint(kind="lark", text=f'start: a0\n{rules}\na8000: "a"')):
        deltas = run(collect(serve("qwen3").generate(formed(form, most=3))))
        assert deltas[-1].finish_reason in ("stop", "length")


def test_a_form_that_takes_too_long_ends_its_own_answer_alone(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it is given up, or one token of it; whoever chats beside it goes on meanwhile."""
    model = serve("qwen3")
    monkeypatch.setattr(grammar, "PATIENCE", 0.3)
    slow = Constraint(kind="regex", text="((a{1000}){1000}){3}")
    alone = answers(model, [task(PROMPTS[1])])

    async def ask() -> Any:
        return await asyncio.gather(
            collect(model.generate(formed(slow))), collect(model.generate(task(PROMPTS[1]))), return_exceptions=True
        )

    refused, beside = run(ask())
    assert isinstance(refused, InvalidRequest), refused
    assert [text(beside)] == alone
    model._serving.loop.wait()
    assert (model.running(), model._lane._generations, model._lane._guided) == (0, {}, set())


def test_a_token_that_takes_too_long_ends_its_own_answer_alone(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve("qwen3")
    monkeypatch.setattr(grammar, "PATIENCE", 0.2)
    begun, over = [], threading.Event()
    original = grammar.Guide._advance

    def advance(self: grammar.Guide, token: int) -> None:
        begun.append(token)
        if len(begun) == 3:
            over.wait(20)
        original(self, token)

    monkeypatch.setattr(grammar.Guide, "_advance", advance)

    async def ask() -> Any:
        return await asyncio.gather(
            collect(model.generate(formed(JSON))), collect(model.generate(task(PROMPTS[1], 40))), return_exceptions=True
        )

    try:
        refused, beside = run(ask())
    finally:
        over.set()
    assert isinstance(refused, InvalidRequest)
    assert "takes more than" in refused.message
    assert counts(beside) == [(len(PROMPTS[1]), 40)]
    model._serving.loop.wait()
    assert model._lane._guided == set()


def test_forms_wait_where_too_many_take_long(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = serve("qwen3")
    monkeypatch.setattr(model._serving.grammars, "slow", lambda: 4)
    with pytest.raises(Exception, match="4 forms of answers are being worked out for long"):
        run(collect(model.generate(formed(JSON))))


CITY = {"city": {"enum": ["Paris", "Rome"]}}
ZONE = {"zone": {"type": "integer", "minimum": 0, "maximum": 23}}
TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }
    for name, properties in (("weather", CITY), ("time", ZONE))
)


def chat(**more: Any) -> ChatTask:
    messages = ({"role": "user", "content": "What is the weather?"},)
    args = {"enable_thinking": False}
    stopping = StopRules(max_tokens=more.pop("most", 200))
    sampling = more.pop("sampling", SamplingParams(temperature=1.0, seed=5))
    return ChatTask(model="m", messages=messages, sampling=sampling, stopping=stopping, template_args=args, **more)


def test_a_required_call_is_one_with_arguments_by_its_schema(
    serve: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3", max_position_embeddings=2048)))
    for seed in range(3):
        sampling = SamplingParams(temperature=1.0, seed=seed)
        asked = chat(tools=TOOLS, tool_choice="required", sampling=sampling, parallel_tool_calls=False)
        deltas = run(collect(model.generate(asked)))
        calls = [call for delta in deltas for call in delta.calls]
        assert calls
        assert all(isinstance(call, ToolCall) for call in calls)
        for call in calls:
            arguments = json.loads(call.arguments)
            assert call.name in ("weather", "time")
            assert (
                arguments["city"] in ("Paris", "Rome") if call.name == "weather" else isinstance(arguments["zone"], int)
            )
        assert text(deltas).strip() == ""
        assert deltas[-1].finish_reason == "tool_calls"
    model.close()


def test_a_form_begins_after_the_thought(serve: Callable[..., Any]) -> None:
    """A thinking model may think first, and what it thinks is free. Biases say whether it does, and that it ends."""
    model = serve("qwen3")
    tokenizer = model._serving.tokenizer
    opened, closed = tokenizer.id_of("<think>"), tokenizer.id_of("</think>")
    form = Constraint(kind="regex", text="red|green")
    for thinks in (True, False):
        sampling = SamplingParams(temperature=0, logit_bias={opened: 50.0 if thinks else -100.0, closed: 60.0})
        asked = msgspec.structs.replace(chat(constraint=form, sampling=sampling, most=40), template_args={})
        deltas = run(collect(model.generate(asked)))
        assert (text(deltas), deltas[-1].finish_reason) in [("red", "stop"), ("green", "stop")]
        spelt = len(tokenizer.encode(text(deltas), special=False))
        assert deltas[-1].usage is not None
        assert (deltas[-1].usage.completion_tokens > spelt) is thinks
