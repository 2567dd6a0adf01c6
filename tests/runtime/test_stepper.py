"""Steps that are launched before the tokens of the last one are known: nobody can tell, whatever ends in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_native_chat import PROMPTS, answers, task

from lodger.catalogue.inspect import inspect_folder
from lodger.runtime.warm_steps import warm_steps
from lodger.tasks import SamplingParams

KINDS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.9, seed=3),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.8, seed=4),
    SamplingParams(temperature=0, repetition_penalty=1.3, frequency_penalty=0.5),
]


def asked(model: Any) -> list[str]:
    """Chats of many lengths, some of which end by a stop token or a stop string."""
    return answers(
        model,
        [
            task(
                prompt, 1 + 7 * n % 30, KINDS[n % len(KINDS)], ignore_eos=n % 2 == 0, stop=("e",) if n % 3 == 2 else ()
            )
            for n, prompt in enumerate(PROMPTS * 2)
        ],
    )


@pytest.mark.parametrize("blocks", [256, 12], ids=["roomy", "preempting"])
def test_texts_do_not_depend_on_when_tokens_are_known(
    blocks: int, serve: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=blocks)
    told = []
    for overlaps in (False, True, True):
        model._lane._stepper.overlaps = overlaps
        told.append(asked(model))
        assert not model._lane.decoding, "nothing is left on the device"
    assert told[0] == told[1] == told[2]
    model.close()


def test_a_long_prompt_alone_goes_in_full_steps(
    serve: Callable[..., Any], tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk that is on the device ends no prompt, so nobody waits for a token behind it."""
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=64)
    lane = model._lane
    lane._stepper.overlaps, lane.step_tokens, sizes = True, 32, []
    launch = lane._stepper.launch
    monkeypatch.setattr(
        lane._stepper, "launch", lambda step, *rest: sizes.append((step.lane, step.tokens)) or launch(step, *rest)
    )
    answers(model, [task("ab " * 60, 3, SamplingParams(temperature=0), ignore_eos=True)])
    prompts = [tokens for kind, tokens in sizes if kind == "prefill"]
    assert len(prompts) > 3
    assert set(prompts[:-1]) == {32}
    assert sizes[len(prompts) :] == [("decode", 1), ("decode", 1)]
    model.close()


def test_warming_up_changes_no_text(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")), blocks=40)
    before = asked(model)
    model._lane._stepper.warm_up(256)
    fresh = serve.fresh(inspect_folder(tiny("qwen3")), blocks=40)
    fresh._lane._stepper.warm_up(100_000)
    assert asked(fresh) == before
    model.close()
    fresh.close()


@pytest.mark.parametrize("step_tokens", [1, 100, 512, 8192])
@pytest.mark.parametrize("most", [1, 3, 256])
@pytest.mark.parametrize("longest", [16, 640, 65_536])
def test_steps_of_nobodys_text_are_steps_that_requests_could_be(step_tokens: int, most: int, longest: int) -> None:
    steps = list(warm_steps(step_tokens, most, longest, 16))
    assert sum(len(row.tokens) for row in steps[0]) == min(step_tokens, longest), "the largest one first"
    for rows in steps:
        assert 0 < len(rows) <= most
        assert len({row.sequence for row in rows}) == len(rows)
        assert sum(len(row.tokens) for row in rows) <= max(step_tokens, 3)
        for row in rows:
            assert len(row.tokens) > 0
            assert row.end <= longest
            assert len(row.blocks) == -(-row.end // 16)
