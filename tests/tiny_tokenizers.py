"""Small tokenizers built like those of Qwen, SmolLM, XLM-RoBERTa and BERT: same parts, small vocabularies."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    "The capital of France is Paris. What is the capital of China? Beijing is the capital of China, "
    "and the Great Wall is near it. 你好，Xinference。中国的首都是哪里？北京是中国的首都。上海是中国最大的城市。"
    "请用中文介绍一下你自己。我是一个语言模型，可以回答问题。A model serves a chat, an embedding and a rerank out of "
    "the memory that other jobs leave free on a card. Retrieval finds the documents which answer a question; the "
    "reranker scores each document against the query. Numbers: 0 1 2 3 4 5 6 7 8 9, 2026. Wie geht es dir? Où est la "
    "bibliothèque? Как дела? 今日はいい天気ですね。 user assistant system tool function "
    "arguments name content role think"
)
# Qwen's own splitting rule (tokenizer.json of Qwen2 and Qwen3).
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")


def qwen() -> Tokenizer:
    """Byte-level BPE with Qwen's split, chat marks as special tokens, tool and thinking marks as plain added ones."""
    return Tokenizer.from_str(_qwen_json())


def qwen_embedding() -> Tokenizer:
    """Qwen's, with <|endoftext|> after every text."""
    tokenizer = qwen()
    end = "<|endoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return tokenizer


def qwen_reranker() -> Tokenizer:
    """Qwen's, with "yes" and "no" as one token each."""
    return Tokenizer.from_str(_qwen_json("yes\nno\n" * 50))


def smollm() -> Tokenizer:
    """Byte-level BPE with SmolLM's split (single digits); its special tokens come first in the vocabulary."""
    return Tokenizer.from_str(_smollm_json())


def xlm_roberta() -> Tokenizer:
    """Unigram with XLM-RoBERTa's special tokens and pair template (`<s> A </s></s> B </s>`)."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = Counter(f"▁{word}" for word in _words())
    chars = sorted({char for word in words for char in word})
    vocab = [(token, 0.0) for token in special]
    vocab += [(word, -4.0 + 0.1 * math.log(count)) for word, count in sorted(words.items()) if len(word) > 2]
    vocab += [(char, -8.0) for char in chars]
    vocab.append(("<mask>", 0.0))
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True)])
    return tokenizer


def bert() -> Tokenizer:
    """WordPiece, lower-casing, with BERT's pair template and segment ids, and the padding and truncation to 128 that
    all-MiniLM-L6-v2 leaves in its file."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word.strip(".,:;?！。，？").lower() for word in _words()]
    chars = sorted({char for char in TEXT.lower() if not char.isspace()})
    tokens = [*special, *chars, *(f"##{char}" for char in chars), *sorted({word for word in words if len(word) > 1})]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128, pad_token="[PAD]")
    return tokenizer


def _words() -> list[str]:
    return TEXT.split()


@cache
def _qwen_json(more_text: str = "") -> str:
    tokenizer = _byte_level(_QWEN_SPLIT)
    tokenizer.normalizer = normalizers.NFC()
    _train(tokenizer, special=[], text=TEXT + more_text)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _QWEN_SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _QWEN_MARKS])
    text: str = tokenizer.to_str()
    return text


@cache
def _smollm_json() -> str:
    tokenizer = _byte_level(None)
    _train(tokenizer, special=list(_QWEN_SPECIAL))
    text: str = tokenizer.to_str()
    return text


def _byte_level(split: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    first = (
        pre_tokenizers.Split(Regex(split), behavior="isolated")
        if split
        else pre_tokenizers.Digits(individual_digits=True)
    )
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, last])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train(tokenizer: Tokenizer, special: list[str], text: str = TEXT) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 2, trainer)
