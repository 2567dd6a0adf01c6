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
        self._users[uid] = True
        return self._runner

    def sleep(self, uid: str) -> None:
        """`uid` does not need them for now."""
        self._users[uid] = False
        if not any(self._users.values()):
            self._runner = None
            trim()

    def leave(self, uid: str) -> bool:
        """`uid` is gone; whether it was the last."""
        self._users.pop(uid, None)
        if self._users and not any(self._users.values()):
            self._runner = None
        return not self._users

    def held(self, uid: str) -> int:
        """Bytes on the device; those of the first who is awake count for it alone."""
        awake = [user for user, is_awake in self._users.items() if is_awake]
        return self._size if awake[:1] == [uid] else 0
