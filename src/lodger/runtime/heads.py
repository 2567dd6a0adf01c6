"""What becomes of hidden states: vectors, weights of tokens, scores. Every job of an encoder names the heads it wants.

A head computes in float32, its own weights included: they are small beside the model's, and what a head makes is
compared by small differences.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn.functional import linear, normalize

from lodger.catalogue.facts import Pooling
from lodger.runtime.upload import upload

_LEAST_NORM = 1e-12  # as in torch.nn.functional.normalize


class Head(Protocol):
    """Hidden states of packed texts -> some rows of numbers for each text."""

    def __call__(self, hidden: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
        """
        Args:
            hidden: [T, hidden_size]: the texts that want this head, end to end.
            offsets: one more than texts; text n is hidden[offsets[n]:offsets[n + 1]].

        Returns:
            [rows of all texts, width] float32, in the order of the texts.
        """
        ...

    def rows(self, tokens: int) -> int:
        """How many rows a text of so many tokens gets; known without asking the device."""
        ...


class HeadWeights:
    """The float32 weights of one head on the device: x @ weight.T + bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden.float(), self.weight, self.bias)


class _OneRow:
    """A head of one row for each text."""

    def rows(self, tokens: int) -> int:
        return 1


def pool(hidden: torch.Tensor, offsets: tuple[int, ...], how: Pooling) -> torch.Tensor:
    """One float32 row for each of N texts.

    Args:
        hidden: [T, hidden_size] of the packed texts, none of them empty.
        offsets: N + 1.
        how: the first token's state ("cls"), the last one's, or the mean of all.
    """
    if how == "mean":
        return _reduced(hidden.float(), "mean", _lengths(offsets, hidden.device))
    at = offsets[:-1] if how == "cls" else [end - 1 for end in offsets[1:]]
    return hidden.index_select(0, upload(at, torch.int64, hidden.device)).float()


class EmbeddingHead(_OneRow):
    """The text's vector, [N, dimensions], of length 1 if the model says so."""

    def __init__(self, pooling: Pooling, unit_length: bool) -> None:
        self._pooling: Pooling = pooling
        self._unit_length = unit_length

    def __call__(self, hidden: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
        vectors = pool(hidden, offsets, self._pooling)
        return normalize(vectors, dim=-1) if self._unit_length else vectors


class ClassifierHead(_OneRow):
    """[N, 1] logits of a cross-encoder with one label.

    The classifiers of encoder families look at the first token only: some through the base model's pooler (BERT), some
    with a dense layer of their own (RoBERTa), which takes features [N, 1, hidden_size].
    """

    def __init__(self, model: Any) -> None:
        self._pooler = getattr(model.base_model, "pooler", None)
        self._classifier = model.classifier

    def __call__(self, hidden: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
        first = hidden.index_select(0, upload(offsets[:-1], torch.int64, hidden.device))[:, None]
        logits: torch.Tensor = self._classifier(first if self._pooler is None else self._pooler(first))
        return logits.float()


class YesNoHead(_OneRow):
    """[N, 1]: how far the logit of "yes" is before that of "no" as the next token.

    Softmax over the two is the sigmoid of their difference.

    Args:
        weights: their rows of the output projection, "yes" first.
    """

    def __init__(self, weights: HeadWeights) -> None:
        self._weights = weights

    def __call__(self, hidden: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
        logits = self._weights(pool(hidden, offsets, "last"))
        return logits[:, :1] - logits[:, 1:]


class SparseHead:
    """A weight of 0 or more for every token, [T, 1] (bge-m3, arXiv 2402.03216: lexical retrieval)."""

    def __init__(self, weights: HeadWeights) -> None:
        self._weights = weights

    def __call__(self, hidden: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
        return self._weights(hidden).relu_()

    def rows(self, tokens: int) -> int:
        return tokens


class ColbertHead:
    """A vector of length 1 for every token but the first, [T - N, dimensions] (bge-m3: multi-vector retrieval)."""

    def __init__(self, weights: HeadWeights) -> None:
        self._weights = weights

    @property
    def dimensions(self) -> int:
        return len(self._weights.weight)

    def __call__(self, hidden: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
        spans = zip(offsets, offsets[1:], strict=False)
        kept = torch.cat([torch.arange(start + 1, end) for start, end in spans])
        kept = (kept.pin_memory() if hidden.is_cuda else kept).to(hidden.device, non_blocking=True)
        vectors = self._weights(hidden.index_select(0, kept))
        return vectors.div_(vectors.norm(dim=-1, keepdim=True).clamp_(min=_LEAST_NORM))

    def rows(self, tokens: int) -> int:
        return tokens - 1


class LateInteraction(_OneRow):
    """[N, 1] similarities of texts to one query by the vectors of their tokens (ColBERT, arXiv 2004.12832).

    For every vector of the query the most similar one of the text; of these similarities the mean (FlagEmbedding's
    `colbert_score`). The sum is made on the device, so a text costs one number to copy back.

    Args:
        query: [Q, dimensions] that `colbert` made of the query; it may still lie in RAM.
    """

    def __init__(self, colbert: ColbertHead, query: torch.Tensor) -> None:
        self._colbert, self._query = colbert, query

    def __call__(self, hidden: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
        self._query = self._query.to(hidden.device)
        vectors = self._colbert(hidden, offsets)
        lengths = _lengths(offsets, hidden.device) - 1
        best = hidden.new_zeros((len(lengths), 1), dtype=torch.float32)
        # So many of the query's vectors at once that the similarities are no larger than the vectors.
        for part in torch.split(self._query, self._colbert.dimensions):
            most = _reduced(vectors @ part.T, "max", lengths)
            best += most.sum(dim=1, keepdim=True)
        return best.div_(len(self._query))


def _lengths(offsets: tuple[int, ...], device: torch.device) -> torch.Tensor:
    lengths = [end - start for start, end in zip(offsets, offsets[1:], strict=False)]
    return upload(lengths, torch.int64, device)


def _reduced(rows: torch.Tensor, how: str, lengths: torch.Tensor) -> torch.Tensor:
    """`unsafe`: the sum of the lengths is not read back from the device to be checked."""
    return torch.segment_reduce(rows, how, lengths=lengths, axis=0, unsafe=True)
