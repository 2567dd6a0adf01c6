"""The device loop: fair turns, and a failing step costs only those whose work it was."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import InternalError, OutOfMemory
from lodger.runtime.device_loop import AHEAD, DeviceLoop
from lodger.runtime.recovery import run_or_split
from lodger.runtime.stopwatch import Stopwatch
from lodger.sched.arbiter import Claim
from lodger.sched.pace import pause_ms
from lodger.sched.step import EncodeStep, Item, Lane
from lodger.tasks import CompletionTask, EmbedTask, SamplingParams, StopRules, Usage


class Counted:
    """A lane that writes down its turns."""

    paced = launched = beside = False
    busy_beside = 0

    def __init__(self, name: str, journal: list[str], kind: Lane, *, decodes: int = 0, steps: int = 0) -> None:
        self.name, self.step_tokens, self.kind, self.journal = name, 512, kind, journal
        self.decodes, self.steps = decodes, steps
        self.budgets: set[int] = set()

    @property
    def decoding(self) -> bool:
        return self.decodes > 0

    def begin(self) -> None:
        self.journal.append(f"{self.name} begun")

    def decode(self) -> None:
        self.decodes -= 1
        self.journal.append(f"{self.name} decode")

    def claims(self, budget: int) -> Iterable[Claim]:
        return [Claim(self.name, self.kind, budget, False)] if self.steps else []

    def micro_step(self, lane: Lane, budget: int) -> int:
        self.steps -= 1
        self.budgets.add(budget)
        self.journal.append(f"{self.name} {lane}")
        return budget

    def claims_beside(self) -> Iterable[Claim]:
        return [Claim(self.name, self.kind, 1, False)] if self.beside and self.steps else []

    def step_beside(self) -> None:
        self.steps -= 1
        self.journal.append(f"{self.name} beside")

    def deliver(self, *, wait: bool) -> None:
        """Every step is done when it returns."""

    def close(self) -> None:
        self.journal.append(f"{self.name} closed")


def test_every_chat_gets_its_token_between_any_two_micro_steps() -> None:
    journal: list[str] = []
    chats = [Counted(name, journal, "prefill", decodes=5) for name in "ab"]
    bulk = Counted("bulk", journal, "embed", steps=8)
    loop = DeviceLoop("test")
    lanes = [*chats, bulk]
    loop.post(lambda: [loop._lanes.update({lane.name: lane}) for lane in lanes] and None)
    while bulk.steps or any(chat.decodes for chat in chats):
        loop.wait()
    loop.close()
    turn = ["a decode", "b decode", "bulk embed"]
    assert journal == turn * 5 + ["bulk embed"] * 3 + ["a closed", "b closed", "bulk closed"]
    assert bulk.budgets == {64, 512}, "small steps beside chats, whole ones else"


class Beside(Counted):
    """Texts that a part of the device computes, one step in two turns of the chats."""

    beside, running = True, 0

    @property
    def busy_beside(self) -> int:  # type: ignore[override]
        return self.running

    def step_beside(self) -> None:
        super().step_beside()
        self.running += 1

    def deliver(self, *, wait: bool) -> None:
        self.running = max(self.running - 1, 0)


def test_texts_that_run_beside_chats_take_no_turn_of_theirs_and_are_never_far_ahead() -> None:
    journal: list[str] = []
    chat, other = (Counted(name, journal, "prefill", decodes=4, steps=1) for name in "ab")
    book = Beside("book", journal, "embed", steps=AHEAD + 5)
    loop = DeviceLoop("test")
    loop.post(lambda: loop._lanes.update({lane.name: lane for lane in (chat, other, book)}))
    while book.steps or chat.decodes:
        loop.wait()
    loop.close()
    decodes = ["a decode", "b decode"]
    assert journal[:6] == [*decodes, "a prefill", *decodes, "b prefill"], "prompts have all of the device"
    assert journal[6 : 8 + AHEAD] == [*decodes, *["book beside"] * AHEAD]
    assert journal[8 + AHEAD : 11 + AHEAD] == [*decodes, "book beside"], "as many as were done"
    assert journal[11 + AHEAD :] == ["book embed"] * 4 + ["a closed", "b closed", "book closed"], "alone it has all"


class Timed(Counted):
    """Its work takes time by a clock of its own: 4 ms a decode step, 1 ms for 500 tokens of a micro-step."""

    def __init__(self, clock: list[float], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock, self.step_tokens, self.taken = clock, 8192, list[float]()

    def decode(self) -> None:
        super().decode()
        self.clock[0] += 4e-3

    def micro_step(self, lane: Lane, budget: int) -> int:
        self.taken.append(budget / 500)
        self.clock[0] += budget / 500e3
        return super().micro_step(lane, budget)


def test_micro_steps_beside_chats_are_cut_to_the_time_that_decoding_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(Stopwatch, "mark", lambda self: clock[0])
    chat, bulk = Timed(clock, "chat", [], "prefill", decodes=30), Timed(clock, "bulk", [], "embed", steps=40)
    bulk.paced = True
    loop = DeviceLoop("test")
    loop.post(lambda: loop._lanes.update(chat=chat, bulk=bulk))
    while bulk.steps:
        loop.wait()
    loop.close()
    beside = bulk.taken[1:30]
    assert max(beside) <= pause_ms(4.0) + 1e-3, "only the first is not measured yet"
    assert min(beside) > 0.95 * pause_ms(4.0), "and the time that is left is used"
    assert bulk.taken[30:] == [8192 / 500] * 10


def test_the_loop_sleeps_without_work_and_says_when_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    loop = DeviceLoop("test")
    loop.wait()
    loop.check()
    loop.post(lambda: 1 / 0 and None)
    loop._thread.join()
    with pytest.raises(InternalError, match="thread that owns the device has ended"):
        loop.check()


def texts(*indexes: int) -> EncodeStep:
    """A step of texts of one token each."""
    return EncodeStep("embed", tuple(Item(0, index, (7,)) for index in indexes))


def numbers(step: EncodeStep) -> tuple[int, ...]:
    return tuple(item.index for item in step.items)


def halves(work: EncodeStep) -> tuple[EncodeStep, EncodeStep] | None:
    at = numbers(work)
    return (texts(*at[: len(at) // 2]), texts(*at[len(at) // 2 :])) if len(at) > 1 else None


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_out_of_memory_splits_until_only_the_one_that_does_not_fit_is_left(error: Exception) -> None:
    done: list[int] = []
    failed: list[Any] = []

    def compute(work: EncodeStep) -> None:
        if 5 in numbers(work) or len(work.items) > 4:
            raise error
        done.extend(numbers(work))

    run_or_split(texts(*range(8)), compute, halves, lambda work, why: failed.append((numbers(work), type(why))))
    assert sorted(done) == [0, 1, 2, 3, 4, 6, 7]
    assert failed == [((5,), OutOfMemory)]


def test_any_other_error_fails_the_step_and_is_logged_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[Any] = []

    def broken(work: EncodeStep) -> None:
        raise ValueError("what went wrong")

    run_or_split(texts(1, 2), broken, halves, lambda work, why: failed.append((numbers(work), why)))
    ((work, why),) = failed
    assert (work, type(why)) == ((1, 2), InternalError)
    assert "what went wrong" not in why.text
    assert "what went wrong" in caplog.text
    assert [record.getMessage() for record in caplog.records] == ["a step of 2 tokens failed"]


def generate(model: Any, prompt: tuple[int, ...]) -> Any:
    async def collect() -> Any:
        rules = StopRules(max_tokens=8, ignore_eos=True)
        task = CompletionTask(model="m", prompt=prompt, sampling=SamplingParams(temperature=0), stopping=rules)
        return [delta async for delta in model.generate(task)]

    return collect()


def out_of_memory_for(owner: Any, method: str, bad: Callable[[Any], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """`owner`'s device has no memory for steps with something bad in them."""
    compute = getattr(type(owner), method)

    def guarded(self: Any, step: Any, *rest: Any, **named: Any) -> Any:
        if self is owner and bad(step):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return compute(self, step, *rest, **named)

    monkeypatch.setattr(type(owner), method, guarded)


def test_a_chat_that_runs_out_of_memory_ends_alone(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen3")))
    good, bad = [(5 + n, 6, 7) for n in range(5)], (99, 98, 97)
    alone = [asyncio.run(generate(model, prompt)) for prompt in good]
    out_of_memory_for(
        model._lane._stepper, "launch", lambda step: any(row.tokens == bad for row in step.rows), monkeypatch
    )

    async def together() -> list[Any]:
        return await asyncio.gather(*(generate(model, p) for p in [*good, bad]), return_exceptions=True)

    *answers, failed = asyncio.run(together())
    assert answers == alone
    assert isinstance(failed, OutOfMemory)
    model.close()


def test_a_long_prompt_is_computed_in_smaller_chunks_when_memory_is_short(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve.fresh(inspect_folder(tiny("llama")))
    prompt = tuple(range(10, 250))
    whole = asyncio.run(generate(model, prompt))
    fresh = serve.fresh(inspect_folder(tiny("llama")))
    out_of_memory_for(fresh._lane._stepper, "launch", lambda step: step.tokens > 70, monkeypatch)
    assert asyncio.run(generate(fresh, prompt)) == whole
    model.close()
    fresh.close()


def test_a_text_that_does_not_fit_fails_its_request_and_no_other(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve.fresh(inspect_folder(tiny("minilm")))
    out_of_memory_for(model._lane._runner, "start", lambda items: any(99 in item.tokens for item in items), monkeypatch)

    async def together() -> list[Any]:
        requests = [EmbedTask(model="m", inputs=((5, n, 6), (5, 6))) for n in (10, 99, 11)]
        return await asyncio.gather(*(model.embed(request) for request in requests), return_exceptions=True)

    first, failed, last = asyncio.run(together())
    assert isinstance(failed, OutOfMemory)
    assert (first.usage, last.usage) == (Usage(5), Usage(5))
    model.close()
