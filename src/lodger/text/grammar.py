"""`Grammars`: which tokens may come next, so that an answer matches what it must. By llguidance.

A grammar is a program of whoever sends it: small ones may take minutes, or a stack of any depth. So nothing of it is
done in the threads that serve, and whoever waits for it does so for a limited time. Nobody can stop one that runs on,
so there is a number of those beyond which no more are begun.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from lodger.errors import InvalidRequest, LodgerError, Overloaded
from lodger.tasks import Constraint
from lodger.text.tokenizer import Tokenizer

MAX_GRAMMAR = 2**18  # characters
PATIENCE = 10.0  # seconds for reading a grammar, and for each token
_THREADS = 16
_LONGEST = 64  # bytes of a token
_STACK = 2**28  # bytes of address space: enough for the deepest chain of rules in MAX_GRAMMAR characters
_SLOW, _MOST_SLOW = 2.0, 4  # seconds after which a thread counts as slow, and how many such there may be
# Between two parts of JSON. Without a limit a model may go on with line breaks for ever.
_SPACE = r"[\x20\x0A\x0D\x09]{1,64}"
Result = TypeVar("Result")


class GrammarThreads:
    """Where grammars are worked on; llguidance lets go of Python's lock meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")
        self._begun: dict[object, float] = {}  # when each of the jobs was begun that now run
        self._starting = threading.Lock()

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        with self._starting:
            before = threading.stack_size(_STACK)
            try:
                return self._pool.submit(self._timed, job)
            finally:
                threading.stack_size(before)

    def slow(self) -> int:
        """How many run for long already."""
        now = time.monotonic()
        return sum(now - begun > _SLOW for begun in self._begun.copy().values())

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, job: Callable[[], Result]) -> Result:
        mark = object()
        self._begun[mark] = time.monotonic()
        try:
            return job()
        finally:
            del self._begun[mark]


class Guide:
    """What one answer may go on with.

    One thread calls `advance`, and reads the attributes while `ready`.

    Attributes:
        mask: one bit for each token, in int32 words: whether it may come next.
        over: nothing may follow any more.
        error: it cannot say; why.
        told: is called when it is ready again, in a thread of its own.
    """

    def __init__(self, matcher: Any, threads: GrammarThreads) -> None:
        self._matcher, self._threads = matcher, threads
        self.mask = b""
        self.over = False
        self.error: LodgerError | None = None
        self.told: Callable[[], None] = _nobody
        self.ready = True
        self._since = 0.0
        self._look()

    @property
    def stuck(self) -> bool:
        """It has thought about one token for longer than anybody should wait."""
        return not self.ready and time.monotonic() - self._since > PATIENCE

    def advance(self, token: int) -> Future[None]:
        """`token` was chosen. It is not ready for some time now."""
        self.ready, self._since = False, time.monotonic()
        return self._threads.submit(lambda: self._advance(token))

    def _advance(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self.error = _refusal(self._matcher.get_error() or "no token that may come next was left")
        elif self._matcher.is_stopped():
            self.over, self.error = True, self._problem()
        else:
            self._look()
        self.ready = True
        self.told()

    def _look(self) -> None:
        self.mask = self._matcher.compute_bitmask()
        self.error = self._problem()

    def _problem(self) -> LodgerError | None:
        return _refusal(self._matcher.get_error()) if self._matcher.is_error() else None


def _nobody() -> None:
    """Nobody waits for it."""


class Grammars:
    """Of one model.

    Args:
        width: tokens that the model can choose from; its tokenizer may know fewer.
        ends: tokens that end a text, which they may do where the grammar is met.
    """

    def __init__(self, tokenizer: Tokenizer, width: int, ends: Collection[int], threads: GrammarThreads) -> None:
        self._tokenizer, self._width, self._ends = tokenizer, width, sorted(ends)
        self._threads = threads
        self._making = threading.Lock()

    async def guides(self, constraint: Constraint, count: int) -> list[Guide]:
        """A guide for each of `count` answers.

        Raises:
            InvalidRequest: it is too long, or not what it should be, or takes too long.
            Overloaded: others take too long.
        """
        if len(constraint.text) > MAX_GRAMMAR:
            size = f"{len(constraint.text):,} characters; at most {MAX_GRAMMAR:,} are read"
            raise InvalidRequest(f"the form that is asked of the answer has {size}.", param="response_format")
        if (slow := self._threads.slow()) >= _MOST_SLOW:
            raise Overloaded(f"{slow} forms of answers are being worked out for long already.", retry_after=5)
        reading = asyncio.wrap_future(self._threads.submit(lambda: self._guides(constraint, count)))
        done, _ = await asyncio.wait([reading], timeout=PATIENCE)
        if not done:
            reading.cancel()
            raise too_slow()
        return reading.result()

    def _guides(self, constraint: Constraint, count: int) -> list[Guide]:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        with self._making:
            tokens = self._tokens
        matcher = LLMatcher(tokens, _grammar(constraint), log_level=0, limits=limits)
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        guides = [Guide(matcher.deep_copy(), self._threads) for _ in range(count - 1)]
        guides.append(Guide(matcher, self._threads))
        if guides[-1].error is not None:
            raise guides[-1].error
        return guides

    @cached_property
    def _tokens(self) -> Any:
        from llguidance import LLTokenizer

        words: Any = _Words(self._tokenizer, self._width, self._ends)
        return LLTokenizer(words, n_vocab=len(words.tokens), eos_token=self._ends or [words.eos_token_id])


class _Words:
    """A tokenizer as llguidance wants to see one. A token that is shown is text, whatever it looks like."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, width: int, ends: list[int]) -> None:
        self.tokens = [tokenizer.bytes_of(id) for id in range(width)]
        self.special_token_ids = sorted(id for id in tokenizer.special if id < width)
        if not ends:  # an end that no model can choose
            self.tokens.append(b"<end>")
            self.special_token_ids.append(width)
        self.eos_token_id = ends[0] if ends else width
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens that spell `text` byte by byte: the tokenizer's own, unless it changes or adds something."""
        raw = text.encode() if isinstance(text, str) else text
        ids = self._tokenizer.encode(raw.decode("utf-8", "replace"), special=False)
        return ids if b"".join([self.tokens[id] for id in ids if id < len(self.tokens)]) == raw else self._longest(raw)

    def _longest(self, raw: bytes) -> list[int]:
        """The longest token that fits, again and again, as far as there is one."""
        ids, at = [], 0
        while at < len(raw):
            lengths = range(min(_LONGEST, len(raw) - at), 0, -1)
            found = next((id for n in lengths if (id := self._by_bytes.get(raw[at : at + n])) is not None), None)
            if found is None:
                break
            ids.append(found)
            at += len(self.tokens[found])
        return ids

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {token: id for id, token in enumerate(self.tokens) if token and id not in special}


def _grammar(constraint: Constraint) -> str:
    """What llguidance reads."""
    from llguidance import LLMatcher

    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(constraint.text))
    if constraint.kind == "lark":
        return constraint.text
    try:
        schema = msgspec.json.decode(constraint.text)
        if not isinstance(schema, dict | bool):
            raise _refusal("a JSON schema is an object")
        given = constraint.text if isinstance(schema, dict) else "{}" if schema else '{"enum":[]}'
        return str(LLMatcher.grammar_from_json_schema(given, defaults={"whitespace_pattern": _SPACE}))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # either reader's
        raise _refusal(f"its schema is not JSON: {error}") from None


def _refusal(said: str) -> InvalidRequest:
    """In llguidance's words, as one line. A panic of its own says nothing to anybody else."""
    line = " ".join(said.partition("<state>")[0].replace("<non-verbose/>", "").split())[:300]
    if not line or line.startswith("panic"):
        line = "it is too large or too deep"
    return InvalidRequest(f"the form that is asked of the answer cannot be kept to: {line}.", param="response_format")


def too_slow() -> InvalidRequest:
    return InvalidRequest(
        f"the form that is asked of the answer takes more than {PATIENCE:.0f} s to work out.",
        hint="Ask for a simpler one.",
        param="response_format",
    )
