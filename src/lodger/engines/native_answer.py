"""From the tokens of a step to the text of every answer: one wake-up of the event loop for all chats together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from lodger.errors import InternalError
from lodger.runtime.generating import Made
from lodger.tasks import Delta, FinishReason, Usage
from lodger.text.stops import StopMatcher
from lodger.text.tokenizer import Tokenizer


class Arrivals:
    """What the device's thread has made for one event loop.

    The thread only hands over: all of it is turned into text in the event loop, and woken is the loop once for what is
    there, not for each token. Python's lock makes `deque` safe for one thread that appends and another that takes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: deque[tuple[Answer, int, Made]] = deque()
        self._called = False

    def deliver(self, answer: Answer, index: int, made: Made) -> None:
        """On the device's thread."""
        self._waiting.append((answer, index, made))
        if not self._called:
            self._called = True
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._called = False  # before the first is taken: what comes from now on calls again
        waiting = self._waiting
        try:
            while waiting:
                answer, index, made = waiting.popleft()
                answer.push(index, made)
        finally:
            if waiting:  # one answer met a defect, which the event loop logs; the others go on
                self.loop.call_soon(self._take)


class Answer:
    """All choices of one request, in the event loop that asks for it.

    Attributes:
        done: has a result when every choice is finished, and an error when one failed.
    """

    def __init__(self, prompt_tokens: int, put: Callable[[Delta], None], cancel: Callable[[int], None]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.choices: list[Choice] = []
        self._prompt_tokens = prompt_tokens
        self._put, self._cancel = put, cancel

    def push(self, index: int, made: Made) -> None:
        choice = self.choices[index]
        if choice.finished or self.done.done():  # it ended while this was on its way
            return
        if made.error is not None:
            self.done.set_exception(made.error)
            return
        whole = False
        try:
            text, reason = choice.push(made)
            whole = True
        finally:
            if not whole:
                self.done.set_exception(InternalError("The model's answer could not be turned into text."))
        if reason is not None:
            self._finish(index, text, reason, stopped=made.finish is None)
        elif text:
            self._put(Delta(index, text))

    def _finish(self, index: int, text: str, reason: FinishReason, *, stopped: bool) -> None:
        """`stopped`: the device does not know yet."""
        if stopped:
            self._cancel(self.choices[index].sequence_id)
        usage = None
        if all(choice.finished for choice in self.choices):
            usage = Usage(self._prompt_tokens, sum(choice.tokens for choice in self.choices))
            self.done.set_result(None)
        self._put(Delta(index, text, reason, usage))

    def close(self) -> None:
        """Nobody waits any more."""
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # it is known to whoever closes
        for choice in self.choices:
            if not choice.finished:
                self._cancel(choice.sequence_id)


class Choice:
    """The text of one choice, as its tokens come."""

    def __init__(self, sequence_id: int, ends: frozenset[int], tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self.sequence_id = sequence_id
        self.tokens = 0  # made, the one that ends the text included
        self.finished = False
        self._ends = ends
        self._detokenizer = tokenizer.detokenizer()
        self._matcher = StopMatcher(stops) if stops else None

    def push(self, made: Made) -> tuple[str, FinishReason | None]:
        """The text that can be shown now, and why the choice has ended if it has."""
        text, stopped = "", False
        if made.token is not None:
            self.tokens += 1
            text = "" if made.token in self._ends else self._detokenizer.push(made.token)
        if made.finish is not None:
            text += self._detokenizer.flush()
        if self._matcher is not None:
            text, stopped = self._matcher.push(text)
            if made.finish is not None:
                text += self._matcher.flush()
        reason: FinishReason | None = "stop" if stopped else made.finish
        self.finished = reason is not None
        return text, reason
