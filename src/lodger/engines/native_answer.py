"""From the tokens of a step to the text of every answer: one wake-up of the event loop for all chats together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace

from lodger.errors import InternalError
from lodger.runtime.generating import Made
from lodger.runtime.likely import Probable
from lodger.tasks import Delta, FinishReason, Likely, TokenLogprobs, Usage
from lodger.text.output import OutputParser, Piece
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
        self.cached: Callable[[], int] = int  # of the prompt's tokens, how many were found computed
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
            delta = choice.push(index, made)
            whole = True
        finally:
            if not whole:
                self.done.set_exception(InternalError("The model's answer could not be turned into text."))
        if choice.finished:
            assert delta is not None
            self._finish(choice, delta, stopped=made.finish is None)
        elif delta is not None:
            self._put(delta)

    def _finish(self, choice: Choice, last: Delta, *, stopped: bool) -> None:
        """`stopped`: the device does not know yet."""
        if stopped:
            self._cancel(choice.sequence_id)
        if all(one.finished for one in self.choices):
            last = replace(last, usage=self._usage())
            self.done.set_result(None)
        self._put(last)

    def _usage(self) -> Usage:
        made, thought = (sum(getattr(one, name) for one in self.choices) for name in ("tokens", "thought"))
        return Usage(self._prompt_tokens, made, self.cached(), thought)

    def close(self) -> None:
        """Nobody waits any more."""
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # it is known to whoever closes
        for choice in self.choices:
            if not choice.finished:
                self._cancel(choice.sequence_id)


class Choice:
    """The text of one choice, as its tokens come.

    Attributes:
        tokens: made, the one that ends the text included.
        thought: of them, those of the thought before the text.
    """

    def __init__(
        self,
        sequence_id: int,
        ends: frozenset[int],
        tokenizer: Tokenizer,
        stops: tuple[str, ...],
        parser: OutputParser | None = None,
        *,
        logprobs: bool = False,
    ) -> None:
        self.sequence_id = sequence_id
        self.tokens = self.thought = 0
        self.finished = False
        self._ends = ends
        self._detokenizer = tokenizer.detokenizer(parser.special if parser is not None else ())
        self._matcher = StopMatcher(stops) if stops else None
        self._parser = parser
        self._called = False
        self._unclear = 0  # tokens since the last of which it is known whether they are thought
        self._logprobs = LogprobQueue(tokenizer) if logprobs else None
        self._plain = self._matcher is None and parser is None and not logprobs  # a token is its text

    def push(self, index: int, made: Made) -> Delta | None:
        """What can be shown now, where that is anything: of the last one always. All but the usage."""
        token, finish = made.token, made.finish
        if self._plain and finish is None and token is not None:
            self.tokens += 1
            text = "" if token in self._ends else self._detokenizer.push(token)
            return Delta(index, text) if text else None
        text, stopped = self._text(made)
        self.finished = stopped or finish is not None
        text, reasoning, calls = self._parse(text, token is not None)
        if not (text or reasoning or calls or self.finished):
            return None
        logprobs = () if self._logprobs is None else self._logprobs.take()
        met = self._matcher.met if self._matcher is not None else None
        return Delta(index, text, self._reason(finish, stopped), None, reasoning, calls, logprobs, met)

    def _text(self, made: Made) -> tuple[str, bool]:
        """The text that no stop string holds back, and whether one was met."""
        text, stopped = "", False
        if made.token is not None:
            self.tokens += 1
            if made.token not in self._ends:
                if self._logprobs is not None and made.probable is not None:
                    self._logprobs.add(made.token, made.probable)
                text = self._detokenizer.push(made.token)
        if made.finish is not None:
            text += self._detokenizer.flush()
        whole = len(text)
        if self._matcher is not None:
            text, stopped = self._matcher.push(text)
            if made.finish is not None:
                text += self._matcher.flush()
        if self._logprobs is not None:
            self._logprobs.text(whole, len(text), end=made.finish is not None and not stopped)
        return text, stopped

    def _parse(self, text: str, token: bool) -> Piece:
        if self._parser is None:
            return Piece(text)
        piece = self._parser.push(text)
        if self.finished:
            rest = self._parser.flush()
            piece = Piece(piece.text + rest.text, piece.reasoning + rest.reasoning, piece.calls + rest.calls)
        self._called = self._called or bool(piece.calls)
        self._unclear += token
        if any(piece):
            self.thought += self._unclear if piece.reasoning else 0
            self._unclear = 0
        return piece

    def _reason(self, finish: FinishReason | None, stopped: bool) -> FinishReason | None:
        if stopped:
            return "stop"
        return "tool_calls" if finish == "stop" and self._called else finish


class LogprobQueue:
    """Log probabilities wait for the text of their tokens, which may be held back: it is not a whole character yet, or
    may become a stop string. Tokens of which nothing is ever shown are left out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: deque[tuple[int, TokenLogprobs]] = deque()  # with the place where their text begins
        self._made = self._shown = 0  # characters

    def add(self, token: int, probable: Probable) -> None:
        """A token whose text comes next."""
        top = tuple([self._likely(id, logprob) for id, logprob in probable.top])
        self._waiting.append((self._made, TokenLogprobs(self._likely(token, probable.chosen), top)))

    def text(self, made: int, shown: int, *, end: bool) -> None:
        """So many characters more were made and shown; with `end`, all that ever will be."""
        self._made += made
        self._shown = self._made + 1 if end else self._shown + shown

    def take(self) -> tuple[TokenLogprobs, ...]:
        taken = []
        while self._waiting and self._waiting[0][0] < self._shown:
            taken.append(self._waiting.popleft()[1])
        return tuple(taken)

    def _likely(self, id: int, logprob: float) -> Likely:
        return Likely(id, self._tokenizer.bytes_of(id), logprob)
