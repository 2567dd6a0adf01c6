"""The heads that a folder holds beside its model's own class: which tensors they are, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from lodger.catalogue.facts import ModelFacts
from lodger.errors import DamagedWeights
from lodger.runtime.heads import (
    ClassifierHead,
    ColbertHead,
    EmbeddingHead,
    Head,
    HeadWeights,
    LastTokenHead,
    SparseHead,
)
from lodger.runtime.layers import Placement
from lodger.runtime.weights import Checkpoint, read_file

LM_HEAD, CLASSIFIER = "lm_head.weight", "score.weight"


class StoredHead(NamedTuple):
    """A linear layer in its stored dtype."""

    weight: torch.Tensor  # [out, hidden_size]
    bias: torch.Tensor | None

    @property
    def placed_bytes(self) -> int:
        """Bytes on the device, where heads are float32."""
        return 4 * (self.weight.numel() + (0 if self.bias is None else self.bias.numel()))


def read_heads(
    facts: ModelFacts, model: PreTrainedModel, checkpoint: Checkpoint, answers: tuple[int, int] | None
) -> dict[str, StoredHead]:
    """By what they make: "sparse", "colbert" and "score".

    Args:
        answers: token ids of "yes" and "no", of a "yes-no" reranker. No other rows of its output projection are kept.

    Raises:
        DamagedWeights: one is missing or of another shape.
    """
    heads: dict[str, StoredHead] = {name: _token_head(facts, name) for name in facts.token_heads}
    if answers is not None:
        heads["score"] = StoredHead(output_projection(facts, model, checkpoint)[list(answers)], None)
    elif facts.causal and facts.rerank_method == "cross-encoder":
        heads["score"] = _checked(CLASSIFIER, StoredHead(_tensor(checkpoint, CLASSIFIER), None), facts, rows=1)
    return heads


def output_projection(facts: ModelFacts, model: PreTrainedModel, checkpoint: Checkpoint) -> torch.Tensor:
    """[vocab_size, hidden_size] from hidden states to logits: the embedding's table where config.json ties them.

    Raises:
        DamagedWeights: it is missing or of another shape.
    """
    if not facts.tied_embeddings:
        return _checked(LM_HEAD, StoredHead(_tensor(checkpoint, LM_HEAD), None), facts, facts.vocab_size).weight
    table = model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    return table


def make_heads(
    facts: ModelFacts, model: PreTrainedModel, stored: dict[str, StoredHead], placement: Placement
) -> dict[str, Head]:
    """All that an encoder can make of its hidden states. `model` has its weights on the device."""
    weights = {
        name: HeadWeights(
            placement.tensor(head.weight, torch.float32),
            None if head.bias is None else placement.tensor(head.bias, torch.float32),
        )
        for name, head in stored.items()
    }
    heads: dict[str, Head] = {}
    if "score" in weights:
        heads["score"] = LastTokenHead(weights["score"])
    elif facts.rerank_method == "cross-encoder":
        heads["score"] = ClassifierHead(model)
    else:
        heads["dense"] = EmbeddingHead(facts.pooling or "mean", facts.normalize)
    if "sparse" in weights:
        heads["sparse"] = SparseHead(weights["sparse"])
    if "colbert" in weights:
        heads["colbert"] = ColbertHead(weights["colbert"])
    return heads


def _token_head(facts: ModelFacts, name: str) -> StoredHead:
    file = f"{name}_linear.safetensors"
    found = read_file(Path(facts.path) / file)
    if found.keys() != {"weight", "bias"}:
        raise DamagedWeights(f"{file} holds {', '.join(sorted(found))[:80] or 'nothing'}, not weight and bias.")
    return _checked(file, StoredHead(found["weight"], found["bias"]), facts, rows=1 if name == "sparse" else None)


def _checked(name: str, head: StoredHead, facts: ModelFacts, rows: int | None) -> StoredHead:
    shape, bias = head.weight.shape, head.bias
    expected = (shape[0] if rows is None and shape else rows, facts.hidden_size)
    fits = tuple(shape) == expected and head.weight.is_floating_point()
    if not fits or (bias is not None and (bias.shape != shape[:1] or not bias.is_floating_point())):
        raise DamagedWeights(
            f"{name} has the shape {list(shape)}, and the model asks for {rows or 'any'} x {facts.hidden_size}.",
            hint="Fetch it again, from the same model.",
        )
    return head


def _tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    if name not in checkpoint.tensors:
        raise DamagedWeights(f"the weights lack {name}.", hint="Fetch the model's files again.")
    return checkpoint.tensors[name]
