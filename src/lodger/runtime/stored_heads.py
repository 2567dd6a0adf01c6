"""The heads that a folder holds beside its model's own class: which tensors they are, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from lodger.catalogue.facts import ModelFacts, TokenHead
from lodger.catalogue.token_heads import STEMS
from lodger.errors import DamagedWeights
from lodger.runtime.heads import (
    ClassifierHead,
    ColbertHead,
    EmbeddingHead,
    Head,
    HeadWeights,
    SparseHead,
    YesNoHead,
)
from lodger.runtime.layers import Placement
from lodger.runtime.weights import Checkpoint, read_file

LM_HEAD = "lm_head.weight"


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
    return heads


def output_projection(facts: ModelFacts, model: PreTrainedModel, checkpoint: Checkpoint) -> torch.Tensor:
    """[vocab_size, hidden_size] from hidden states to logits: the embedding's table where config.json ties them.

    Raises:
        DamagedWeights: it is missing or of another shape.
    """
    if not facts.tied_embeddings:
        if LM_HEAD not in checkpoint.tensors:
            raise DamagedWeights(f"the weights lack {LM_HEAD}, and config.json does not tie it to the embedding.")
        return _checked(LM_HEAD, checkpoint.tensors[LM_HEAD], (facts.vocab_size, facts.hidden_size))
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
        heads["score"] = YesNoHead(weights["score"])
    elif facts.rerank_method == "cross-encoder":
        heads["score"] = ClassifierHead(model)
    else:
        heads["dense"] = EmbeddingHead(facts.pooling or "mean", facts.normalize)
    if "sparse" in weights:
        heads["sparse"] = SparseHead(weights["sparse"])
    if "colbert" in weights:
        heads["colbert"] = ColbertHead(weights["colbert"])
    return heads


def _token_head(facts: ModelFacts, name: TokenHead) -> StoredHead:
    file = f"{STEMS[name]}.safetensors"
    found = read_file(Path(facts.path) / file)
    if found.keys() != {"weight", "bias"} or found["bias"].dim() != 1:
        raise DamagedWeights(f"{file} holds {str(sorted(found))[1:-1][:80] or 'nothing'}, not a weight and a bias.")
    rows = 1 if name == "sparse" else len(found["bias"])
    return StoredHead(_checked(file, found["weight"], (rows, facts.hidden_size)), found["bias"])


def _checked(name: str, weight: torch.Tensor, expected: tuple[int, int]) -> torch.Tensor:
    if weight.shape != expected or not weight.is_floating_point():
        raise DamagedWeights(
            f"{name} has the shape {list(weight.shape)}, the model asks for {list(expected)} of floats.",
            hint="Fetch it again, from the same model.",
        )
    return weight
