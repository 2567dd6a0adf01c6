"""`DeviceLoop`: the one thread that owns the device, and what it does at each turn.

A turn is one decode step of every model with running chats, then one micro-step of whatever the arbiter chooses. New
work and cancellations arrive between steps, as functions that the thread runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Protocol

from lodger.errors import InternalError
from lodger.runtime.runner import Runner
from lodger.sched.arbiter import Arbiter, Claim, micro_step_tokens
from lodger.sched.step import Lane


class ModelLane(Protocol):
    """One model's work on the device."""

    name: str
    step_tokens: int

    @property
    def decoding(self) -> bool:
        """`decode` has something to do."""
        ...

    def decode(self) -> None: ...

    def claims(self, budget: int) -> Iterable[Claim]:
        """What could run next, cut to `budget` tokens, or to more where a model's own chats pay for it."""
        ...

    def micro_step(self, lane: Lane, budget: int) -> None:
        """Run what was claimed with this `budget`."""
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
        self._arbiter = Arbiter()
        self._thread = threading.Thread(target=self._run, name=f"device {device}", daemon=True)
        self._thread.start()

    def post(self, function: Callable[[], None]) -> None:
        """Run `function` on the device's thread before its next step. It must not raise."""
        self._inbox.put(function)

    def add(self, lane: ModelLane) -> None:
        """Serve this model from now on."""
        self.post(lambda: self._lanes.update({lane.name: lane}))

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
        return any(lane.decoding or any(lane.claims(1)) for lane in self._lanes.values())

    def _turn(self) -> None:
        lanes = list(self._lanes.values())
        decoding = [lane for lane in lanes if lane.decoding]
        for lane in decoding:
            lane.decode()
        budgets = {lane.name: micro_step_tokens(bool(decoding), lane.step_tokens) for lane in lanes}
        claims = [claim for lane in lanes for claim in lane.claims(budgets[lane.name])]
        chosen = self._arbiter.choose(claims)
        if chosen is not None:
            self._lanes[chosen.model].micro_step(chosen.lane, budgets[chosen.model])
