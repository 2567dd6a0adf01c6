"""Text comes token by token, whole characters only, and adds up to the decoding of all tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.text.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from lodger.text.tokenizer import Tokenizer

TEXTS = (
    "The capital of France is Paris.",
    "你好，中国的首都是哪里？",
    "😀👩‍👩‍👧 \u00e9 Ωmega 한국어",
    "  spaces\n\n and\tlines  ",
    "你" * 100 + "😀" * 100,
)


@cache
def byte_level() -> Tokenizer:
    return Tokenizer(tiny_tokenizers.qwen())


@cache
def window() -> Tokenizer:
    return Tokenizer(tiny_tokenizers.qwen())


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return streamed(tokenizer.detokenizer(), ids)


def windowed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """As for decoders that are not known."""
    return streamed(WindowDetokenizer(tokenizer._decode_window), ids)


def streamed(stream: Detokenizer, ids: list[int]) -> list[str]:
    return [*(stream.push(token) for token in ids), stream.flush()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_text_comes_back_in_whole_characters(tiny: Callable[..., Path], family: str, text: str) -> None:
    tokenizer = Tokenizer.load(tiny(family))
    found = pieces(tokenizer, tokenizer.encode(text, special=False))
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert found[-1] == ""


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 488), max_size=80))
def test_any_tokens_add_up_to_their_decoding(ids: list[int]) -> None:
    assert isinstance(byte_level().detokenizer(), ByteDetokenizer)
    assert "".join(pieces(byte_level(), ids)) == byte_level().decode(ids)
    assert "".join(windowed(window(), ids)) == byte_level().decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=30, max_size=120))
def test_garbage_bytes_add_up_to_their_decoding_too(values: list[int]) -> None:
    """Bytes that are no text at all keep the window unfinished for long."""
    ids = [value for value in values if value < 256]
    assert "".join(pieces(byte_level(), ids)) == byte_level().decode(ids)
    assert "".join(windowed(window(), ids)) == byte_level().decode(ids)


def test_a_text_is_shown_as_early_as_it_can_be() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a你b", special=False)
    found = pieces(tokenizer, ids)
    assert found[0] == "a"
    assert "你" in found or "你b" in found


def test_an_unfinished_character_at_the_end_is_shown_by_flush() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("x😀", special=False)[:-1]
    *shown, rest = pieces(tokenizer, ids)
    assert "".join(shown) == "x"
    assert rest == "\ufffd"


def test_special_tokens_are_hidden_and_other_added_ones_shown() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("<|im_start|><think>hi<|im_end|><|im_end|> you", special=False)
    assert "".join(pieces(tokenizer, ids)) == "".join(windowed(window(), ids)) == "<think>hi you"


def test_other_decoders_keep_their_spaces(tiny: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.load(tiny("bge-m3"))
    ids = tokenizer.encode("The capital of France is Paris.", special=True)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids) == "The capital of France is Paris."


def test_work_for_each_token_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(tiny_tokenizers.qwen())
    longest = 0

    def decode(ids: list[int], *, skip_special: bool = True) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return str(tokenizer._backend.decode(ids, skip_special_tokens=skip_special))

    monkeypatch.setattr(tokenizer, "decode", decode)
    first_byte = tokenizer._backend.token_to_id("ä")  # 0xE4, with which three bytes begin
    windowed(tokenizer, [first_byte] * 500 + tokenizer.encode(TEXTS[0] * 5, special=False))
    assert 32 <= longest <= 33
