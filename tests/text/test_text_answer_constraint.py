"""What an answer is made to match, by llguidance itself: it takes what should be said and nothing else."""

from __future__ import annotations

from typing import Any

import llguidance
import pytest
import tiny_templates as templates

from lodger.tasks import ChatTask, Constraint
from lodger.text.answer_constraint import answer_constraint
from lodger.text.output import output_parser

LLAMA, MISTRAL, CODER, PLAIN = "<|python_tag|>", "[TOOL_CALLS]", "<function=", "{{ messages }}"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/days"}, "unit": {"enum": ["c", "f"]}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer"}},
}
TOOLS = (
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
)
WEATHER, NOW = '{"name": "weather", "arguments": {"city": "Paris", "days": 3}}', '{"name": "now", "arguments": {}}'
JSON = Constraint(kind="json", text='{"type": "object"}')


class _Bytes:
    """A tokenizer whose tokens are bytes."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, [256]
    tokens = [*(bytes([byte]) for byte in range(256)), b"<eos>"]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def takes(constraint: Constraint | None, text: str) -> bool:
    """Whether `text` is a whole answer."""
    assert constraint is not None
    grammar = getattr(llguidance.LLMatcher, _GRAMMARS[constraint.kind])(constraint.text)
    matcher = llguidance.LLMatcher(TOKENIZER, grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


_GRAMMARS = {"lark": "grammar_from_lark", "json": "grammar_from_json_schema", "regex": "grammar_from_regex"}


def constraint(source: str, prompt: str = "", **fields: Any) -> Constraint | None:
    return answer_constraint(source, prompt, ChatTask(model="m", messages=(), **fields))


def calls(source: str, *bodies: str) -> str:
    """Calls as the format writes them."""
    if source in (PLAIN, MISTRAL):
        return f"[{', '.join(bodies)}]"
    if source == LLAMA:
        return "; ".join(bodies).replace("arguments", "parameters")
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


@pytest.mark.parametrize("source", [templates.QWEN2, LLAMA, MISTRAL, PLAIN])
def test_a_required_call_is_one_of_a_tool_by_its_schema(source: str) -> None:
    required = constraint(source, tools=TOOLS, tool_choice="required")
    assert takes(required, calls(source, WEATHER))
    assert takes(required, calls(source, NOW, WEATHER))
    for wrong in ("Hello", NOW.replace("now", "then"), WEATHER.replace("Paris", "P").replace("city", "town")):
        assert not takes(required, calls(source, wrong))
    assert not takes(required, "")
    one = constraint(source, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert takes(one, calls(source, NOW))
    assert not takes(one, calls(source, NOW, NOW))


def test_a_required_call_of_the_coders_format() -> None:
    def coded(**values: str) -> str:
        body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
        return f"<tool_call>\n<function=weather>\n{body}</function>\n</tool_call>"

    required = constraint(CODER, tools=TOOLS, tool_choice="required")
    assert takes(required, coded(city="Paris\n<b>", days="3"))
    assert takes(required, coded(city="Paris", unit='"c"'))
    assert takes(required, "<tool_call>\n<function=now>\n</function>\n</tool_call>")
    assert not takes(required, coded(days="3"))
    assert not takes(required, coded(city="Paris", days="three"))


def test_nobody_can_go_on_with_line_breaks_for_ever() -> None:
    text = constraint(templates.QWEN3, constraint=JSON)
    assert takes(text, '{\n  "a": 1\n}')
    assert not takes(text, '{"a":' + "\n" * 65 + "1}")
    required = constraint(templates.QWEN2, tools=TOOLS, tool_choice="required")
    assert not takes(required, calls(templates.QWEN2, WEATHER.replace(": 3", ":\n3")))


def test_words_of_a_schema_that_mean_nothing_here_are_passed_over_in_tools() -> None:
    parameters = {"properties": {"at": {"type": "string", "format": "no-such-format"}}, "minProperties": 0, "x-mine": 1}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    required = constraint(templates.QWEN2, tools=(tool,), tool_choice="required")
    assert takes(required, calls(templates.QWEN2, '{"name": "f", "arguments": {"at": "noon"}}'))


@pytest.mark.parametrize("source", [templates.QWEN3, LLAMA, MISTRAL, PLAIN])
def test_what_is_required_is_read_as_calls(source: str) -> None:
    task = ChatTask(model="m", messages=(), tools=TOOLS)
    parser = output_parser(source, "", task)
    assert parser is not None
    made = [parser.push(calls(source, NOW, WEATHER)), parser.flush()]
    assert [call.name for piece in made for call in piece.calls] == ["now", "weather"]


def test_a_model_that_thinks_does_so_first() -> None:
    for fields, said in (
        ({"tools": TOOLS, "tool_choice": "required"}, calls(templates.QWEN3, NOW)),
        ({"constraint": JSON}, '{"city": 1}'),
    ):
        free = constraint(templates.QWEN3, **fields)
        assert takes(free, said)
        assert takes(free, f"<think>\nwell, {{\n</think>\n\n{said}")
        assert not takes(free, f"<think>\nwell{said}")
        inside = constraint(templates.QWEN3, "<think>\n", **fields)
        assert takes(inside, f"well\n</think>\n\n{said}")
        assert not takes(inside, said)
        done = constraint(templates.QWEN3, "<think>\n\n</think>\n\n", **fields)
        assert takes(done, said)
        assert not takes(done, f"<think>\nwell\n</think>{said}")


@pytest.mark.parametrize(
    ("form", "said", "wrong"),
    [
        (JSON, '{"a": [1]}', "a"),
        (Constraint(kind="regex", text=r"a/b\/[0-9]{3}|\\"), "a/b/123", "a/b"),
        (Constraint(kind="regex", text="a\nb"), "a\nb", "a"),
        (Constraint(kind="lark", text='%llguidance {}\nstart: word+\nword: "yes}" | "no"'), "noyes}", "maybe"),
    ],
)
def test_the_form_of_a_text_holds_after_a_thought_or_is_met_by_a_call(form: Constraint, said: str, wrong: str) -> None:
    assert constraint(templates.QWEN2, constraint=form) == form
    after = constraint(templates.QWEN3, constraint=form)
    either = constraint(templates.QWEN2, constraint=form, tools=TOOLS)
    for made in (form, after, either):
        assert takes(made, said)
        assert not takes(made, wrong)
    assert takes(after, f"<think>x</think>\n{said}")
    assert takes(either, calls(templates.QWEN2, NOW))
    must = constraint(templates.QWEN2, constraint=form, tools=TOOLS, tool_choice="required")
    assert not takes(must, said)


def test_nothing_is_asked_of_who_may_say_anything() -> None:
    assert constraint(templates.QWEN3) is None
    assert constraint(templates.QWEN3, tools=TOOLS) is None
