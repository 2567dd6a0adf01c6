"""Write a random reranker in the format of bge-reranker-v2-m3, small enough for a CPU, the same for every server.

XLM-RoBERTa, 6 layers of 384, vocabulary 8,002, 512 tokens, one label. Its scores mean nothing; its work is real.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForSequenceClassification

from bench.load import WORDS

VOCABULARY, CONTEXT = 8002, 512


def _tokenizer() -> Tokenizer:
    """Unigram with XLM-RoBERTa's special tokens. The load's words are one token each; filler makes up the size."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = sorted({f"▁{word}" for word in WORDS})
    letters = sorted({*"▁abcdefghijklmnopqrstuvwxyz"})
    vocabulary = [(token, 0.0) for token in special] + [(word, -4.0) for word in words]
    vocabulary += [(letter, -8.0) for letter in letters]
    vocabulary += [(f"▁▁{i}", -20.0) for i in range(VOCABULARY - len(vocabulary) - 1)] + [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True)])
    return tokenizer


def make(folder: Path) -> None:
    torch.manual_seed(0)
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), model_max_length=CONTEXT, **tokens).save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=CONTEXT + 2,
        type_vocab_size=1,
        pad_token_id=1,
        num_labels=1,
    )
    XLMRobertaForSequenceClassification(config).eval().save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
