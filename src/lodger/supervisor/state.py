"""The life of one model as a pure state machine: events in, the next life out.

    state       Progressed  Loaded  LoadFailed  Slept   Woken  LoadAsked  WorkerDied                     StopAsked
    loading     loading     ready   failed      .       .      .          restarting (3rd time: failed)  stopping
    restarting  restarting  ready   failed      .       .      .          restarting (3rd time: failed)  stopping
    ready       .           .       .           asleep  .      .          restarting                     stopping
    asleep      .           .       .           .       ready  loading    asleep                         stopping
    failed      .           .       .           .       .      .          .                              stopping
    stopping    .           .       .           .       .      .          .                              .

A dot is an event that came too late: it changes nothing. A model that is gone is no longer in the table of models; one
that failed stays until somebody takes it out or launches it again. One whose worker died while it slept sleeps on,
without `info`: it holds nothing any more and can only be woken by loading it again (LoadAsked, not Woken).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lodger.engines.base import LoadedInfo
from lodger.errors import ErrorInfo, ModelFailed
from lodger.service import State

MAX_STRIKES = 3


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model is in its life, and what is known of it there."""

    state: State = "loading"
    progress: float = 0.0
    info: LoadedInfo | None = None  # of a ready model, and of one asleep that its worker has
    error: ErrorInfo | None = None  # of a failed or restarting one
    log_tail: tuple[str, ...] = ()
    strikes: int = 0  # times in a row that the worker died while loading this model
    restarts: int = 0


class Progressed(msgspec.Struct, frozen=True):
    fraction: float


class Loaded(msgspec.Struct, frozen=True):
    info: LoadedInfo


class LoadFailed(msgspec.Struct, frozen=True):
    error: ErrorInfo
    log_tail: tuple[str, ...] = ()


class Slept(msgspec.Struct, frozen=True):
    pass


class Woken(msgspec.Struct, frozen=True):
    pass


class LoadAsked(msgspec.Struct, frozen=True):
    """It sleeps in no worker and is to be loaded again."""


class WorkerDied(msgspec.Struct, frozen=True):
    """`culprit`: it died while this very model was being loaded, or before it could load any."""

    error: ErrorInfo
    log_tail: tuple[str, ...] = ()
    culprit: bool = False


class StopAsked(msgspec.Struct, frozen=True):
    pass


_FIRST: tuple[State, ...] = ("stopping", "ready", "asleep", "loading", "restarting", "failed")
Event = Progressed | Loaded | LoadFailed | Slept | Woken | LoadAsked | WorkerDied | StopAsked


def together(lives: Sequence[Life]) -> Life:
    """The life of a model with several replicas: it serves when one of them does, and has failed when all have."""
    first = min(lives, key=lambda life: (_FIRST.index(life.state), -life.progress))
    return msgspec.structs.replace(first, restarts=sum(life.restarts for life in lives))


def step(life: Life, event: Event) -> Life:
    """The life after `event`; the same object when the event came too late."""
    waiting = life.state in ("loading", "restarting")
    match event:
        case StopAsked() if life.state != "stopping":
            return Life(state="stopping", restarts=life.restarts)
        case WorkerDied() if waiting or life.state == "ready":
            return _died(life, event)
        case Progressed() if waiting:
            return msgspec.structs.replace(life, progress=min(1.0, max(life.progress, event.fraction)))
        case Loaded() if waiting:
            return Life(state="ready", progress=1.0, info=event.info, restarts=life.restarts)
        case LoadFailed() if waiting:
            return Life(state="failed", error=event.error, log_tail=event.log_tail, restarts=life.restarts)
        case Slept() if life.state == "ready":
            return msgspec.structs.replace(life, state="asleep")
        case Woken() if life.state == "asleep" and life.info is not None:
            return msgspec.structs.replace(life, state="ready")
        case LoadAsked() if life.state == "asleep" and life.info is None:
            return Life(restarts=life.restarts)
        case WorkerDied() if life.state == "asleep" and life.info is not None:
            return msgspec.structs.replace(life, info=None)
    return life


def _died(life: Life, event: WorkerDied) -> Life:
    strikes = life.strikes + event.culprit
    if strikes < MAX_STRIKES:
        return Life(
            state="restarting",
            error=event.error,
            log_tail=event.log_tail,
            strikes=strikes,
            restarts=life.restarts + 1,
        )
    error = ModelFailed(
        f"Its worker died {strikes} times in a row while loading it. {event.error.message}",
        hint=event.error.hint or "Its last log lines say more; launch it again when the cause is gone.",
    )
    return Life(state="failed", error=error.info(), log_tail=event.log_tail, strikes=strikes, restarts=life.restarts)
