"""Small random models whose weights are pickles, as bge-m3 is published: pytorch_model.bin and two heads as .pt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file

State = dict[str, torch.Tensor]

_TOKENS = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sep_token": "</s>",
           "unk_token": "<unk>", "mask_token": {"content": "<mask>", "lstrip": True}}  # fmt: skip


def make_bge_m3(folder: Path, **overrides: Any) -> Path:
    """The files of BAAI/bge-m3 but its documents: float32 weights in a pickle, float16 heads, no safetensors.

    The weights are those that `tiny.make_bge_m3` writes with the same overrides: its folder is this one's twin.
    """
    as_pytorch(tiny.make_bge_m3(folder, **overrides))
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    for name, state in heads(hidden).items():
        torch.save(state, folder / f"{name}.pt")
    (folder / "sentencepiece.bpe.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (folder / "special_tokens_map.json").write_text(json.dumps(_TOKENS))
    return folder


def heads(hidden: int) -> dict[str, State]:
    """State dicts of bge-m3's two heads: one weight for each token, one vector for each token."""
    made = torch.Generator().manual_seed(20261122)
    return {
        name: {
            "weight": (0.2 * torch.randn(rows, hidden, generator=made)).half(),
            "bias": (0.1 * torch.randn(rows, generator=made)).half(),
        }
        for name, rows in (("sparse_linear", 1), ("colbert_linear", hidden))
    }


def as_pytorch(folder: Path, shards: int = 1) -> State:
    """Put the tensors of model.safetensors into pytorch_model.bin, or into so many shards with an index, instead."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return state
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        part = dict(list(state.items())[shard::shards])
        file = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return state
