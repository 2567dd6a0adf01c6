"""The life of a model, and the time between two tries. Pure."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lodger.engines.base import LoadedInfo
from lodger.errors import ErrorInfo
from lodger.service import State
from lodger.supervisor import state
from lodger.supervisor.backoff import Backoff
from lodger.supervisor.state import (
    MAX_STRIKES,
    Event,
    Life,
    LoadAsked,
    Loaded,
    LoadFailed,
    Progressed,
    Slept,
    StopAsked,
    Woken,
    WorkerDied,
    step,
    together,
)

INFO = LoadedInfo(dtype="float32", context_length=512, memory={}, load_seconds=0.1)
ERROR = ErrorInfo(code="worker_down", message="It died.")
EVENTS: dict[str, Event] = {
    "Progressed": Progressed(0.5),
    "Loaded": Loaded(INFO),
    "LoadFailed": LoadFailed(ERROR),
    "Slept": Slept(),
    "Woken": Woken(),
    "LoadAsked": LoadAsked(),
    "WorkerDied": WorkerDied(ERROR, culprit=True),
    "StopAsked": StopAsked(),
}
events = st.one_of(
    st.builds(Progressed, st.floats(-1, 2)),
    st.just(EVENTS["Loaded"]),
    st.sampled_from([EVENTS[name] for name in ("LoadFailed", "Slept", "Woken", "LoadAsked")]),
    st.builds(WorkerDied, st.just(ERROR), culprit=st.booleans()),
    st.just(EVENTS["StopAsked"]),
)
EDGES = {
    ("loading", "ready"), ("loading", "failed"), ("loading", "restarting"), ("loading", "stopping"),
    ("restarting", "ready"), ("restarting", "failed"), ("restarting", "stopping"),
    ("ready", "restarting"), ("ready", "stopping"), ("failed", "stopping"),
    ("ready", "asleep"), ("asleep", "ready"), ("asleep", "loading"), ("asleep", "stopping"),
}  # fmt: skip


def documented() -> list[tuple[str, str, str]]:
    """(state, event, next state) as the module's table says it."""
    lines = [line.split("  ") for line in (state.__doc__ or "").splitlines() if line.startswith("    ")]
    head, *rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return [(row[0], event, cell) for row in rows for event, cell in zip(head[1:], row[1:], strict=True)]


def test_the_table_in_the_docstring_is_what_happens() -> None:
    lives = {
        "loading": Life(),
        "restarting": Life(state="restarting", error=ERROR),
        "ready": Life(state="ready", info=INFO),
        "asleep": Life(state="asleep", info=INFO),
        "failed": Life(state="failed", error=ERROR),
        "stopping": Life(state="stopping"),
    }
    table = documented()
    assert len(table) == len(lives) * len(EVENTS)
    for before, event, after in table:
        life = lives[before]
        if event == "LoadAsked" and before == "asleep":
            life = replace(life, info=None)
        moved = step(life, EVENTS[event])
        if after == ".":
            assert moved is life
        else:
            assert moved.state == after.split(" ")[0], (before, event)


@settings(deadline=None)
@given(st.lists(events, max_size=30))
def test_no_sequence_of_events_leads_where_it_should_not(sequence: list[Event]) -> None:
    life = Life()
    for event in sequence:
        moved = step(life, event)
        assert moved.state == life.state or (life.state, moved.state) in EDGES
        assert (moved.info is not None) == (moved.state == "ready") or moved.state == "asleep"
        assert (moved.error is not None) == (moved.state in ("failed", "restarting"))
        assert moved.strikes < MAX_STRIKES or moved.state == "failed"
        assert 0 <= moved.progress <= 1
        assert moved.restarts - life.restarts == (isinstance(event, WorkerDied) and moved.state == "restarting")
        life = moved


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=10))
def test_only_three_deaths_while_loading_it_make_a_model_fail(culprits: list[bool]) -> None:
    life = Life()
    for culprit in culprits:
        life = step(life, WorkerDied(ERROR, culprit=culprit))
    assert (life.state == "failed") == (sum(culprits) >= MAX_STRIKES)


def test_a_model_whose_worker_died_in_its_sleep_sleeps_on_and_must_be_loaded() -> None:
    asleep = step(Life(state="ready", info=INFO), Slept())
    assert step(asleep, LoadAsked()) is asleep
    lost = step(asleep, EVENTS["WorkerDied"])
    assert (lost.state, lost.info, lost.restarts) == ("asleep", None, 0)
    assert step(lost, Woken()) is lost
    assert step(lost, EVENTS["WorkerDied"]) is lost
    assert step(step(lost, LoadAsked()), EVENTS["Loaded"]).state == "ready"


def test_a_model_that_loads_is_forgiven() -> None:
    life = Life()
    for _ in range(5):
        life = step(step(life, EVENTS["WorkerDied"]), EVENTS["WorkerDied"])
        assert life.strikes == 2
        life = step(life, EVENTS["Loaded"])
        assert life.strikes == 0
    assert life.restarts == 10


def test_the_wait_doubles_up_to_half_a_minute_and_a_healthy_minute_resets_it() -> None:
    backoff, waits = Backoff(), []
    assert backoff.seconds == 0
    for _ in range(9):
        backoff = backoff.after(uptime=1)
        waits.append(backoff.seconds)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff.after(uptime=59).seconds == 30
    assert backoff.after(uptime=60).seconds == 0.5
    for _ in range(5000):
        backoff = backoff.after(uptime=0)
    assert backoff.seconds == 30


def test_a_model_is_what_the_best_of_its_replicas_is() -> None:
    best_first: tuple[State, ...] = ("stopping", "ready", "asleep", "loading", "restarting", "failed")
    for better, worse in itertools.combinations(best_first, 2):
        found = together([Life(state=worse, restarts=1), Life(state=better, restarts=1)])
        assert (found.state, found.restarts) == (better, 2)
    further = together([Life(progress=0.2), Life(progress=0.7)])
    assert (further.state, further.progress) == ("loading", 0.7)
