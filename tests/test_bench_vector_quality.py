"""Vectors of two precisions are compared one by one and by what is found with them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from bench import vector_quality


def test_the_same_vectors_lose_nothing_and_others_lose_what_they_turned() -> None:
    exact = normalize(torch.randn(40, 16))
    assert vector_quality.compared(exact, exact) == pytest.approx(
        {"cosine": 1, "least_cosine": 1, "score": 0, "neighbours": 1}, abs=1e-6
    )
    turned = exact.clone()
    turned[3] = -turned[3]
    found = vector_quality.compared(turned, exact)
    assert found["cosine"] == pytest.approx(38 / 40)
    assert found["least_cosine"] == pytest.approx(-1)
    scores = exact @ exact.T
    own = scores[3].square().sum() - 1  # twice: its row and its column
    assert found["score"] == pytest.approx(float((2 * 4 * own / 40**2).sqrt()), rel=1e-4)
    assert found["neighbours"] < 1


def test_neighbours_are_counted_whatever_their_order() -> None:
    angles = torch.arange(22) * 0.01
    exact = torch.stack([angles.cos(), angles.sin()], dim=1)
    moved = exact.clone()
    moved[[1, 2]] = moved[[2, 1]]
    assert vector_quality.compared(moved, exact)["neighbours"] > 0.9
    opposite = torch.cat([exact[:11], -exact[11:]])
    mixed = vector_quality.compared(opposite[torch.randperm(22)], exact)["neighbours"]
    assert mixed < 0.9


def test_sentences_of_a_text() -> None:
    text = "The first one is long enough. So is the second of them!\n\nShort.\nAnd a line without an end of its own\n"
    assert vector_quality.sentences(text + text) == [
        "The first one is long enough.",
        "So is the second of them!",
        "And a line without an end of its own",
    ]
