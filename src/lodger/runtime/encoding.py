"""`EncodeLane`: the texts to embed or rerank of one model on the device, packed across requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lodger.errors import Cancelled, LodgerError, ModelAsleep
from lodger.runtime.recovery import run_or_split
from lodger.runtime.runner import Heads, Rows, Runner
from lodger.sched.arbiter import Claim
from lodger.sched.encode import EncodeLane as LaneName
from lodger.sched.encode import EncodeQueue, Job
from lodger.sched.step import EncodeStep, Lane

Outcome = list[Rows] | LodgerError  # of each text in order what the job's heads made, or what went wrong


@dataclass
class _Open:
    """A request that some results are still missing of."""

    heads: Heads
    deliver: Callable[[Outcome], None]
    missing: int
    rows: dict[int, Rows] = field(default_factory=dict)  # by the index of the text


class EncodeLane:
    """Called by the device's thread only, apart from the constructor."""

    def __init__(self, name: str, runner: Runner, lane: LaneName, step_tokens: int) -> None:
        self.name = name
        self.step_tokens = step_tokens
        self.decoding = False
        self._runner: Runner | None = runner  # None while the model sleeps
        self._queue = EncodeQueue(lane)
        self._open: dict[int, _Open] = {}

    @property
    def runner(self) -> Runner:
        """
        Raises:
            ModelAsleep.
        """
        if self._runner is None:
            raise ModelAsleep(f"{self.name} sleeps.", hint="Try again in a moment.")
        return self._runner

    def sleep(self) -> None:
        """After `close`: forget the runner."""
        self._runner = None

    def forget(self) -> None:
        """Nothing is left after `sleep`."""

    def wake(self, runner: Runner) -> None:
        self._runner = runner

    def add(self, job: Job, heads: Heads, deliver: Callable[[Outcome], None]) -> None:
        """Make with `heads` of the job's texts; jobs with different heads share steps.

        `deliver` is called on the device's thread, once, when every text of the job is done or one has failed.
        """
        if self._runner is None:
            deliver(Cancelled("the model sleeps."))
            return
        self._open[job.id] = _Open(heads, deliver, len(job.items))
        self._queue.add(job)

    def cancel(self, job_id: int) -> None:
        """Nobody waits for this job any more; it gets no further word."""
        if self._open.pop(job_id, None):
            self._queue.cancel(job_id)

    def close(self) -> None:
        for job_id in list(self._open):
            self._end(job_id, Cancelled("the model was unloaded."))

    def decode(self) -> None:
        """An encoder has no tokens to make."""

    def claims(self, budget: int) -> Iterable[Claim]:
        if self._queue.has_work():
            tokens = min(self._queue.waiting_tokens, self.step_tokens, budget)
            yield Claim(self.name, self._queue.lane, tokens, urgent=self._queue.urgent)

    def micro_step(self, lane: Lane, budget: int) -> None:
        step = self._queue.next_step(min(budget, self.step_tokens))
        if step is not None:
            run_or_split(step, self._compute, _halves, self._fail)

    def _compute(self, step: EncodeStep) -> None:
        items = [item for item in step.items if item.job in self._open]
        if not items:
            return
        found = self.runner.encode(items, [self._open[item.job].heads for item in items])
        for item, rows in zip(items, found, strict=True):
            job = self._open[item.job]
            job.rows[item.index] = rows
            if len(job.rows) == job.missing:
                self._end(item.job, [job.rows[index] for index in sorted(job.rows)])

    def _fail(self, step: EncodeStep, error: LodgerError) -> None:
        for job_id in {item.job for item in step.items} & self._open.keys():
            self._end(job_id, error)

    def _end(self, job_id: int, outcome: Outcome) -> None:
        self._queue.cancel(job_id)
        self._open.pop(job_id).deliver(outcome)


def _halves(step: EncodeStep) -> tuple[EncodeStep, EncodeStep] | None:
    if len(step.items) < 2:
        return None
    middle = len(step.items) // 2
    return step._replace(items=step.items[:middle]), step._replace(items=step.items[middle:])
