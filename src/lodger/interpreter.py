"""How Python itself runs in a process that serves: what its garbage collector looks at, and how threads take turns."""

from __future__ import annotations

import gc
import sys

_NEW_OBJECTS, _ROUNDS = 20_000, 20  # before a collection of the young, and before one of the older
_SWITCH_SECONDS = 0.0005


def begin() -> None:
    """Call it first where much is imported, and `settle` afterwards: the collector's search for garbage among what
    comes takes a fifth of the time."""
    gc.disable()


def settle() -> None:
    """Call it when everything is imported, before there is anything that must be given back.

    What is there by then stays until the end, and so the collector need not look at it again: a full collection over
    the hundred thousands of objects of our libraries took more than half of a busy gateway's time, with every stream
    waiting for it. A thread that wants to run, the device's above all, asks those that run after half a millisecond
    instead of 5.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(_NEW_OBJECTS, _ROUNDS, _ROUNDS)
    sys.setswitchinterval(_SWITCH_SECONDS)
