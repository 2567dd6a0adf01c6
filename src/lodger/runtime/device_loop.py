"""`DeviceLoop`: the one thread that owns the device, and what it does at each turn.

A turn is one decode step of every model with running chats, then one micro-step of whatever the arbiter chooses. On a
GPU both are launched and not waited for: what a step found is handed out while later ones run. Where the memory was
planned for it, many texts do not take turns with the chats that decode: they are computed beside them, on a part of the
device. While a prompt or a query waits, everything takes turns. New work and cancellations arrive between steps, as
functions that the thread runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Protocol

from lodger.errors import InternalError
from lodger.runtime.runner import Runner
from lodger.runtime.stopwatch import Mark, Stopwatch
from lodger.runtime.upload import stock
from lodger.sched.arbiter import Arbiter, Claim, micro_step_tokens
from lodger.sched.pace import Pace
from lodger.sched.step import Lane

AHEAD = 2  # steps beside chats that are launched and not done: one is computed, the other waits behind it


class ModelLane(Protocol):
    """One model's work on the device."""

    name: str
    step_tokens: int
    paced: bool  # a micro-step can be cut to the time that chats leave for it; else it gets a share of a full step

    def begin(self) -> None:
        """Called once on the device's thread, before anything else is asked of it there."""
        ...

    @property
    def decoding(self) -> bool:
        """`decode` has something to do."""
        ...

    def decode(self) -> None: ...

    def claims(self, budget: int) -> Iterable[Claim]:
        """What could run next, cut to `budget` tokens, or to more where a model's own chats pay for it."""
        ...

    def micro_step(self, lane: Lane, budget: int) -> int:
        """Run what was claimed with this `budget`; how many tokens of whole forwards that was."""
        ...

    @property
    def beside(self) -> bool:
        """What it has to do now runs beside decoding chats, on a part of the device, and not in turns with them."""
        ...

    def claims_beside(self) -> Iterable[Claim]:
        """What could be launched there next."""
        ...

    def step_beside(self) -> None:
        """Launch that."""
        ...

    @property
    def busy_beside(self) -> int:
        """Steps that were launched there and are not done."""
        ...

    @property
    def launched(self) -> bool:
        """`deliver` will have something to hand out that nobody else does."""
        ...

    def deliver(self, *, wait: bool) -> None:
        """Hand out what the device has finished; `wait`: for the oldest if it has finished nothing."""
        ...

    def close(self) -> None:
        """End everything with `Cancelled`."""
        ...

    def sleep(self) -> None:
        """After `close`: let go of the runner; whatever is asked for now ends with `Cancelled`."""
        ...

    def forget(self) -> None:
        """After `sleep`: it will not wake."""
        ...

    def wake(self, runner: Runner) -> None:
        """Go on with this runner; nothing is left of what was before."""
        ...


class DeviceLoop:
    """Every method may be called from any thread but the device's own."""

    def __init__(self, device: str) -> None:
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lanes: dict[str, ModelLane] = {}
        self._arbiter, self._beside, self._pace = Arbiter(), Arbiter(), Pace()
        self._on_gpu = device.startswith("cuda")
        self._stopwatch = Stopwatch(self._on_gpu)
        self._thread = threading.Thread(target=self._run, name=f"device {device}", daemon=True)
        self._thread.start()

    def post(self, function: Callable[[], None]) -> None:
        """Run `function` on the device's thread before its next step. It must not raise."""
        self._inbox.put(function)

    def add(self, lane: ModelLane) -> None:
        """Serve this model from now on. Returns when that is so."""
        self.post(lane.begin)
        self.post(lambda: self._lanes.update({lane.name: lane}))
        self.wait()

    def remove(self, name: str) -> None:
        """Serve this model no longer: whoever still waits for it gets `Cancelled`. Returns when that is done."""
        self.post(lambda: self._lanes.pop(name).close())
        self.wait()

    def wait(self) -> None:
        """Until everything posted so far has been run."""
        done = threading.Event()
        self.post(done.set)
        while not done.wait(timeout=1) and self._thread.is_alive():
            pass

    def check(self) -> None:
        """
        Raises:
            InternalError: the thread has ended, by a defect of ours; nothing is served any more.
        """
        if not self._thread.is_alive():
            raise InternalError("The thread that owns the device has ended.", hint="The worker must be restarted.")

    def close(self) -> None:
        """Close every model and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        if self._on_gpu:
            stock()
        while self._take_mail():
            self._turn()
        for lane in self._lanes.values():
            lane.close()

    def _take_mail(self) -> bool:
        """Run what arrived; without other work wait for it. False: time to end."""
        block = not self._busy()
        while True:
            try:
                function = self._inbox.get(block=block)
            except Empty:
                return True
            if function is None:
                return False
            function()
            block = block and not self._busy()

    def _busy(self) -> bool:
        return any(lane.decoding or lane.launched or any(lane.claims(1)) for lane in self._lanes.values())

    def _turn(self) -> None:
        lanes = list(self._lanes.values())
        decoding = [lane for lane in lanes if lane.decoding]
        marks = [self._stopwatch.mark()] if decoding else []
        for lane in decoding:
            lane.decode()
        if decoding:
            marks.append(self._stopwatch.mark())
        beside = bool(decoding) and not any(any(lane.claims(1)) for lane in lanes if not lane.beside)
        if beside:
            self._run_beside(lanes)
        budgets = {lane.name: self._budget(lane, bool(decoding)) for lane in lanes}
        claims = [] if beside else [claim for lane in lanes for claim in lane.claims(budgets[lane.name])]
        chosen = self._arbiter.choose(claims)
        ran = 0 if chosen is None else self._lanes[chosen.model].micro_step(chosen.lane, budgets[chosen.model])
        if decoding:
            self._measure([*marks, self._stopwatch.mark()], "" if chosen is None else chosen.model, ran)
        for lane in lanes:
            lane.deliver(wait=not decoding and chosen is None)

    def _run_beside(self, lanes: list[ModelLane]) -> None:
        """So many steps that the part of the device for texts has work until the next turn."""
        for _ in range(AHEAD - sum(lane.busy_beside for lane in lanes)):
            chosen = self._beside.choose([claim for lane in lanes for claim in lane.claims_beside()])
            if chosen is None:
                return
            self._lanes[chosen.model].step_beside()

    def _budget(self, lane: ModelLane, decoding: bool) -> int:
        """Most tokens of its next micro-step."""
        if decoding and lane.paced:
            return self._pace.budget(lane.name, lane.step_tokens)
        return micro_step_tokens(decoding, lane.step_tokens)

    def _measure(self, marks: list[Mark], lane: str, tokens: int) -> None:
        """`marks`: before and after a decode step, and after the micro-step behind it."""

        def learn(times: list[float]) -> None:
            self._pace.decoded(times[0])
            self._pace.ran(lane, tokens, times[1])

        self._stopwatch.tell(marks, learn)
        self._stopwatch.hear()
