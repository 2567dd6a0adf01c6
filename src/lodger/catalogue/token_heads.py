"""bge-m3's heads over tokens: small linear layers in files of their own beside the weights.

FlagEmbedding saves them as `sparse_linear.pt` and `colbert_linear.pt` (`EncoderOnlyEmbedderM3ModelForInference`), each
a state dict of `weight` and `bias`; converted they are safetensors files of the same names.
"""

from __future__ import annotations

import os
from pathlib import Path

from lodger.catalogue.facts import TokenHead
from lodger.catalogue.folder_files import AGAIN
from lodger.catalogue.safetensors_header import read_header
from lodger.errors import DamagedWeights

STEMS: dict[TokenHead, str] = {"sparse": "sparse_linear", "colbert": "colbert_linear"}


def head_files(folder: Path, hidden_size: int) -> dict[TokenHead, Path]:
    """The file of each head that a folder has: the safetensors one where there are both.

    Raises:
        DamagedWeights: a safetensors file that is no linear layer over `hidden_size` (others are read when converted).
    """
    found: dict[TokenHead, Path] = {}
    for head, stem in STEMS.items():
        for path in (folder / f"{stem}.safetensors", folder / f"{stem}.pt"):
            if os.path.lexists(path):
                found.setdefault(head, path)
    for head, path in found.items():
        if path.suffix == ".safetensors":
            _check(head, path, hidden_size)
    return found


def _check(head: TokenHead, path: Path, hidden_size: int) -> None:
    shapes = {tensor.name: tensor.shape for tensor in read_header(path)}
    rows = shapes.get("bias", (0,))[:1]
    fits = shapes == {"weight": (*rows, hidden_size), "bias": rows} and (
        rows == (1,) if head == "sparse" else rows > (0,)
    )
    if not fits:
        raise DamagedWeights(f"{path.name} is no linear layer over the {hidden_size:,} of a token's state.", hint=AGAIN)
