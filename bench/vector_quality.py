"""What a precision costs in quality for a model of vectors, on any machine: how far they turn, and what is found.

    python -m bench.vector_quality FOLDER [--text FILE ...] [--out FILE]

sentence-transformers computes them, each sentence of the texts a vector. Their weights are rounded as in
`bench.quality`. float32 is what the others are compared with.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from bench.hardware import describe
from bench.quality import command, round_to_int8

NEIGHBOURS = 10
LEAST = 20  # letters of a sentence that says something


def load(folder: Path, dtype: torch.dtype) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype}, local_files_only=True)


def int8(folder: Path) -> Any:
    model = load(folder, torch.float32)
    round_to_int8(model[0].auto_model.encoder)
    return model


PRECISIONS: dict[str, Callable[[Path], Any]] = {
    "float32": lambda folder: load(folder, torch.float32),
    "float16": lambda folder: load(folder, torch.float16),
    "bfloat16": lambda folder: load(folder, torch.bfloat16),
    "int8": int8,
}


def sentences(text: str) -> list[str]:
    found = re.split(r"(?<=[.!?:|])\s+|\n+", text)
    return list(dict.fromkeys(part.strip() for part in found if len(part.strip()) >= LEAST))


def compared(found: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    """
    Args:
        found, exact: [N, dimensions], N > NEIGHBOURS, each of length 1.

    Returns:
        cosine and least_cosine of a vector and its exact one; score, the root mean square by which the likeness of two
        texts is off; neighbours, the share of each text's NEIGHBOURS nearest that are the same.
    """
    cosine = (found * exact).sum(dim=1)
    scores, truth = found @ found.T, exact @ exact.T
    near, nearest = (_neighbours(likeness) for likeness in (scores, truth))
    same = (near[:, :, None] == nearest[:, None, :]).any(dim=2)
    return {
        "cosine": float(cosine.mean()),
        "least_cosine": float(cosine.min()),
        "score": float((scores - truth).square().mean().sqrt()),
        "neighbours": float(same.float().mean()),
    }


def _neighbours(scores: torch.Tensor) -> torch.Tensor:
    """The NEIGHBOURS nearest of each text [N, N], itself not among them."""
    others = scores.clone().fill_diagonal_(-torch.inf)
    return others.topk(NEIGHBOURS, dim=1).indices


def measure(folder: Path, texts: list[Path]) -> dict[str, Any]:
    parts = [part for text in texts for part in sentences(text.read_text(encoding="utf-8"))]
    result: dict[str, Any] = {"model": folder.name, "hardware": describe(), "sentences": len(parts), "precisions": {}}
    exact = None
    for name, make in PRECISIONS.items():
        found = normalize(make(folder).encode(parts, convert_to_tensor=True).float())  # half precisions would round it
        exact = found if exact is None else exact
        result["precisions"][name] = values = compared(found, exact)
        print(f"{name:9}", "  ".join(f"{key} {value:.5f}" for key, value in values.items()), flush=True)
    return result


if __name__ == "__main__":
    command(__doc__, measure)
