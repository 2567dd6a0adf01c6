"""What becomes of hidden states: one vector, one score, or the logits of the next token."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize

from lodger.catalogue.facts import Pooling


def pool(hidden: torch.Tensor, offsets: tuple[int, ...], how: Pooling) -> torch.Tensor:
    """One float32 row for each of N texts.

    Args:
        hidden: [T, hidden_size] of the packed texts.
        offsets: N + 1.
        how: the first token's state ("cls"), the last one's, or the mean of all.
    """
    if how == "mean":
        lengths = torch.tensor([end - start for start, end in zip(offsets, offsets[1:], strict=False)])
        return torch.segment_reduce(hidden.float(), "mean", lengths=lengths.to(hidden.device), axis=0)
    at = offsets[:-1] if how == "cls" else [end - 1 for end in offsets[1:]]
    return hidden.index_select(0, torch.tensor(at, device=hidden.device)).float()


class EmbeddingHead:
    """Hidden states -> [N, dimensions] float32 vectors, of length 1 if the model says so."""

    def __init__(self, pooling: Pooling, unit_length: bool) -> None:
        self._pooling: Pooling = pooling
        self._unit_length = unit_length

    def __call__(self, hidden: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
        vectors = pool(hidden, offsets, self._pooling)
        return normalize(vectors, dim=-1) if self._unit_length else vectors


class ClassifierHead:
    """Hidden states -> [N, 1] float32 logits of a cross-encoder with one label.

    The classifiers of all families look at the first token only: some through the base model's pooler (BERT), some with
    a dense layer of their own (RoBERTa), which takes features [N, 1, hidden_size].
    """

    def __init__(self, model: Any) -> None:
        self._pooler = getattr(model.base_model, "pooler", None)
        self._classifier = model.classifier

    def __call__(self, hidden: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
        first = hidden.index_select(0, torch.tensor(offsets[:-1], device=hidden.device))[:, None]
        logits: torch.Tensor = self._classifier(first if self._pooler is None else self._pooler(first))
        return logits.float()
