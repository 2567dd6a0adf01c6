"""The model families that are served, one row each. What can be read from a folder is not here.

The runtime adds the torch classes on its side, under the same `model_type`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lodger.catalogue.config_files import Fields
from lodger.catalogue.facts import Pooling
from lodger.catalogue.gte import as_gte
from lodger.tasks import Kind


@dataclass(frozen=True)
class Family:
    """What config.json and the sentence-transformers files do not say about a `model_type`."""

    architectures: dict[str, Kind]  # as config.json spells them
    pooling: Pooling | None = None  # of an embedding model whose folder does not say
    positions_after_pad: bool = False  # positions count from pad_token_id + 1, which shortens the usable context
    tied_by_default: bool = False  # transformers' default where config.json has no tie_word_embeddings
    causal: bool = False  # a decoder, with rotary positions
    yes_no: bool = False  # rerankers are made of it that answer yes or no to the official template
    token_heads: bool = False  # embedders of it may have bge-m3's heads over tokens
    rotary: bool = False  # an encoder with rotary positions
    native: Callable[[Fields], Fields] = lambda config: config  # config.json as transformers' own class takes it


def _decoder(prefix: str, yes_no: bool = False) -> Family:
    # The bare model has no output projection: embedders are saved as it, and their last token knows the whole text.
    return Family({f"{prefix}ForCausalLM": "chat", f"{prefix}Model": "embedding"}, "last", causal=True, yes_no=yes_no)


def _encoder(prefix: str, pooling: Pooling, positions_after_pad: bool, token_heads: bool = False) -> Family:
    architectures: dict[str, Kind] = {
        f"{prefix}Model": "embedding",
        f"{prefix}ForMaskedLM": "embedding",
        f"{prefix}ForSequenceClassification": "rerank",
    }
    return Family(architectures, pooling, positions_after_pad, tied_by_default=True, token_heads=token_heads)


def _gte(prefix: str, native: Callable[[Fields], Fields] = lambda config: config) -> Family:
    # gte-multilingual-base names a token classifier too, its head for weights of tokens. Only its vectors are served.
    encoder = _encoder(prefix, "cls", positions_after_pad=False)
    architectures: dict[str, Kind] = {**encoder.architectures, f"{prefix}ForTokenClassification": "embedding"}
    return replace(encoder, architectures=architectures, rotary=True, native=native)


# Pooling defaults: sentence-transformers takes the mean where a folder says nothing; the XLM-RoBERTa embedders that are
# published without its files (bge-m3 in FlagEmbedding's layout) take the first token.
FAMILIES: dict[str, Family] = {
    "qwen3": _decoder("Qwen3", yes_no=True),
    "qwen2": _decoder("Qwen2"),
    "llama": _decoder("Llama"),
    "bert": _encoder("Bert", "mean", positions_after_pad=False),
    "roberta": _encoder("Roberta", "mean", positions_after_pad=True),
    "xlm-roberta": _encoder("XLMRoberta", "cls", positions_after_pad=True, token_heads=True),
    "gte": _gte("Gte"),
    "new": _gte("New", as_gte),
}

# Where checkpoints keep the output projection over the vocabulary, with what belongs to it.
LANGUAGE_HEADS = ("lm_head.", "cls.predictions.")


def served() -> str:
    """The families as a person reads them: ``'bert, llama, qwen2, ...'``."""
    return ", ".join(sorted(FAMILIES))
