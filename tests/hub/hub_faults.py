"""What can go wrong between a hub and us, one class for each way. `HubServer.fail` says when."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

Write = Callable[[bytes], None]
HERE = "the address of the request"  # as the value of a header


class Cutoff(Exception):
    """The server closes the connection now; `reset` as a crashed machine or a firewall would."""

    def __init__(self, *, reset: bool = False) -> None:
        self.reset = reset

    def close(self, connection: socket.socket) -> None:
        if self.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close sends RST
        else:
            connection.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)  # without content-length
    body: bytes = b""


class Fault:
    """An answer on its way out. This one leaves it as it is: a good answer between two bad ones."""

    def before(self) -> None:
        """Called before the first byte of the answer."""

    def change(self, answer: Answer) -> Answer:
        """Another status, other headers or another body; Content-Length follows the body."""
        return answer

    def announced(self, length: int) -> int | None:
        """The Content-Length that is sent for a body of `length` bytes; None: the end of the connection is its end."""
        return length

    def send(self, body: bytes, write: Write) -> None:
        write(body)

    def release(self) -> None:
        """The server closes: nobody waits any longer."""


@dataclass(frozen=True)
class Status(Fault):
    """Another answer than the file: `Status(429, retry_after=2)`, `Status(503)`, `Status(200, b"<html>")`."""

    code: int
    body: bytes = b"nothing to see here"
    retry_after: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def change(self, answer: Answer) -> Answer:
        wait = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return Answer(self.code, {"Content-Type": "text/html", **wait, **self.headers}, self.body)


@dataclass(frozen=True)
class Cut(Fault):
    """The connection ends after `after` bytes of the body."""

    after: int
    reset: bool = False

    def send(self, body: bytes, write: Write) -> None:
        write(body[: self.after])
        raise Cutoff(reset=self.reset)


def random_cuts(seed: int, size: int, count: int) -> list[Cut]:
    """`count` cuts, each somewhere in `size` bytes, every other one a reset."""
    places = random.Random(seed)
    return [Cut(places.randrange(size), reset=bool(turn % 2)) for turn in range(count)]


@dataclass(frozen=True)
class Drop(Fault):
    """The connection ends without any answer."""

    def before(self) -> None:
        raise Cutoff


@dataclass(frozen=True)
class WrongBytes(Fault):
    """The right size, with one byte changed."""

    def change(self, answer: Answer) -> Answer:
        return replace(answer, body=answer.body[:-1] + bytes([answer.body[-1] ^ 1]))


@dataclass(frozen=True)
class WrongSize(Fault):
    """`by` bytes more (or, below zero, fewer) than there are, and the headers say so too."""

    by: int

    def change(self, answer: Answer) -> Answer:
        body = answer.body + bytes(self.by) if self.by > 0 else answer.body[: self.by]
        return replace(answer, body=body, headers={k: v for k, v in answer.headers.items() if k != "Content-Range"})


@dataclass(frozen=True)
class WrongLength(Fault):
    """A Content-Length of `by` bytes more (or fewer) than are sent."""

    by: int

    def announced(self, length: int) -> int:
        return length + self.by

    def send(self, body: bytes, write: Write) -> None:
        write(body)
        raise Cutoff


@dataclass(frozen=True)
class Unannounced(Fault):
    """No Content-Length, and the connection ends after `after` bytes as if that were all. `junk` comes first."""

    after: int
    junk: bytes = b""

    def announced(self, length: int) -> None:
        return None

    def send(self, body: bytes, write: Write) -> None:
        write((self.junk + body)[: self.after])
        raise Cutoff


@dataclass(frozen=True)
class Redirect(Fault):
    """Sends the client to where it is: `always`, in circles."""

    def change(self, answer: Answer) -> Answer:
        return Answer(302, {"Location": HERE})


@dataclass(frozen=True)
class Hang(Fault):
    """No byte until `resume` is set. `reached` is set when the request is here."""

    reached: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)

    def before(self) -> None:
        self.reached.set()
        self.resume.wait()

    def release(self) -> None:
        self.resume.set()


@dataclass(frozen=True)
class Stall(Fault):
    """Stops after `after` bytes of the body until `resume` is set. `reached` is set when they are sent."""

    after: int
    reached: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)

    def send(self, body: bytes, write: Write) -> None:
        write(body[: self.after])
        self.reached.set()
        self.resume.wait()
        write(body[self.after :])

    def release(self) -> None:
        self.resume.set()


@dataclass(frozen=True)
class Slow(Fault):
    """`step` bytes every 10 ms until `resume` is set, then the rest. `reached` is set after the first step."""

    step: int = 16
    reached: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)

    def send(self, body: bytes, write: Write) -> None:
        at = 0
        while at < len(body) and not self.resume.is_set():
            write(body[at : at + self.step])
            at += self.step
            self.reached.set()
            self.resume.wait(0.01)
        write(body[at:])

    def release(self) -> None:
        self.resume.set()
