"""Captured forwards of an encoder on a GPU: they compute what single launches compute, for any texts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import TOLERANCE, far

from lodger.catalogue.inspect import inspect_folder
from lodger.runtime.loading import load_runner
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.sched.step import Item
from lodger.units import GIB

CUDA = torch.device("cuda:0")
CLOSE = 4 * TOLERANCE[torch.float16]  # products of other numbers of rows round otherwise
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["bge-m3", "minilm"])
def runner(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Runner:
    return load(tiny(request.param))


def load(folder: Path) -> Runner:
    return load_runner(inspect_folder(folder), GIB, [precision("float16", CUDA)], CUDA, lambda _: None)


def items_of(lengths: list[int]) -> list[Item]:
    return [Item(0, n, tuple(random.choices(range(5, 90), k=length))) for n, length in enumerate(lengths)]


def vectors(runner: Runner, items: list[Item], *, whole: bool) -> torch.Tensor:
    heads = (runner.heads["dense"],)
    forward = runner.start(items, [heads] * len(items), whole=whole)
    assert forward.launch() is True
    return torch.cat([rows for (rows,) in forward.rows()]).clone()


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
    from lodger.runtime.packed import pack_items

    items = items_of([1] * 200)
    assert not captured(runner).serves(pack_items(items, runner.facts.position_offset, CUDA))
    assert far(vectors(runner, items, whole=True), vectors(runner, items, whole=False)) < CLOSE


def test_without_memory_to_capture_steps_are_launched_one_by_one(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load(tiny("bge-m3"))
    items = items_of([9, 21])
    expected = vectors(runner, items, whole=False)

    def refused(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")

    monkeypatch.setattr(captured(runner), "_capture", refused)
    assert far(vectors(runner, items, whole=True), expected) < CLOSE
    monkeypatch.undo()
    runner.forget()
    assert far(vectors(runner, items, whole=True), expected) < CLOSE
    assert any(graph is not None for graph in captured(runner)._captured.values())


def test_models_share_the_memory_of_their_forwards(tiny: Callable[..., Path]) -> None:
    one, other = load(tiny("bge-m3")), load(tiny("minilm"))
    items = items_of([20, 33])
    expected = [vectors(runner, items, whole=False) for runner in (one, other)]
    for runner in (one, other):
        runner.warm_up(512)
    for _ in range(3):
        for runner, wanted in zip((one, other), expected, strict=True):
            assert far(vectors(runner, items, whole=True), wanted) < CLOSE
