"""Typed messages over a stream socket: a 4-byte big-endian length, then one msgpack map.

Either end may fail to make sense of one frame without losing the next: a message that is too long is refused before it
is sent, and a frame that cannot be read is skipped and reported.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any, Generic, TypeVar, cast

import msgspec

from lodger.errors import BodyTooLarge, InternalError, LodgerError, MalformedBody
from lodger.units import gib

MAX_FRAME = 64 * 2**20
_HEADER = 4
_INBOX = 1024  # messages waiting for `receive` before the peer is made to wait

_encoder = msgspec.msgpack.Encoder()
Incoming = TypeVar("Incoming")


def encode(message: msgspec.Struct) -> bytearray:
    """One frame, made in place: the vectors of an answer are copied once.

    Raises:
        MalformedBody: it holds something that msgpack cannot carry (an integer over 64 bits, half a surrogate pair).
        BodyTooLarge: it is longer than a frame may be.
    """
    frame = bytearray(_HEADER)
    try:
        _encoder.encode_into(message, frame, _HEADER)
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise MalformedBody(f"the request holds a value that cannot be passed on: {error}.") from error
    length = len(frame) - _HEADER
    if length > MAX_FRAME:
        raise BodyTooLarge(
            f"a message of {gib(length)} is over the {gib(MAX_FRAME)} that may pass between gateway and worker.",
            hint="Send fewer or shorter inputs at a time.",
        )
    frame[:_HEADER] = length.to_bytes(_HEADER, "big")
    return frame


class Channel(asyncio.Protocol, Generic[Incoming]):
    """One end of a connection that receives messages of one union of types."""

    def __init__(self, incoming: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming)
        self._buffer = bytearray()
        self._skip = 0  # bytes of an oversize frame still to be thrown away
        self._inbox: deque[Incoming | LodgerError] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, sock: socket.socket, incoming: Any) -> Channel[Incoming]:
        """The channel over a connected socket, which it owns from now on. `incoming`: the union of types to receive."""
        sock.setblocking(False)
        _, channel = await asyncio.get_running_loop().create_connection(lambda: cls(incoming), sock=sock)
        return channel

    def post(self, message: msgspec.Struct) -> None:
        """Queue a message without waiting for a slow peer; nothing happens once the channel is closed.

        Raises:
            MalformedBody, BodyTooLarge: see `encode`.
        """
        frame = encode(message)
        if self._transport is not None and not self._closed.is_set():
            self._transport.write(frame)

    async def send(self, message: msgspec.Struct) -> None:
        """Queue a message and wait while the peer is slow to take what was sent before.

        Raises:
            ConnectionResetError: the peer is gone.
            MalformedBody, BodyTooLarge: see `encode`.
        """
        frame = encode(message)
        if self._transport is None or self._closed.is_set():
            raise ConnectionResetError("the connection is closed")
        self._transport.write(frame)
        await self._writable.wait()

    async def receive(self) -> Incoming | None:
        """The next message; None once the peer has closed and everything that it sent was received.

        Raises:
            InternalError: one frame could not be read; the next call goes on after it.
        """
        while not self._inbox:
            if self._closed.is_set():
                return None
            self._arrived.clear()
            await self._arrived.wait()
        message = self._inbox.popleft()
        if len(self._inbox) == _INBOX // 2 and self._transport is not None:
            self._transport.resume_reading()
        if isinstance(message, LodgerError):
            raise message
        return message

    async def close(self) -> None:
        """Close after what was sent has gone out; the peer sees the end of the stream."""
        if self._transport is not None:
            self._transport.close()
            await self._closed.wait()

    # What the event loop calls.
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._take():
            pass
        if self._inbox:
            self._arrived.set()
        if len(self._inbox) > _INBOX and self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False  # close our side too

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set()
        self._writable.set()
        self._arrived.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _take(self) -> bool:
        """Move one frame from the buffer to the inbox; False when none is complete."""
        if self._skip:
            thrown = min(self._skip, len(self._buffer))
            del self._buffer[:thrown]
            self._skip -= thrown
        if len(self._buffer) < _HEADER or self._skip:
            return False
        length = int.from_bytes(self._buffer[:_HEADER], "big")
        if length > MAX_FRAME:
            self._skip = _HEADER + length
            self._inbox.append(InternalError(f"a frame of {gib(length)} is over the {gib(MAX_FRAME)} allowed."))
            return True
        if len(self._buffer) < _HEADER + length:
            return False
        self._inbox.append(self._decode(length))
        del self._buffer[: _HEADER + length]
        return True

    def _decode(self, length: int) -> Incoming | LodgerError:
        with memoryview(self._buffer) as view, view[_HEADER : _HEADER + length] as body:
            try:
                return self._decoder.decode(body)
            except (msgspec.DecodeError, RecursionError) as error:
                return InternalError(f"a frame of {length} bytes could not be read: {error}.")
