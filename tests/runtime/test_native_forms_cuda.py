"""Forms, biases and log probabilities where steps are captured and launched ahead: the same as where they are not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native_chat import PROMPTS, collect, counts, run, task, text
from test_native_forms import JSON, check, formed
from test_native_told import told

from lodger.catalogue.inspect import inspect_folder
from lodger.tasks import Constraint, SamplingParams

pytestmark = pytest.mark.gpu
KINDS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=1.2, seed=3),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.8, seed=4, frequency_penalty=0.5),
]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Elsewhere no steps are captured."""
    return torch.device("cuda:0")


@pytest.fixture
def model(serve: Any, tiny: Callable[..., Path]) -> Iterator[Any]:
    served = serve.fresh(inspect_folder(tiny("qwen3")), dtype="bfloat16")
    assert served._lane._stepper._graphs is not None
    yield served
    served.close()


def test_forms_hold_beside_chats_that_are_launched_ahead(model: Any) -> None:
    bound = [formed(JSON, prompt, sampling=KINDS[n % 3]) for n, prompt in enumerate(PROMPTS)]
    digits = [formed(Constraint(kind="regex", text="[0-9]{6,9}"), prompt, sampling=KINDS[1]) for prompt in PROMPTS]
    plain = [task(prompt, 60, KINDS[n % 3]) for n, prompt in enumerate(PROMPTS)]

    async def ask() -> Any:
        return await asyncio.gather(*(collect(model.generate(one)) for one in (*bound, *digits, *plain)))

    found = run(ask())
    for deltas in found[:8]:
        check(text(deltas))
    for deltas in found[8:16]:
        assert re.fullmatch("[0-9]{6,9}", text(deltas))
    assert [counts(deltas)[0][1] for deltas in found[16:]] == [60] * 8


def test_log_probabilities_of_captured_steps_are_those_of_the_model(
    model: Any, oracle_of: Callable[[str], Any]
) -> None:
    """Against transformers in float32: bfloat16's own error is all that they differ by."""
    oracle = oracle_of("qwen3")
    asked = [
        task(prompt, 20, replaced, logprobs=5, constraint=form)
        for prompt, replaced, form in zip(
            PROMPTS[:4],
            (KINDS[0], KINDS[2], SamplingParams(temperature=0, logit_bias={7: 100.0}), KINDS[1]),
            (None, None, None, Constraint(kind="regex", text="[a-f ]{40}")),
            strict=True,
        )
    ]

    async def ask() -> Any:
        return await asyncio.gather(*(collect(model.generate(one)) for one in asked))

    for one, deltas in zip(asked, run(ask()), strict=True):
        own = told(deltas)
        ids = [entry.chosen.id for entry in own]
        with torch.inference_mode():
            logits = oracle(torch.tensor([[*one.prompt, *ids]], device=oracle.device)).logits[0]
        expected = logits.float().log_softmax(-1)[len(one.prompt) - 1 : -1].cpu()
        apart = [abs(entry.chosen.logprob - float(expected[n, entry.chosen.id])) for n, entry in enumerate(own)]
        assert max(apart) < 0.5
        assert sum(apart) / len(apart) < 0.1
        for n, entry in enumerate(own):
            assert len(entry.top) == 5
            assert sorted(entry.top, key=lambda likely: -likely.logprob) == list(entry.top)
            assert float(expected[n, entry.top[0].id]) > float(expected[n].max()) - 0.5
    assert {entry.chosen.id for entry in told(run(collect(model.generate(asked[2]))))} == {7}
