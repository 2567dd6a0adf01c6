"""Tensors by the names of transformers' classes, where checkpoints are published with other ones."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch


class Published(NamedTuple):
    """How a family's published tensors become parameters: names first, in order, then fused ones cut into their parts.

    transformers keeps the same as `conversion_mapping`, for its own loader only.
    """

    renamed: tuple[tuple[str, str], ...]  # regular expression and its replacement
    fused: dict[str, tuple[str, ...]]  # part of a name -> that of each of its equal parts by rows


PUBLISHED: dict[str, Published] = {  # by transformers' `model_type`
    "gte": Published(
        renamed=(
            (r"^new\.", ""),
            (r"(^|\.)encoder\.layer\.", r"\1layers."),
            (r"\.attention\.", ".self_attn."),
            (r"\.attn_ln\.", ".post_attention_layernorm."),
            (r"\.mlp_ln\.", ".post_mlp_layernorm."),
        ),
        fused={
            ".self_attn.qkv_proj.": (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."),
            ".mlp.up_gate_proj.": (".mlp.up_proj.", ".mlp.gate_proj."),
        },
    ),
}


def as_parameters(tensors: dict[str, torch.Tensor], model_type: str) -> dict[str, torch.Tensor]:
    """`tensors` under transformers' names. Parts of a fused tensor are views of it."""
    if model_type not in PUBLISHED:
        return tensors
    renamed, fused = PUBLISHED[model_type]
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        for old, new in renamed:
            name = re.sub(old, new, name)
        whole = next((part for part in fused if part in name), None)
        if whole is None:
            found[name] = tensor
            continue
        pieces = tensor.view(tensor.shape or (1,)).chunk(len(fused[whole]))
        found |= {name.replace(whole, part): piece for part, piece in zip(fused[whole], pieces, strict=False)}
    return found
