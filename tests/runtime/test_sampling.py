"""Every sampling parameter does what transformers' and OpenAI's definitions say, row by row, whatever the batch."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import torch

from lodger.runtime.sampling import Rules, Sampler, sample
from lodger.tasks import SamplingParams

VOCABULARY = 3000  # more than the candidates that are looked at first
NUMBERS = [0.0, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 0.999]


@pytest.fixture
def logits(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(1, VOCABULARY, generator=generator) * 2).to(device)


def sampler(
    number: float | None = None, *, prompt: tuple[int, ...] = (1,), device: Any = "cpu", **rules: Any
) -> Sampler:
    """A sampler whose random numbers are all `number`."""
    made = Sampler(Rules(**rules), 0, prompt, VOCABULARY, torch.device(device))
    if number is not None:
        made.draw = lambda: number  # type: ignore[method-assign]
    return made


def reference(logits: torch.Tensor, number: float, *, ranked: bool, **rules: Any) -> int:
    """transformers' own warpers, then the token at which the cumulative distribution passes `number`."""
    from transformers.generation import logits_process as hf

    warped = logits.cpu().clone()
    ids = torch.zeros(1, 1, dtype=torch.int64)
    for name, cls in (
        ("temperature", hf.TemperatureLogitsWarper),
        ("top_k", hf.TopKLogitsWarper),
        ("top_p", hf.TopPLogitsWarper),
        ("min_p", hf.MinPLogitsWarper),
    ):
        if name in rules:
            warped = cls(rules[name])(ids, warped)
    probabilities = warped.double().softmax(-1)[0]
    order = probabilities.argsort(descending=True) if ranked else torch.arange(VOCABULARY)
    running = probabilities[order].cumsum(0)
    return int(order[int((running <= number * running[-1]).sum())])


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "min_p": 0.05},
        {"top_k": 7},
        {"top_p": 0.4},
        {"top_p": 0.9999},
        {"temperature": 5.0, "top_p": 0.95},
        {"temperature": 0.6, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
        {"top_k": 2000, "top_p": 0.99},
    ],
    ids=str,
)
def test_random_choices_are_transformers_distribution(rules: dict[str, float], logits: torch.Tensor) -> None:
    ranked = "top_k" in rules or "top_p" in rules
    rows = [sampler(number, device=logits.device, **rules) for number in NUMBERS]
    found = sample(logits.repeat(len(NUMBERS), 1), rows)
    assert found == [reference(logits, number, ranked=ranked, **rules) for number in NUMBERS]


def test_temperature_0_takes_the_best_token_whatever_else_is_set(logits: torch.Tensor) -> None:
    best = int(logits.argmax())
    assert sample(logits, [sampler(0.99, device=logits.device, temperature=0, top_p=0.5, min_p=0.1)]) == [best]


def test_repetition_penalty_is_transformers(logits: torch.Tensor) -> None:
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    best, second = logits[0].topk(2).indices.tolist()
    prompt = (best, second, 5, 5)
    expected = RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor([prompt]), logits.cpu().clone()).argmax()
    made = sampler(prompt=prompt, device=logits.device, temperature=0, repetition_penalty=1.8)
    assert sample(logits.clone(), [made]) == [int(expected)]
    assert sample(logits.clone(), [made]) != [int(expected)], "a generated token is a repetition as well"


def test_presence_and_frequency_penalties_count_generated_tokens_only(logits: torch.Tensor) -> None:
    """OpenAI: logit - count * frequency_penalty - (count > 0) * presence_penalty."""
    best, second = logits[0].topk(2).indices.tolist()
    gap = float(logits[0, best] - logits[0, second])
    present = sampler(prompt=(best,) * 9, device=logits.device, temperature=0, presence_penalty=gap * 0.9)
    frequent = sampler(prompt=(best,) * 9, device=logits.device, temperature=0, frequency_penalty=gap * 0.6)
    rows = logits.repeat(2, 1)
    steps = [sample(rows.clone(), [present, frequent]) for _ in range(4)]
    assert [step[0] for step in steps] == [best] * 4, "presence counts once, however often"
    assert [step[1] for step in steps] == [best, best, second, best], "frequency adds up"


def test_rows_with_different_rules_do_not_touch_each_other(logits: torch.Tensor) -> None:
    rules: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.7, "top_p": 0.5},
        {"temperature": 1.3},
        {"temperature": 0, "presence_penalty": 2.0},
        {"top_k": 3, "repetition_penalty": 1.2},
        {"min_p": 0.2},
    ]
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(len(rules), VOCABULARY, generator=generator).to(logits.device) * 2
    together = sample(rows.clone(), [sampler(0.7, device=logits.device, **r) for r in rules])
    alone = [
        sample(row[None].clone(), [sampler(0.7, device=logits.device, **r)])[0]
        for row, r in zip(rows, rules, strict=True)
    ]
    assert together == alone


class Words:
    """Allows these tokens only."""

    def __init__(self, *tokens: int) -> None:
        words = [0] * -(-VOCABULARY // 32)
        for token in tokens:
            words[token // 32] |= 1 << token % 32
        self.mask = struct.pack(f"<{len(words)}I", *words)


def test_masks_and_biases_hold_row_by_row_and_leave_the_logits_as_they_are(logits: torch.Tensor) -> None:
    best = int(logits.argmax())
    some = [31, 32, 33, 2999]
    allowed = max(some, key=lambda token: float(logits[0, token]))
    kinds: list[dict[str, Any]] = [
        {"rules": Rules(temperature=0)},
        {"rules": Rules(temperature=0), "guide": Words(*some)},
        {"rules": Rules(temperature=0), "bias": {best: -100.0}},
        {"rules": Rules(temperature=0), "bias": {7: 100.0, 31: 5.0}},
        {"rules": Rules(temperature=0), "bias": {7: 100.0, 31: -100.0}, "guide": Words(31)},
        {"rules": Rules(temperature=3.0, top_k=9), "guide": Words(*some)},
        {"rules": Rules(temperature=3.0, top_p=0.99), "guide": Words(*some)},
        {"rules": Rules(temperature=3.0, repetition_penalty=1.5, min_p=0.01), "guide": Words(*some)},
    ]
    rows = logits.repeat(len(kinds), 1)
    before = rows.clone()
    found = []
    for seed in range(20):
        own = [Sampler(seed=seed, prompt=(1,), vocab_size=VOCABULARY, device=logits.device, **kind) for kind in kinds]
        found.append(sample(rows, own))
    second = int(before[0].topk(2).indices[1])
    assert {tuple(row[:5]) for row in found} == {(best, allowed, second, 7, 31)}
    for place in (5, 6, 7):
        assert {row[place] for row in found} <= set(some)
        assert len({row[place] for row in found}) > 1
    assert torch.equal(rows, before)


def test_a_seed_gives_the_same_numbers_and_no_seed_does_not() -> None:
    def numbers(seed: int | None) -> list[float]:
        made = Sampler(Rules(), seed, (1,), 8, torch.device("cpu"))
        return [made.draw() for _ in range(5)]

    assert numbers(7) == numbers(7)
    assert numbers(7) != numbers(8)
    assert numbers(None) != numbers(None)


def test_what_is_not_asked_for_comes_from_generation_config_and_else_is_off() -> None:
    defaults = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}
    assert Rules.of(SamplingParams(), defaults) == Rules(temperature=0.7, top_k=20, repetition_penalty=1.05)
    asked = SamplingParams(temperature=0, top_k=0, presence_penalty=0.5)
    assert Rules.of(asked, defaults) == Rules(temperature=0, top_k=0, repetition_penalty=1.05, presence_penalty=0.5)
    assert Rules.of(SamplingParams(), {}) == Rules.of(SamplingParams(top_k=-1), {}) == Rules()
