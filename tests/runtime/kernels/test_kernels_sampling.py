"""Choices by our kernels are the choices that the definition gives, equal logits included."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lodger.runtime.kernels.sampling import PROMPT, count, draw, forbid

Where = tuple[torch.device, torch.dtype]
VOCABULARY = 2500
OFF: dict[str, float] = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "again": 1, "present": 0, "often": 0}
KINDS: list[dict[str, float]] = [
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    {"temperature": 0.7},
    {"temperature": 1.4, "min_p": 0.05},
    {"top_k": 1},
    {"top_p": 0.3},
    {"temperature": 9, "top_p": 0.95},
    {"temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "again": 1.3},
    {"top_k": 2000, "top_p": 0.99, "often": 0.5},
    {"top_k": 1, "present": 3, "often": 1},
]


def expected(x: torch.Tensor, seen: torch.Tensor, rules: dict[str, float], number: float) -> list[int]:
    """Tokens that may be chosen: one, or those around it where the random number falls between them but for rounding:
    a sum of float32 is off by less than 1e-5, and the kernel stays 1e-6 of it below 1."""
    times = (seen & (PROMPT - 1)).float()
    x = torch.where(seen != 0, torch.where(x < 0, x * rules["again"], x / rules["again"]), x)
    x = (x - rules["present"] * (times > 0) - rules["often"] * times) / rules["temperature"]
    weights = (x - x.max()).double().exp()
    kept = torch.ones_like(x, dtype=torch.bool)
    if rules["top_k"]:
        kept &= x >= x.topk(int(rules["top_k"])).values[-1]
    if rules["top_p"] < 1:
        whole = weights[kept].sum()
        before = torch.tensor([weights[kept & (x > one)].sum() for one in x.unique()])
        reached = x.unique()[before < rules["top_p"] * whole * (1 - 1e-9)]
        kept &= x >= reached.min()
    kept &= weights >= rules["min_p"]
    ranked = rules["top_k"] > 0 or rules["top_p"] < 1
    order = x.sort(descending=True, stable=True).indices if ranked else torch.arange(len(x))
    order = order[kept[order]]
    running = weights[order].cumsum(0)
    first, last = (int((running <= (number + slip) * running[-1]).sum()) for slip in (-1e-5, 1e-5))
    return order[first : last + 1].tolist() or order[-1:].tolist()


@pytest.mark.parametrize("flat", [False, True], ids=["some", "many"])
def test_choices_are_those_of_the_definition(where: Where, flat: bool) -> None:
    """Rounded logits, so that many are equal. Rows lie between others that are nobody's business here."""
    device, dtype = where
    generator = random.Random(5)
    rows = KINDS * (6 if device.type == "cuda" else 1)
    logits = (torch.randn(2 * len(rows), VOCABULARY) * (0.3 if flat else 3)).mul(8).round().div(8).to(device, dtype)
    memories = torch.randint(0, 3, (len(rows), VOCABULARY), dtype=torch.int32, device=device)
    memories *= torch.rand(memories.shape, device=device) < 0.1
    memories[:, :40] += PROMPT
    numbers = [generator.choice([0.0, generator.random(), 0.9999999]) for _ in rows]
    full = [OFF | kind for kind in rows]
    penalised = [any(rules[name] != OFF[name] for name in ("again", "present", "often")) for rules in full]
    rules = torch.tensor([[*one.values(), number] for one, number in zip(full, numbers, strict=True)], device=device)
    places = [[2 * n + 1, memories[n].data_ptr() if penalised[n] else 0] for n in range(len(rows))]
    chosen = torch.full((2 * len(rows),), -7, device=device)
    before = memories.clone()

    draw(logits, rules.float(), torch.tensor(places, device=device), chosen)
    count(chosen, torch.tensor(places, device=device))
    for n, one in enumerate(full):
        token = int(chosen[2 * n + 1])
        seen = before[n] if penalised[n] else torch.zeros_like(before[n])
        assert token in expected(logits[2 * n + 1].float().cpu(), seen.cpu(), one, numbers[n]), (one, numbers[n])
        before[n, token] += penalised[n]
    assert torch.equal(memories, before), "each choice is counted where it is remembered"
    assert chosen[::2].tolist() == [-7] * len(rows)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_whatever_is_drawn_is_a_token_that_is_left(where: Where) -> None:
    """Random numbers next to 1, weights too small for their sum, and logits that are no numbers."""
    device, dtype = where
    logits = torch.full((8, VOCABULARY), -60.0)
    logits[:, 100] = 0.0
    logits[1::2, 200:1400] = -20.0
    logits[6:] = torch.nan
    kinds = [{"top_p": 0.9999999}, {"top_k": 1500}, {}, {"min_p": 0.5}, {"top_k": 3, "top_p": 0.99}, {"top_p": 0.5}]
    full = [OFF | kind for kind in (*kinds, {"top_k": 5}, {})]
    numbers = [1 - 2**-24, 1 - 2**-53, 1 - 2**-24, 0.99999994, 1 - 2**-24, 1 - 2**-53, 0.5, 0.5]
    rules = torch.tensor([[*one.values(), number] for one, number in zip(full, numbers, strict=True)])
    chosen = torch.full((8,), -7, device=device)
    places = torch.tensor([[n, 0] for n in range(8)], device=device)
    draw(logits.to(device, dtype), rules.float().to(device), places, chosen)
    assert all(0 <= token < VOCABULARY for token in chosen.tolist())
    assert chosen[[3, 5]].tolist() == [100, 100], "all others were dropped"


@pytest.mark.parametrize("kept", [3, 700], ids=str)
def test_what_is_forbidden_is_never_drawn_and_changes_no_other_row(kept: int, where: Where) -> None:
    device, dtype = where
    kinds = KINDS if device.type == "cuda" else KINDS[::3]
    logits = torch.randn(2 * len(kinds), VOCABULARY).mul(8).round().div(4).to(device, dtype)
    allowed = torch.zeros(len(kinds), -(-VOCABULARY // 32) * 32, dtype=torch.bool)
    for own in allowed:
        own[torch.randperm(VOCABULARY)[:kept]] = True
    bits = (allowed.view(len(kinds), -1, 32) << torch.arange(32)).sum(-1)
    words = torch.where(bits >= 2**31, bits - 2**32, bits).int().to(device)
    rows = torch.arange(1, 2 * len(kinds), 2, device=device)
    before = logits.clone()

    forbid(logits, words, rows)
    expected_logits = before[1::2].masked_fill(~allowed[:, :VOCABULARY].to(device), float("-inf"))
    assert torch.equal(logits[1::2], expected_logits)
    assert torch.equal(logits[::2], before[::2])
    full = [OFF | kind for kind in kinds]
    numbers = [(0.37 * n) % 1 for n in range(len(full))]
    rules = torch.tensor([[*one.values(), number] for one, number in zip(full, numbers, strict=True)], device=device)
    chosen = torch.full((2 * len(full),), -7, device=device)
    draw(logits, rules.float(), torch.tensor([[2 * n + 1, 0] for n in range(len(full))], device=device), chosen)
    nothing = torch.zeros(VOCABULARY, dtype=torch.int32)
    for n, one in enumerate(full):
        token = int(chosen[2 * n + 1])
        assert allowed[n, token]
        assert token in expected(logits[2 * n + 1].float().cpu(), nothing, one, numbers[n]), (one, numbers[n])


@pytest.mark.gpu
def test_a_choice_does_not_depend_on_the_rows_beside_it() -> None:
    device = torch.device("cuda:0")
    logits = torch.randn(64, 151_936, device=device, dtype=torch.bfloat16) * 4
    kinds: list[Any] = [list((OFF | KINDS[n % 6]).values()) + [(n * 0.137) % 1] for n in range(64)]

    def choose(rows: list[int]) -> list[int]:
        chosen = torch.zeros(64, dtype=torch.int64, device=device)
        rules = torch.tensor([kinds[n] for n in rows], dtype=torch.float32, device=device)
        draw(logits, rules, torch.tensor([[n, 0] for n in rows], device=device), chosen)
        return [int(chosen[n]) for n in rows]

    together = choose(list(range(64)))
    assert together == [choose([n])[0] for n in range(64)]
    assert together == choose(list(range(64)))
