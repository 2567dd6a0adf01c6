"""`EncodeQueue`: which texts of which requests one encoder computes next."""

from __future__ import annotations

from bisect import bisect_right
from typing import Literal, NamedTuple

from lodger.errors import InternalError
from lodger.sched.step import EncodeStep, Item

EncodeLane = Literal["rerank", "embed"]
WINDOW = 16  # jobs without a text short enough before the search for one is given up
BYPASS = 4  # steps in a row in which single texts may go before the oldest bulk job


class Job(NamedTuple):
    """All texts of one request. It may span several steps; the engine puts the results together by `Item.index`."""

    id: int
    lane: EncodeLane
    items: tuple[Item, ...]


class EncodeQueue:
    """Packs texts across requests by tokens.

    Order: requests of a single text (a query, somebody waits for it) before bulk, each in order of arrival. Within a
    request the longest text that still fits goes first: the step fills well and its texts are of similar length.
    Bound: the oldest bulk request leads at least one step in `BYPASS` + 1, and a request that leads a step has its
    longest text in it, so no text waits for ever.
    """

    def __init__(self, lane: EncodeLane) -> None:
        self.lane = lane
        self.waiting_tokens = 0
        self._single: dict[int, list[Item]] = {}
        self._bulk: dict[int, list[Item]] = {}  # items left, the shortest first
        self._bypassed = 0

    @property
    def urgent(self) -> bool:
        """A request of a single text is waiting."""
        return bool(self._single)

    def has_work(self) -> bool:
        return bool(self._single or self._bulk)

    def add(self, job: Job) -> None:
        """Queue a request.

        Raises:
            InternalError: it has no items, is of another lane, or its id is in the queue.
        """
        if not job.items or job.lane != self.lane or job.id in self._single or job.id in self._bulk:
            raise InternalError(f"job {job.id} ({job.lane}, {len(job.items)} items) cannot join the {self.lane} queue.")
        jobs = self._single if len(job.items) == 1 else self._bulk
        jobs[job.id] = sorted(job.items, key=_length)
        self.waiting_tokens += sum(map(_length, job.items))

    def cancel(self, job_id: int) -> None:
        """Forget what is left of a request. An unknown id is fine."""
        left = self._single.pop(job_id, None) or self._bulk.pop(job_id, [])
        self.waiting_tokens -= sum(map(_length, left))

    def next_step(self, token_budget: int) -> EncodeStep | None:
        """Texts of at most `token_budget` tokens together, or one alone that is longer."""
        bulk_leads = self._bypassed >= BYPASS or not self._single
        order = (self._bulk, self._single) if bulk_leads else (self._single, self._bulk)
        self._bypassed = 0 if bulk_leads or not self._bulk else self._bypassed + 1
        items: list[Item] = []
        for jobs in order:
            self._fill(items, jobs, token_budget)
        self.waiting_tokens -= sum(map(_length, items))
        return EncodeStep(self.lane, tuple(items)) if items else None

    def _fill(self, items: list[Item], jobs: dict[int, list[Item]], token_budget: int) -> None:
        """Take from `jobs` in order what still fits; stop looking after `WINDOW` jobs that have nothing for us."""
        left = token_budget - sum(map(_length, items))
        misses = 0
        for job_id, texts in list(jobs.items()):
            if misses == WINDOW or (items and left <= 0):
                return
            before = len(items)
            while texts:
                at = bisect_right(texts, left, key=_length) - 1 if items else len(texts) - 1
                if at < 0:
                    break
                items.append(texts.pop(at))
                left -= _length(items[-1])
            misses += len(items) == before
            if not texts:
                del jobs[job_id]


def _length(item: Item) -> int:
    return len(item.tokens)
