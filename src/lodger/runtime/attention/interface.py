"""transformers' modelling code, attending through our plan.

The function is registered under our own name through the public `AttentionInterface`. No mask function is registered
under that name, which makes transformers build no mask at all: sequences are told apart by the plan.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from lodger.errors import UnknownArchitecture
from lodger.runtime.context import current_plan

NAME = "lodger"
# Keyword arguments that modelling code passes along and that change nothing for a packed forward without dropout.
_HARMLESS = {"dropout", "is_causal", "position_ids", "use_cache", "cu_seq_lens_q", "cu_seq_lens_k", "output_attentions"}


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """The signature that `AttentionInterface` asks for: query [1, heads, T, head_dim] to [1, T, heads, head_dim].

    Raises:
        UnknownArchitecture: the model asks for a kind of attention that we would silently get wrong.
    """
    unknown = sorted(name for name, given in rest.items() if given is not None and name not in _HARMLESS)
    if attention_mask is not None or unknown:
        asked = ", ".join(unknown) or "attention_mask"
        raise UnknownArchitecture(
            f"{type(module).__name__} asks for attention with {asked}, which packed forwards do not serve.",
            hint="Choose a model of another family.",
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    layer = getattr(module, "layer_idx", None) or 0
    return current_plan().attend(layer, q, k, v, scale, sliding_window)[None], None


AttentionInterface.register(NAME, packed_attention)


def install(model: PreTrainedModel) -> None:
    """Make `model` attend through the current plan, or refuse it.

    A family that ignores the registered function would mix the requests of one packed forward without any sign of it.

    Raises:
        UnknownArchitecture: the family does not take a registered attention function.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise _ignores(model)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:  # refused with no more than a warning
        raise _ignores(model)


def _ignores(model: PreTrainedModel) -> UnknownArchitecture:
    return UnknownArchitecture(
        f"{type(model).__name__} does not take a registered attention function, so its requests cannot be packed.",
        hint="Choose a model of another family.",
    )
