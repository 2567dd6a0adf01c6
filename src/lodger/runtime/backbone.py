"""From packed tokens to hidden states: transformers' own forward for any family, with our attention and layers."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from lodger.runtime.int4_stored import StoredInt4Linear
from lodger.runtime.layers import Placement
from lodger.runtime.packed import PackedBatch


class Backbone(Protocol):
    """Runs inside of `context.attending`, which knows where sequences begin."""

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states [T, hidden_size]."""
        ...


class TransformersBackbone:
    """The generic path: the model class itself, called with one row of packed tokens."""

    def __init__(self, model: torch.nn.Module, takes_token_types: bool) -> None:
        self._model = model
        self._takes_token_types = takes_token_types

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        # Positions and token types are always given: what the models make of None assumes one text per row.
        inputs: dict[str, Any] = {"input_ids": batch.tokens[None], "position_ids": batch.positions[None]}
        if self._takes_token_types and batch.token_types is not None:
            inputs["token_type_ids"] = batch.token_types[None]
        else:
            inputs["use_cache"] = False
        hidden: torch.Tensor = self._model(**inputs, return_dict=False)[0]
        return hidden[0]


def place(module: torch.nn.Module, placement: Placement) -> None:
    """Move a module tree to the device in place, layer by layer; originals go as their copies come."""
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.Linear | StoredInt4Linear):
            setattr(module, name, placement.linear([child.weight], [child.bias]))
        elif isinstance(child, torch.nn.Embedding):
            setattr(module, name, placement.lookup(child.weight))
        else:
            place(child, placement)
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, torch.nn.Parameter(placement.tensor(parameter), requires_grad=False))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(placement.device))
