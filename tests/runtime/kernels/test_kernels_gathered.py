"""Keys and values that are laid end to end are those of their sequences, and every new token sees its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import LAYER, TOLERANCE, Case, far
from torch.nn.functional import scaled_dot_product_attention as sdpa

from lodger.plan import footprint
from lodger.runtime.attention import paged, varlen
from lodger.runtime.attention.paged import PagedPlan, most_keys

Where = tuple[torch.device, torch.dtype]
N = 8  # new tokens for which keys are laid end to end here
CASES = {
    "fresh": Case((N, N + 33, N + 1), (0, 0, 0)),
    "one": Case((N,), (90,)),
    "beside others": Case((N, N + 2, 1, 7, N + 3, N), (0, 31, 50, 40, 16, 5)),
    "window": Case((N + 9, N), (70, 0), window=24),
    "block-24": Case((N + 9, N), (50, 3), block_size=24, head_dim=80),
}


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    scale: float,
    window: tuple[int, int],
) -> torch.Tensor:
    """What FlashAttention is documented to compute: the last query sees all keys, the one before all but the last."""
    out = []
    queries, keys = (of.tolist() for of in offsets)
    for n in range(len(queries) - 1):
        q, k, v = (
            x[at[n] : at[n + 1]].float().transpose(0, 1)[None]
            for x, at in ((query, queries), (key, keys), (value, keys))
        )
        assert q.shape[2] <= longest[0]
        assert k.shape[2] <= longest[1]
        behind = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2] - torch.arange(k.shape[2])
        seen = (behind >= 0) & ((behind <= window[0]) | (window[0] < 0))
        found = sdpa(q, k, v, seen.to(q.device), scale=scale, enable_gqa=True)
        out.append(found[0].transpose(0, 1).to(query.dtype))
    return torch.cat(out)


@pytest.mark.parametrize("most", [50, 500], ids=["a few at a time", "all at once"])
@pytest.mark.parametrize("name", CASES)
def test_keys_end_to_end(name: str, most: int, where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_flash", flash)
    monkeypatch.setattr(paged, "LEAST_NEW", N)
    monkeypatch.setattr(paged, "most_keys", lambda tokens, cache: most)
    built: Any = CASES[name].build(*where)
    expected = built.expected()
    built.forget_what_no_sequence_owns()
    plan = PagedPlan(built.batch, built.cache, built.query.device, 16)
    long = [n + p for n, p in zip(CASES[name].lengths, CASES[name].past, strict=True) if n >= N and n + p <= most]
    assert sum(len(group._rows) for group in plan._gathered) == len(long)
    assert all(len(group._slots) <= most for group in plan._gathered)
    assert far(plan.attend(LAYER, *built.packed), expected) < TOLERANCE[where[1]]


def test_what_lies_end_to_end_is_what_the_plan_counts() -> None:
    cache = torch.empty(36, 2, 1, 16, 8, 128, device="meta")
    assert most_keys(2048, cache) * 2 * 8 * 128 == footprint.GATHERED
    assert most_keys(512, cache) == 8 * 512
    assert most_keys(32_768, cache) == 32_768, "new tokens lie end to end all the same"
