"""Captured forwards of an encoder on a GPU: they compute what single launches compute, for any texts, on the whole
device and on a part of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from attention_cases import TOLERANCE, far

from lodger.catalogue.inspect import inspect_folder
from lodger.runtime.graphs import captured as captured_step
from lodger.runtime.loading import load_runner
from lodger.runtime.partition import STEPS, partition
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner, TextForward
from lodger.sched.step import Item
from lodger.units import GIB

CUDA = torch.device("cuda:0")
CLOSE = 4 * TOLERANCE[torch.float16]  # products of other numbers of rows round otherwise
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["bge-m3", "minilm"])
def runner(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Runner:
    return load(tiny(request.param))


def load(folder: Path) -> Runner:
    runner = cold(folder)
    runner.warm_up(4224, partition(CUDA))
    return runner


def cold(folder: Path) -> Runner:
    """Nothing of it is captured."""
    return load_runner(inspect_folder(folder), GIB, [precision("float16", CUDA)], CUDA, lambda _: None)


def items_of(lengths: list[int]) -> list[Item]:
    return [Item(0, n, tuple(random.choices(range(5, 90), k=length))) for n, length in enumerate(lengths)]


def launched(runner: Runner, items: list[Item], **how: bool) -> TextForward:
    forward = runner.start(items, [(runner.heads["dense"],)] * len(items), **how)
    assert forward.launch() is True
    return forward


def found(forward: TextForward) -> torch.Tensor:
    return torch.cat([rows for (rows,) in forward.rows()]).clone()


def vectors(runner: Runner, items: list[Item], *, whole: bool) -> torch.Tensor:
    return found(launched(runner, items, whole=whole))


def beside(runner: Runner, items: list[Item]) -> TextForward:
    part = partition(CUDA)
    assert part is not None
    assert runner.serves_beside(items)
    with torch.cuda.stream(part.stream):
        return launched(runner, items, beside=True)


def captured(runner: Runner) -> Any:
    graphs = runner.backbone._graphs  # type: ignore[attr-defined]
    assert graphs is not None
    return graphs


@pytest.mark.parametrize("lengths", [[1], [64], [5, 40, 3], [30] * 40, [50] * 82, [7] * 300], ids=str)
def test_a_graph_computes_what_single_launches_do(lengths: list[int], runner: Runner) -> None:
    items = items_of(lengths)
    assert far(vectors(runner, items, whole=True), vectors(runner, items, whole=False)) < CLOSE


def test_what_ran_before_leaves_nothing_behind(runner: Runner) -> None:
    short = items_of([3, 9])
    expected = vectors(runner, short, whole=True)
    for lengths in ([64], [20, 20, 20], [1] * 12):
        vectors(runner, items_of(lengths), whole=True)
    assert torch.equal(vectors(runner, short, whole=True), expected)


def test_forwards_in_flight_do_not_mix(runner: Runner) -> None:
    """Each is copied out before the next one overwrites it, though nobody waits."""
    batches = [items_of([n + 1, 30, 12]) for n in range(20)]
    alone = [vectors(runner, items, whole=False) for items in batches]
    heads = [(runner.heads["dense"],)] * 3
    started = [runner.start(items, heads, whole=True) for items in batches]
    assert all(forward.launch() for forward in started)
    for forward, expected in zip(started, alone, strict=True):
        assert far(torch.cat([rows for (rows,) in forward.rows()]), expected) < CLOSE


def test_many_texts_of_one_token_have_no_graph_and_are_served(runner: Runner) -> None:
    items = items_of([1] * 200)
    assert not captured(runner).serves([1] * 200)
    assert not runner.serves_beside(items)
    assert far(vectors(runner, items, whole=True), vectors(runner, items, whole=False)) < CLOSE


def test_without_memory_to_capture_steps_are_launched_one_by_one(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load(tiny("bge-m3"))
    items = items_of([9, 21])
    expected = vectors(runner, items, whole=False)

    def refused(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")

    runner.forget()
    monkeypatch.setattr(captured(runner), "_capture", refused)
    runner.warm_up(64)
    assert not captured(runner)._captured
    assert far(vectors(runner, items, whole=True), expected) < CLOSE
    monkeypatch.undo()
    runner.warm_up(64)
    assert captured(runner)._captured
    assert far(vectors(runner, items, whole=True), expected) < CLOSE


def test_larger_steps_are_captured_while_smaller_ones_run(tiny: Callable[..., Path]) -> None:
    """As a second model of the same weights may ask at any time."""
    runner, items = cold(tiny("bge-m3")), items_of([20, 33])
    runner.warm_up(64)
    expected = vectors(runner, items, whole=False)
    assert not captured(runner).serves([500])
    with ThreadPoolExecutor(1) as pool:
        larger = pool.submit(runner.warm_up, 4224)
        while not larger.done():
            assert far(vectors(runner, items, whole=True), expected) < CLOSE
        larger.result()
    assert captured(runner).serves([500])


def test_models_share_the_memory_of_their_forwards(tiny: Callable[..., Path]) -> None:
    one, other = load(tiny("bge-m3")), load(tiny("minilm"))
    items = items_of([20, 33])
    expected = [vectors(runner, items, whole=False) for runner in (one, other)]
    for _ in range(3):
        for runner, wanted in zip((one, other), expected, strict=True):
            assert far(vectors(runner, items, whole=True), wanted) < CLOSE


@pytest.mark.parametrize("lengths", [[1], [5, 40, 3], [30] * 40, [500, 500, 500, 400, 212]], ids=str)
def test_a_part_of_the_device_computes_what_all_of_it_does(lengths: list[int], runner: Runner) -> None:
    items = items_of([min(length, runner.facts.context_length) for length in lengths])
    assert far(found(beside(runner, items)), vectors(runner, items, whole=False)) < CLOSE


def test_steps_beside_others_do_not_mix_with_them(runner: Runner) -> None:
    """Neither waits for the other, and each works in memory of its own."""
    longest = min(400, runner.facts.context_length)
    batches = [items_of([longest, n + 1, 30]) for n in range(20)]
    alone = [vectors(runner, items, whole=False) for items in batches]
    pairs = zip(batches, batches[::-1], strict=True)
    both = [(beside(runner, one), launched(runner, other, whole=True)) for one, other in pairs]
    for (one, other), expected, opposite in zip(both, alone, alone[::-1], strict=True):
        assert far(found(one), expected) < CLOSE
        assert far(found(other), opposite) < CLOSE


def test_more_tokens_than_a_step_beside_others_has_are_not_served_there(runner: Runner) -> None:
    assert not runner.serves_beside(items_of([100] * (STEPS[-1] // 100 + 1)))


@triton.jit
def _where(out):  # type: ignore[no-untyped-def]
    own = tl.inline_asm_elementwise("mov.u32 $0, %smid; // $1", "=r,r", [tl.program_id(0)], tl.int32, False, 1)
    tl.store(out + tl.program_id(0), own)


def test_what_is_captured_for_a_part_runs_there_wherever_it_is_replayed() -> None:
    part, ran = partition(CUDA), torch.full((4096,), -1, dtype=torch.int32, device=CUDA)
    assert part is not None
    _where[(4096,)](ran)
    everywhere = set(ran.tolist())
    graph = captured_step(lambda: _where[(4096,)](ran), CUDA, part)
    found = []
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), part.stream):
        ran.fill_(-1)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph.replay()
        torch.cuda.synchronize()
        found.append(set(ran.tolist()))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) <= part.processors < len(everywhere)
