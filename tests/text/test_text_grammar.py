"""Whatever is chosen of what a guide allows, the text is in its form; with every kind of tokenizer that chats have."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import tiny_tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lodger.errors import InvalidRequest, Overloaded
from lodger.tasks import Constraint
from lodger.text.grammar import Grammars, GrammarThreads, Guide
from lodger.text.tokenizer import Tokenizer

MAKERS: dict[str, Callable[[], object]] = {
    "qwen": tiny_tokenizers.qwen,
    "smollm": tiny_tokenizers.smollm,
    "unigram": tiny_tokenizers.xlm_roberta,
}
ENDS = {"qwen": "<|im_end|>", "smollm": "<|im_end|>", "unigram": "</s>"}


@cache
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer(MAKERS[name]())


@pytest.fixture(scope="module")
def threads() -> Iterator[GrammarThreads]:
    made = GrammarThreads()
    yield made
    made.close()


@pytest.fixture(scope="module")
def grammars(threads: GrammarThreads) -> Callable[[str], Grammars]:
    @cache
    def of(name: str) -> Grammars:
        own = tokenizer(name)
        return Grammars(own, own.vocab_size + 7, [own.id_of(ENDS[name]) or 0], threads)

    return of


def guide(grammars: Grammars, constraint: Constraint, count: int = 1) -> list[Guide]:
    return asyncio.run(grammars.guides(constraint, count))


def allowed(mask: bytes) -> list[int]:
    return [8 * place + bit for place, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]


def walk(own: Guide, name: str, seed: int, most: int = 300) -> str:
    """The text of tokens that are allowed, chosen blindly, until nothing more may follow."""
    chooser, tokens = random.Random(seed), []
    while not own.over and own.error is None and len(tokens) < most:
        tokens.append(chooser.choice(allowed(own.mask)))
        own.advance(tokens[-1]).result(20)
    assert own.error is None
    assert own.over, "it never ends"
    special = tokenizer(name).special
    return b"".join(tokenizer(name).bytes_of(token) for token in tokens if token not in special).decode()


@pytest.mark.parametrize("name", MAKERS)
def test_blind_choices_match_regular_expressions(name: str, grammars: Callable[[str], Grammars]) -> None:
    for pattern in ("[0-9]{4}[a-c]{2}", "(documents|no|rank)", "[a-z ]{2,9}[.?]", "[a-e]{3}(,[a-e]{3}){0,2}"):
        for seed, own in enumerate(guide(grammars(name), Constraint(kind="regex", text=pattern), 6)):
            found = walk(own, name, seed)
            assert re.fullmatch(pattern, found), found


SCHEMAS = st.recursive(
    st.sampled_from(
        [{"type": "boolean"}, {"type": "integer", "minimum": -9, "maximum": 99}, {"enum": ["a", 1, None, "中文"]}]
        + [{"type": "string", "maxLength": 4}, {"type": "null"}, {"const": {"x": [1]}}]
    ),
    lambda inner: st.one_of(
        inner.map(lambda one: {"type": "array", "items": one, "maxItems": 2}),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
        st.dictionaries(st.sampled_from("pqr"), inner, min_size=1, max_size=2).map(
            lambda some: {
                "type": "object",
                "properties": some,
                "required": sorted(some)[:1],
                "additionalProperties": False,
            }
        ),
    ),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 1000), name=st.sampled_from(["qwen", "smollm"]))
def test_blind_choices_are_json_by_any_schema(
    schema: dict[str, object], seed: int, name: str, grammars: Callable[[str], Grammars]
) -> None:
    own = {"x-guidance": {"whitespace_pattern": " "}, **schema}
    [only] = guide(grammars(name), Constraint(kind="json", text=json.dumps(own)))
    assert fits(json.loads(walk(only, name, seed)), schema)


def fits(value: object, schema: dict[str, object]) -> bool:
    """As much of JSON Schema as `SCHEMAS` uses."""
    match schema:
        case {"enum": list(values)}:
            return any(value == one and type(value) is type(one) for one in values)
        case {"const": one}:
            return value == one
        case {"anyOf": list(ways)}:
            return any(fits(value, one) for one in ways)
        case {"type": "array", "items": dict(inner)}:
            return isinstance(value, list) and len(value) <= 2 and all(fits(one, inner) for one in value)
        case {"type": "object", "properties": dict(inner), "required": list(required)}:
            whole = isinstance(value, dict) and set(required) <= set(value) <= set(inner)
            return whole and all(fits(one, inner[key]) for key, one in value.items())  # type: ignore[union-attr]
        case {"type": "string"}:
            return isinstance(value, str) and len(value) <= 4
        case {"type": "integer"}:
            return type(value) is int and -9 <= value <= 99
    return value is None if schema["type"] == "null" else isinstance(value, bool)


@pytest.mark.parametrize("name", MAKERS)
def test_words_that_a_tokenizer_would_change_are_spelt_as_they_are(
    name: str, grammars: Callable[[str], Grammars]
) -> None:
    """One puts a space before every text, another composes what stands there as two characters."""
    words = ["capital", "the capital", "rue"] + ["e\u0301te\u0301 \u212b"] * (name != "unigram")
    for form in words:
        [only] = guide(grammars(name), Constraint(kind="lark", text=f"start: {json.dumps(form)}"))
        assert walk(only, name, 3) == form


def test_schemas_of_any_depth_are_read_or_refused(grammars: Callable[[str], Grammars]) -> None:
    """Two readers look at each, with limits of their own."""
    refused = []
    for depth in (20, 100, 127, 200, 900, 5000, 9000):
        text = '{"type":"array","items":' * depth + "{}" + "}" * depth
        try:
            guide(grammars("qwen"), Constraint(kind="json", text=text))
        except InvalidRequest:
            refused.append(depth)
    assert refused[-1] == 9000
    assert 20 not in refused


def test_white_space_between_parts_of_json_ends(grammars: Callable[[str], Grammars]) -> None:
    own = tokenizer("qwen")
    [blank] = own.encode("\n", special=False)
    [only] = guide(grammars("qwen"), Constraint(kind="json", text='{"type": "array", "items": {"type": "integer"}}'))
    only.advance(own.encode("[", special=False)[0]).result(20)
    lines = 0
    while blank in allowed(only.mask):
        only.advance(blank).result(20)
        lines += 1
    assert lines == 64


def test_the_guides_of_one_request_know_nothing_of_each_other(grammars: Callable[[str], Grammars]) -> None:
    first, second = guide(grammars("qwen"), Constraint(kind="regex", text="[ab][cd]"), 2)
    before = second.mask
    first.advance(allowed(first.mask)[0]).result(20)
    assert first.mask != before
    assert second.mask == before


def test_an_end_comes_only_where_the_form_is_met(grammars: Callable[[str], Grammars]) -> None:
    own = tokenizer("qwen")
    end = own.id_of("<|im_end|>")
    [only] = guide(grammars("qwen"), Constraint(kind="regex", text="a{2,4}"))
    [a] = own.encode("a", special=False)
    met = []
    while not only.over:
        met.append(end in allowed(only.mask))
        only.advance(a).result(20)
    assert met == [False, False, True, True]
    [only] = guide(grammars("qwen"), Constraint(kind="regex", text="a{2,4}"))
    for token in (a, a, end):
        only.advance(token or 0).result(20)
    assert (only.over, only.error) == (True, None)


def test_a_token_that_was_not_allowed_is_an_error_and_no_end(grammars: Callable[[str], Grammars]) -> None:
    [only] = guide(grammars("qwen"), Constraint(kind="regex", text="[0-9]+"))
    only.advance(tokenizer("qwen").encode("x", special=False)[0]).result(20)
    assert only.error is not None
    assert "cannot be kept to" in only.error.message
    assert not only.over


def test_a_tokenizer_without_an_end_has_forms_too(threads: GrammarThreads) -> None:
    own = tokenizer("qwen")
    grammars = Grammars(own, own.vocab_size, [], threads)
    [only] = guide(grammars, Constraint(kind="regex", text="[xy]{3}"))
    assert len(only.mask) >= own.vocab_size / 8
    assert re.fullmatch("[xy]{3}", walk(only, "qwen", 1))


def test_where_too_many_take_long_others_wait(threads: GrammarThreads, grammars: Callable[[str], Grammars]) -> None:
    form = Constraint(kind="regex", text="a")
    now = 1e9
    threads._begun.update({object(): now for _ in range(4)})
    try:
        guide(grammars("qwen"), form)
        threads._begun.update(dict.fromkeys(threads._begun, -1e9))
        with pytest.raises(Overloaded, match="4 forms of answers"):
            guide(grammars("qwen"), form)
    finally:
        threads._begun.clear()
    assert guide(grammars("qwen"), form)


def test_bytes_of_tokens_are_their_text(grammars: Callable[[str], Grammars]) -> None:
    words = "Wie geht es dir? 今日はいい天気ですね。"
    for name, before in (("qwen", ""), ("smollm", ""), ("unigram", " ")):
        own = tokenizer(name)
        assert b"".join(map(own.bytes_of, own.encode(words, special=False))).decode() == before + words
    own = tokenizer("qwen")
    assert own.bytes_of(own.id_of("<|im_end|>") or 0) == b"<|im_end|>"
    assert own.bytes_of(own.vocab_size + 3) == b""


def test_special_tokens_are_shown_where_they_mean_something() -> None:
    for name in MAKERS:
        own = tokenizer(name)
        mark = ENDS[name]
        ids = [*own.encode("Paris is", special=False), own.id_of(mark) or 0, *own.encode("near", special=False)]
        for shown, expected in (((), ""), ((mark, "<no token>"), mark)):
            detokenizer = own.detokenizer(shown)
            text = "".join(map(detokenizer.push, ids)) + detokenizer.flush()
            assert re.sub(" ", "", text) == f"Parisis{expected}near"
