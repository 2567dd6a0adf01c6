"""`Weights`: what models of one folder share. They are on the device while one of these models is awake."""

from __future__ import annotations

from collections.abc import Callable

from lodger.runtime.heap import trim
from lodger.runtime.runner import Runner


class Weights:
    """Used by one thread at a time.

    Args:
        runner: just loaded.
        read: reads the folder again, into a runner that computes the same numbers.
    """

    def __init__(self, runner: Runner, read: Callable[[], Runner]) -> None:
        self._runner: Runner | None = runner
        self._read = read
        self._size = runner.weight_bytes
        self._users: dict[str, bool] = {}  # uid -> whether it is awake, in the order of loading

    def wake(self, uid: str) -> Runner:
        """`uid` uses them from now on.

        Raises:
            MemoryError, torch.OutOfMemoryError, ModelProblem: nothing has changed.
        """
        if self._runner is None:
            self._runner = self._read()
        elif self._runner.arena is not None:
            self._runner.arena.wake()
        self._users[uid] = True
        return self._runner

    def sleep(self, uid: str, *, keep: bool) -> None:
        """`uid` does not need them for now. `keep`: they may stay in RAM."""
        self._users[uid] = False
        if self._runner is None or any(self._users.values()):
            return
        kept = keep and _parked(self._runner)
        if not kept or self._moves:
            self._runner.forget()
        if not kept:
            self._runner = None
        trim()

    @property
    def _moves(self) -> bool:
        """What was captured with their addresses is of no use once they slept."""
        return not (self._runner and self._runner.arena and self._runner.arena.addresses_kept)

    def leave(self, uid: str) -> bool:
        """`uid` is gone; whether it was the last."""
        if self._users.get(uid):
            self.sleep(uid, keep=False)
        self._users.pop(uid, None)
        return not self._users

    def held(self, uid: str) -> dict[str, int]:
        """Bytes by part: on the device those of the first who is awake, and in RAM those of the first."""
        awake = [user for user, is_awake in self._users.items() if is_awake]
        held = {"weights": self._size if awake[:1] == [uid] else 0}
        kept = self._runner.arena.parked if self._runner and self._runner.arena else 0
        return held | ({"host": kept} if kept and next(iter(self._users)) == uid else {})


def _parked(runner: Runner) -> bool:
    """Whether RAM has the weights now, and the device has none."""
    if runner.arena is None:
        return False
    try:
        runner.arena.sleep(keep=True)
    except (MemoryError, OSError):  # no room: then they are read again
        return False
    return True
