"""`EncodeLane`: the texts to embed or rerank of one model on the device, packed across requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from lodger.errors import Cancelled, LodgerError, ModelAsleep
from lodger.runtime.partition import STEPS, Partition
from lodger.runtime.recovery import run_or_split
from lodger.runtime.runner import Heads, Rows, Runner, TextForward
from lodger.sched.arbiter import Claim
from lodger.sched.encode import EncodeLane as LaneName
from lodger.sched.encode import EncodeQueue, Job
from lodger.sched.step import EncodeStep, Item, Lane

# Tokens of a captured step that is not cut into layers: to launch those one by one takes the host 7 ms, and the device
# computes all of it in 2.7 (H100).
_UNCUT = 2048
REHEARSED = 1, 24  # texts: products of few rows and of more have kernels of their own
Outcome = list[Rows] | LodgerError  # of each text in order what the job's heads made, or what went wrong


@dataclass
class _Open:
    """A request that some results are still missing of."""

    heads: Heads
    deliver: Callable[[Outcome], None]
    missing: int
    rows: dict[int, Rows] = field(default_factory=dict)  # by the index of the text


@dataclass
class _Run:
    """One step on its way to the device."""

    step: EncodeStep
    forward: TextForward | None = None  # None: it has not begun
    layers: int | None = None  # to launch next; None is all

    @property
    def tokens(self) -> int:
        return self.step.tokens

    @property
    def left(self) -> int:
        """What is not launched yet, in tokens of whole forwards."""
        if self.forward is None:
            return self.tokens
        return self.tokens * self.forward.left // self.forward.layers

    @property
    def ready(self) -> bool:
        """The device is done with it."""
        return self.forward is not None and self.forward.ready


class EncodeLane:
    """Called by the device's thread only, apart from the constructor.

    Where a micro-step is to be short, some layers of a step are launched at a time: it is as short as that, and its
    products are still those of many tokens. On a GPU a step is prepared while the one before is computed.

    Args:
        partition: a part of the device where texts are computed beside chats.
    """

    paced = True
    decoding = False

    def __init__(
        self, name: str, runner: Runner, lane: LaneName, step_tokens: int, partition: Partition | None = None
    ) -> None:
        self.name = name
        self.step_tokens = step_tokens
        self._runner: Runner | None = None  # while the model sleeps
        self._partition = partition
        self._queue = EncodeQueue(lane)
        self._open: dict[int, _Open] = {}
        self._running: deque[_Run] = deque()  # begun, the one that goes on first
        self._launched: deque[_Run] = deque()  # whole; the device computes them or has done so
        self._beside: deque[_Run] = deque()  # likewise, on the partition
        self._bypassed = False  # the last micro-step was for an urgent text while another run waited
        self.wake(runner)

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
        """Nothing is left to be built or captured when it returns: chats may be running."""
        runner.warm_up(self.step_tokens, self._partition)
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
        self._running.clear()
        while self.launched:
            self.deliver(wait=True)
        for job_id in list(self._open):
            self._end(job_id, Cancelled("the model was unloaded."))

    def begin(self) -> None:
        """What this thread needs for heads is loaded and allocated, by steps of nobody's texts: else the first vector
        took 82 ms, and 10 to 20 of everybody's on a busy GPU. Where memory is short now, the first requests do it."""
        if self._runner is None or self._runner.device.type != "cuda":
            return
        for count in REHEARSED:
            items = tuple(Item(0, n, (0, 0)) for n in range(count))
            run_or_split(_Run(EncodeStep(self._queue.lane, items)), self._rehearse, lambda _: None, lambda *_: None)

    def _rehearse(self, run: _Run) -> None:
        heads = [tuple(self.runner.heads.values())] * len(run.step.items)
        self.runner.start(run.step.items, heads, whole=True).rows()
        if self._partition is not None and self.runner.serves_beside(run.step.items):
            with torch.cuda.stream(self._partition.stream):
                self.runner.start(run.step.items, heads, beside=True).rows()

    def decode(self) -> None:
        """An encoder has no tokens to make."""

    def claims(self, budget: int) -> Iterable[Claim]:
        waiting = self._queue.waiting_tokens + sum(run.left for run in self._running)
        if self._queue.has_work() or self._running:
            tokens = min(waiting, self.step_tokens, budget)
            yield Claim(self.name, self._queue.lane, tokens, urgent=self._queue.urgent)

    def micro_step(self, lane: Lane, budget: int) -> int:
        run = self._next(budget)
        if run is None:
            return 0
        before, all_layers = run.left, self.runner.facts.layers
        at_once = budget >= before or (
            run.forward is None and run.tokens <= _UNCUT and self.runner.step_size(run.tokens)
        )
        run.layers = None if at_once else max(budget * all_layers // run.tokens, 1)
        run_or_split(run, self._advance, _halves, self._fail)
        return before - run.left

    @property
    def beside(self) -> bool:
        """A text that somebody waits for does better with a turn of its own, and so does what has begun in turns."""
        return self._partition is not None and not self._running and not self._queue.urgent

    def claims_beside(self) -> Iterable[Claim]:
        if self.beside and self._queue.has_work():
            tokens = min(self._queue.waiting_tokens, STEPS[-1])
            yield Claim(self.name, self._queue.lane, tokens, urgent=False)

    def step_beside(self) -> None:
        step = self._queue.next_step(STEPS[-1])
        if step is None:
            return
        if self.runner.serves_beside(step.items):
            run_or_split(_Run(step), self._launch_beside, _halves, self._fail)
        else:
            self._running.append(_Run(step))

    @property
    def busy_beside(self) -> int:
        return sum(not run.ready for run in self._beside)

    @property
    def launched(self) -> bool:
        return bool(self._launched or self._beside)

    def deliver(self, *, wait: bool) -> None:
        for runs in (self._launched, self._beside):
            while runs and (wait or runs[0].ready):
                run_or_split(runs.popleft(), self._hand_out, lambda _: None, self._fail)
                wait = False

    def _next(self, budget: int) -> _Run | None:
        """What goes on. A text that somebody waits for passes a run that is under way, but not twice in a row."""
        passing = self._queue.urgent and len(self._running) == 1 and not self._bypassed
        self._bypassed = passing
        if passing or not self._running:
            step = self._queue.next_step(self._size(budget))
            return None if step is None else _Run(step)
        return self._running.popleft()

    def _size(self, budget: int) -> int:
        """Most tokens of a new step: those of the micro-step, unless it is to be cut into layers."""
        tokens = min(budget, self.step_tokens)
        at_once = self.runner.step_size(tokens)
        return at_once or (tokens if self._queue.urgent else self.step_tokens)

    def _advance(self, run: _Run) -> None:
        run.forward = run.forward or self._start(run)
        if run.forward is None:
            return
        if not run.forward.launch(run.layers):
            self._running.appendleft(run)
            return
        self._launched.append(run)
        while len(self._launched) > (1 if run.forward.overlaps else 0):
            self.deliver(wait=True)

    def _launch_beside(self, run: _Run) -> None:
        assert self._partition is not None
        with torch.cuda.stream(self._partition.stream):
            run.forward = self._start(run, beside=True)
            if run.forward is not None:
                run.forward.launch()
                self._beside.append(run)

    def _start(self, run: _Run, *, beside: bool = False) -> TextForward | None:
        """None: nobody waits for it any more."""
        items = tuple(item for item in run.step.items if item.job in self._open)
        if not items:
            return None
        run.step = run.step._replace(items=items)
        heads = [self._open[item.job].heads for item in items]
        return self.runner.start(items, heads, whole=run.layers is None, beside=beside)

    def _hand_out(self, run: _Run) -> None:
        assert run.forward is not None
        for item, rows in zip(run.step.items, run.forward.rows(), strict=True):
            job = self._open.get(item.job)
            if job is None:  # nobody waits any more
                continue
            job.rows[item.index] = rows
            if len(job.rows) == job.missing:
                self._end(item.job, [job.rows[index] for index in sorted(job.rows)])

    def _fail(self, run: _Run, error: LodgerError) -> None:
        for job_id in {item.job for item in run.step.items} & self._open.keys():
            self._end(job_id, error)

    def _end(self, job_id: int, outcome: Outcome) -> None:
        self._queue.cancel(job_id)
        self._open.pop(job_id).deliver(outcome)


def _halves(run: _Run) -> tuple[_Run, _Run] | None:
    """Of its texts; each is computed without a pause."""
    items = run.step.items
    if len(items) < 2:
        return None
    middle = len(items) // 2
    return _Run(run.step._replace(items=items[:middle])), _Run(run.step._replace(items=items[middle:]))
