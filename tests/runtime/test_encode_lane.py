"""What a lane of texts promises to them and to the chats beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.errors import Cancelled, InternalError, OutOfMemory
from lodger.runtime.encoding import EncodeLane, Outcome
from lodger.runtime.partition import Partition
from lodger.runtime.runner import Runner, TextForward
from lodger.sched.encode import Job
from lodger.sched.step import Item

RunnerOf = Callable[..., Runner]


@pytest.fixture
def runner(runner_of: RunnerOf) -> Runner:
    return runner_of("bge-m3")


NOWHERE: Any = Partition(1, None, None, None)  # type: ignore[arg-type]  # a CPU has no parts


class Desk:
    """Asks a lane and keeps its answers."""

    def __init__(self, runner: Runner, step_tokens: int = 256, partition: Partition | None = None) -> None:
        self.lane = EncodeLane("m3", runner, "embed", step_tokens, partition)
        self.heads = (runner.heads["dense"],)
        self.answers: dict[int, Outcome] = {}

    def ask(self, job: int, *lengths: int) -> None:
        items = tuple(
            Item(job, n, tuple(5 + (job + n + at) % 80 for at in range(length))) for n, length in enumerate(lengths)
        )
        self.lane.add(Job(job, "embed", items), self.heads, lambda found: self.answers.update({job: found}))

    def turn(self, budget: int = 256) -> int:
        claims = list(self.lane.claims(budget))
        ran = self.lane.micro_step(claims[0].lane, budget) if claims else 0
        while self.lane.launched:
            self.lane.deliver(wait=True)
        return ran

    def finish(self, budget: int = 256) -> int:
        turns = 0
        while any(self.lane.claims(1)) or self.lane.launched:
            self.turn(budget)
            turns += 1
        return turns


def same(found: Outcome, expected: Outcome) -> bool:
    assert isinstance(found, list)
    assert isinstance(expected, list)
    return all(torch.allclose(a[0], b[0], atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_a_step_cut_into_layers_finds_what_a_whole_one_finds(runner: Runner) -> None:
    whole, cut = Desk(runner), Desk(runner)
    for desk in (whole, cut):
        desk.ask(1, 60, 9, 31)
        desk.ask(2, 100)
    whole.finish()
    ran = []
    while not cut.answers.keys() >= {1, 2}:
        ran.append(cut.turn(budget=1))
    assert all(same(cut.answers[job], whole.answers[job]) for job in (1, 2))
    assert len([tokens for tokens in ran if tokens]) >= runner.facts.layers, "one layer is the least of a micro-step"


def test_a_micro_step_runs_no_more_than_its_budget_but_one_layer(runner: Runner) -> None:
    desk = Desk(runner)
    desk.ask(1, 200)
    one_layer = 200 // runner.facts.layers
    budget = one_layer + one_layer // 2
    assert desk.turn(budget) == one_layer
    assert not desk.answers
    desk.finish(budget)
    assert desk.answers


@settings(max_examples=12, deadline=None)
@given(
    jobs=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1, max_size=6),
    budgets=st.lists(st.integers(1, 300), min_size=1, max_size=5),
)
def test_everybody_is_answered_whatever_the_budgets(
    runner_of: RunnerOf, jobs: list[list[int]], budgets: list[int]
) -> None:
    desk, alone = Desk(runner_of("bge-m3"), 128), Desk(runner_of("bge-m3"), 128)
    for number, lengths in enumerate(jobs):
        budget = budgets[number % len(budgets)]
        desk.ask(number, *lengths)
        assert desk.turn(budget) <= max(budget, 128 // desk.lane.runner.facts.layers)
    desk.finish(budgets[0])
    for number, lengths in enumerate(jobs):
        alone.ask(number, *lengths)
        alone.finish()
        assert same(desk.answers[number], alone.answers[number])


@pytest.mark.parametrize("served", [True, False], ids=["beside", "too long"])
def test_many_texts_run_beside_chats_and_a_query_in_turns(
    served: bool, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(runner.backbone), "serves_beside", lambda *_: served)
    desk, alone = Desk(runner, partition=NOWHERE), Desk(runner)
    for where in (desk, alone):
        where.ask(1, 60, 9, 31)
    alone.finish()
    assert desk.lane.beside
    assert [claim.tokens for claim in desk.lane.claims_beside()] == [100]
    desk.lane.step_beside()
    assert not any(desk.lane.claims_beside())
    assert desk.lane.beside is served, "what is too long for a step there goes on in turns"
    if not served:
        desk.finish()
    desk.lane.deliver(wait=True)
    assert same(desk.answers[1], alone.answers[1])
    desk.ask(2, 5)
    assert not desk.lane.beside
    assert not any(desk.lane.claims_beside())
    desk.finish()
    assert desk.answers.keys() == {1, 2}


def test_a_query_passes_a_run_that_is_under_way_but_not_twice_in_a_row(runner: Runner) -> None:
    desk = Desk(runner)
    desk.ask(0, *[60] * 4)
    desk.turn(60)
    assert 0 not in desk.answers
    for query in range(1, 4):
        desk.ask(query, 5)
    desk.turn(6)
    assert desk.answers.keys() == {1}, "of three queries there is room for one"
    while 0 not in desk.answers:
        desk.ask(len(desk.answers) + 10, 5)
        desk.turn(60)
        assert len(desk.answers) < 40


def test_who_leaves_in_the_middle_gets_no_word_and_costs_the_others_nothing(runner: Runner) -> None:
    desk, alone = Desk(runner), Desk(runner)
    desk.ask(1, 50, 40)
    desk.ask(2, 30, 20)
    desk.turn(1)
    desk.lane.cancel(1)
    desk.finish(1)
    alone.ask(2, 30, 20)
    alone.finish()
    assert desk.answers.keys() == {2}
    assert same(desk.answers[2], alone.answers[2])


def test_an_unloaded_model_says_so_in_the_middle_of_a_step(runner: Runner) -> None:
    desk = Desk(runner)
    desk.ask(1, 50, 40)
    desk.turn(1)
    desk.lane.close()
    assert isinstance(desk.answers[1], Cancelled)
    assert not any(desk.lane.claims(1))
    assert not desk.lane.launched


@pytest.mark.parametrize(
    ("error", "told"), [(torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory), (ValueError(), InternalError)]
)
def test_a_failure_in_the_middle_of_a_step_is_that_requests(
    error: Exception, told: type[Exception], runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, launch = Desk(runner), TextForward.launch

    def failing(self: Any, layers: int | None = None) -> bool:
        if any(item.job == 9 for item in self._items) and self.left < self.layers:
            raise error
        return launch(self, layers)

    def halves(self: Any, layers: int | None = None) -> bool:
        return failing(self, 1 if layers is None else layers)

    monkeypatch.setattr(TextForward, "launch", halves)
    desk.ask(1, 20)
    desk.ask(9, 20)
    desk.finish(20)
    monkeypatch.undo()
    desk.ask(2, 20)
    desk.finish()
    assert isinstance(desk.answers[9], told)
    assert isinstance(desk.answers[2], list), "the lane lives on"


def test_what_a_finished_step_cannot_hand_out_fails_only_its_own(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(runner)
    desk.ask(1, 20)
    with monkeypatch.context() as broken:
        broken.setattr(TextForward, "rows", lambda self: 1 / 0)
        desk.finish()
    desk.ask(2, 20)
    desk.finish()
    assert isinstance(desk.answers[1], InternalError)
    assert isinstance(desk.answers[2], list)
