"""What happens when a step fails: only those pay whose work it was, and the device loop lives on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import psutil
import torch

from lodger.errors import InternalError, LodgerError, OutOfMemory
from lodger.runtime.allocator import trim
from lodger.units import gib

_log = logging.getLogger("lodger.runtime")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


class Step(Protocol):
    """Whatever the device computes at once."""

    @property
    def tokens(self) -> int: ...


Work = TypeVar("Work", bound=Step)


def run_or_split(
    work: Work,
    compute: Callable[[Work], None],
    halves: Callable[[Work], tuple[Work, Work] | None],
    fail: Callable[[Work, LodgerError], None],
) -> None:
    """Compute `work`; out of memory, compute its halves one after the other, and theirs.

    Args:
        halves: None where the work cannot be split any more.
        fail: is told of work that is lost, with the error for those who wait for it.
    """
    error = _attempt(work, compute)
    if error is None:
        return
    parts = halves(work) if isinstance(error, OutOfMemory) else None
    if parts is None:
        fail(work, error)
        return
    trim()
    for part in parts:
        run_or_split(part, compute, halves, fail)


def _attempt(work: Work, compute: Callable[[Work], None]) -> LodgerError | None:
    """The error as a value: its traceback would hold on to the tensors of the failed step."""
    try:
        compute(work)
    except Exception as error:  # border: a step on the device. The log has the trace, those who wait get a LodgerError.
        if is_out_of_memory(error):
            return OutOfMemory(
                f"{work.tokens:,} tokens at once need more memory than is left: {gib(_left())} are free.",
                hint="Send less text at once.",
            )
        _log.exception("a step of %d tokens failed", work.tokens)  # never which tokens: they are somebody's text
        return InternalError("The model failed at this request.", hint="The worker's log has the reason.")
    return None


@contextmanager
def where_memory_allows() -> Iterator[None]:
    """What the block does is left undone where memory is short."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host refused memory. torch, cuBLAS and Triton say so in their own ways."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _left() -> int:
    """Bytes that torch could still take: those free, and of those that this process may have, the ones not in use."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info()
    held, used = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    allowed = int(total * torch.cuda.get_per_process_memory_fraction()) - held
    return max(min(free, allowed), 0) + held - used
