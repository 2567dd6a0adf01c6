"""What is read out of a chat model's text: thought, calls of tools, and the text that is neither."""

from __future__ import annotations

import json

import pytest
import tiny_templates as templates
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.tasks import ChatTask, ToolCall
from lodger.text.output import Piece, output_parser

LLAMA, MISTRAL, CODER, PLAIN = "<|python_tag|>", "[TOOL_CALLS]", "<function=", "{{ messages }}"
PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "near": {"type": "boolean"}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"properties": PROPERTIES}}}
TOOLS = (WEATHER, {"type": "function", "function": {"name": "now"}})
NOW, PARIS = ToolCall("now", "{}"), ToolCall("weather", '{"city": "Paris"}')


def read(source: str, pieces: list[str], prompt: str = "", **fields: object) -> Piece:
    """All that comes out of an answer."""
    parser = output_parser(source, prompt, ChatTask(model="m", messages=(), **{"tools": TOOLS, **fields}))
    assert parser is not None
    shown = [*map(parser.push, pieces), parser.flush()]
    calls = tuple(call for piece in shown for call in piece.calls)
    return Piece("".join(piece.text for piece in shown), "".join(piece.reasoning for piece in shown), calls)


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


ONE, TWO = '{"name": "weather", "arguments": {"city": "Paris"}}', '{"name": "now", "arguments": {}}'
CODED = "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
TWICE = "<tool_call>\n<function=now>\n</function>\n<function=now></function>\n</tool_call>"
READ = [
    (templates.QWEN3, hermes(ONE), Piece(calls=(PARIS,))),
    (templates.QWEN3, "Let me see.\n" + hermes(ONE, TWO), Piece("Let me see.", calls=(PARIS, NOW))),
    (templates.QWEN3, hermes(TWO) + "\n\nDone.", Piece("Done.", calls=(NOW,))),
    (templates.QWEN3, hermes('{"name": "now"}'), Piece(calls=(NOW,))),
    (templates.QWEN3, hermes(ONE.replace("{", "{{", 1)), Piece(hermes(ONE.replace("{", "{{", 1)))),
    (templates.QWEN3, f"<tool_call>{ONE}", Piece(calls=(PARIS,))),
    (templates.QWEN3, f"<tool_call>{ONE}\n</tool_", Piece(calls=(PARIS,))),
    (templates.QWEN3, f"<tool_call>{ONE}<tool_call>{TWO}", Piece(calls=(PARIS, NOW))),
    (templates.QWEN3, hermes("no", TWO), Piece(hermes("no"), calls=(NOW,))),
    (templates.QWEN3, ONE, Piece(calls=(PARIS,))),
    (templates.QWEN3, f"{ONE}\n</tool_call>", Piece(calls=(PARIS,))),
    (templates.QWEN3, ONE.replace("weather", "nobody"), Piece(ONE.replace("weather", "nobody"))),
    (templates.QWEN2, "a <b> </tool_call>\n", Piece("a <b> </tool_call>\n")),
    (LLAMA, ONE.replace("arguments", "parameters"), Piece(calls=(PARIS,))),
    (LLAMA, f"<|python_tag|>{ONE}", Piece(calls=(PARIS,))),
    (LLAMA, f"{TWO}; {ONE}", Piece(calls=(NOW, PARIS))),
    (LLAMA, '{"city": "Paris"}', Piece('{"city": "Paris"}')),
    (LLAMA, '{"name": "nobody", "parameters": {}}', Piece('{"name": "nobody", "parameters": {}}')),
    (LLAMA, f"I say: {ONE}", Piece(f"I say: {ONE}")),
    (MISTRAL, f"[TOOL_CALLS][{ONE}, {TWO}]", Piece(calls=(PARIS, NOW))),
    (MISTRAL, '[TOOL_CALLS]weather{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}', Piece(calls=(PARIS, NOW))),
    (MISTRAL, f"[{ONE}]", Piece(calls=(PARIS,))),
    (MISTRAL, "[1] is a footnote", Piece("[1] is a footnote")),
    (CODER, CODED, Piece(calls=(PARIS,))),
    (CODER, TWICE, Piece(calls=(NOW, NOW))),
    (CODER, CODED.replace("\n</function>", "x</function>"), Piece(CODED.replace("\n</function>", "x</function>"))),
    (CODER, CODED.replace("<parameter=city>", ""), Piece(CODED.replace("<parameter=city>", ""))),
    (CODER, "Now: <function=now>\n</function>", Piece("Now:", calls=(NOW,))),
    (CODER, "<tool_call>\n<function=now>\nno", Piece("<tool_call>\n<function=now>\nno")),
    (PLAIN, f"[{ONE}, {TWO}]", Piece(calls=(PARIS, NOW))),
    (PLAIN, '{"type": "function", "function": ' + ONE + "}", Piece(calls=(PARIS,))),
    (PLAIN, '{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}', Piece(calls=(PARIS,))),
    (PLAIN, "  \n", Piece("  \n")),
]


@pytest.mark.parametrize(("source", "text", "expected"), READ)
def test_each_format_is_read_however_it_arrives(source: str, text: str, expected: Piece) -> None:
    for size in (1, 2, 7, len(text)):
        assert read(source, [text[at : at + size] for at in range(0, len(text), size)]) == expected


def test_a_mark_is_never_shown_by_halves_and_text_is_not_held_longer_than_that() -> None:
    parser = output_parser(templates.QWEN2, "", ChatTask(model="m", messages=(), tools=TOOLS))
    assert parser is not None
    assert parser.push("so <tool") == Piece("so")
    assert parser.push("box> it ") == Piece(" <toolbox> it")
    assert parser.push("is.<tool_call>\n") == Piece(" is.")
    assert parser.push(TWO) == Piece()
    assert parser.push("\n</tool_call>") == Piece(calls=(NOW,))


def test_json_that_is_no_call_is_not_held_to_its_end() -> None:
    parser = output_parser(LLAMA, "", ChatTask(model="m", messages=(), tools=TOOLS))
    assert parser is not None
    assert parser.push('{"answer') == Piece()
    assert parser.push('": ') == Piece('{"answer":')
    assert parser.push("4") == Piece(" 4")


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("", "<think>\nhm\n</think>\n\nYes.", Piece("Yes.", "hm")),
        ("<think>\n", "hm, a < b\n</think>\n\nYes.", Piece("Yes.", "hm, a < b")),
        ("<think>\n\n</think>\n\n", "Yes.\n", Piece("Yes.\n")),
        ("", "<think>\n\n</think>\n\nYes.", Piece("Yes.")),
        ("", "<think> cut off", Piece("", "cut off")),
        ("", " <thin", Piece(" <thin")),
        ("", "Tags such as <think> and </think>", Piece("Tags such as <think> and </think>")),
        ("", f"<think>{hermes(ONE)}</think>{hermes(TWO)}", Piece("", hermes(ONE), (NOW,))),
    ],
)
def test_a_thought_is_what_comes_first_between_its_marks(prompt: str, answer: str, expected: Piece) -> None:
    for size in (1, 3, len(answer)):
        assert read(templates.QWEN3, [answer[at : at + size] for at in range(0, len(answer), size)], prompt) == expected


def test_a_thought_stays_in_the_text_for_who_wants_that() -> None:
    text = "<think>hm</think>\n"
    assert read(templates.QWEN3, [text, hermes(ONE)], separate_reasoning=False) == Piece(text[:-1], "", (PARIS,))
    assert output_parser(templates.QWEN3, "", ChatTask(model="m", messages=(), separate_reasoning=False)) is None


def test_plain_text_is_not_parsed_at_all() -> None:
    assert output_parser(PLAIN, "", ChatTask(model="m", messages=())) is None
    assert output_parser(PLAIN, "", ChatTask(model="m", messages=(), tools=TOOLS)) is not None


def test_marks_that_are_special_tokens_of_some_models_are_asked_for() -> None:
    def special(source: str, *tools: dict[str, object]) -> set[str]:
        parser = output_parser(source, "", ChatTask(model="m", messages=(), tools=tools))
        assert parser is not None
        return set(parser.special)

    assert special(templates.QWEN3) == {"<think>", "</think>"}
    assert special(templates.QWEN3, *TOOLS) == {"<think>", "</think>", "<tool_call>", "</tool_call>"}
    assert special(LLAMA, *TOOLS) == {"<|python_tag|>"}
    assert special(MISTRAL, *TOOLS) == {"[TOOL_CALLS]", "[ARGS]"}


def test_a_caller_who_wants_one_call_gets_one() -> None:
    assert read(templates.QWEN3, [hermes(ONE, TWO, ONE)], parallel_tool_calls=False) == Piece(calls=(PARIS,))
    assert read(MISTRAL, [f"[{TWO}, {ONE}]"], parallel_tool_calls=False) == Piece(calls=(NOW,))


def test_values_of_the_coders_format_have_the_types_of_the_tool() -> None:
    values = {"city": "42\n</tool_call>", "days": "7", "near": "True", "other": '["a"]', "free": "so it is"}
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    (call,) = read(CODER, [f"<tool_call>\n<function=weather>\n{body}</function>\n</tool_call>"]).calls
    expected = {"city": "42\n</tool_call>", "days": 7, "near": True, "other": ["a"], "free": "so it is"}
    assert json.loads(call.arguments) == expected


def test_who_writes_about_calls_is_not_read_over_and_over() -> None:
    text = "<tool_call>{" * 17 + hermes(ONE)
    assert read(templates.QWEN2, [text]) == read(templates.QWEN2, list(text)) == Piece(text)
    text = "<tool_call>{" * 15 + "}" * 15 + hermes(ONE)
    assert read(templates.QWEN2, [text]).calls == (PARIS,)


@pytest.mark.parametrize("value", ["NaN", "[" * 100_000 + "]" * 100_000, "9" * 5000, '"\\ud800"'])
def test_values_that_no_wire_could_carry_do_no_harm(value: str) -> None:
    text = hermes('{"name": "weather", "arguments": {"x": ' + value + "}}")
    piece = read(templates.QWEN3, [text])
    assert piece.text == text or json.loads(piece.calls[0].arguments)
    str(piece).encode()


WORDS = ["<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "<|python_tag|>", "<function=now>"]
WORDS += [
    "</function>",
    ONE,
    TWO,
    f"[{ONE}]",
    "{",
    "}",
    "[",
    '"',
    "\\",
    "\n",
    " ",
    ";",
    "a",
    "名",
    '{"name"',
    "<",
    "now{}",
]


@settings(max_examples=400, deadline=None)
@given(
    source=st.sampled_from([templates.QWEN3, LLAMA, MISTRAL, CODER, PLAIN]),
    words=st.lists(st.sampled_from(WORDS), max_size=12),
    cuts=st.lists(st.integers(0, 200), max_size=12),
    inside=st.booleans(),
)
def test_how_an_answer_is_cut_changes_nothing_and_nothing_is_lost(
    source: str, words: list[str], cuts: list[int], inside: bool
) -> None:
    text, prompt = "".join(words), "<think>\n" if inside else ""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    whole = read(source, [text], prompt)
    assert read(source, pieces, prompt) == read(source, list(text), prompt) == whole
    if not whole.calls and not whole.reasoning and "think>" not in text:
        assert whole.text == text or inside
    shown = whole.text + whole.reasoning
    assert all(letter in text for letter in shown)
    if not whole.calls and "think>" not in text:
        assert shown.split() == text.split()
