"""The forward context: which attention plan the model that is running now attends through.

transformers' modules call an attention function with queries, keys and values only. Where one sequence ends and the
next begins, and where older keys lie, is the plan's to know; the runner sets it around each forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lodger.runtime.attention.base import AttentionPlan

_PLAN: ContextVar[AttentionPlan] = ContextVar("attention_plan")


@contextmanager
def attending(plan: AttentionPlan) -> Iterator[None]:
    """Everything that the block runs attends through `plan`."""
    token = _PLAN.set(plan)
    try:
        yield
    finally:
        _PLAN.reset(token)


def current_plan() -> AttentionPlan:
    """The plan of the forward that is running. A LookupError outside of one is a defect of ours."""
    return _PLAN.get()
