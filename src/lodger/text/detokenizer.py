"""Detokenizers: token ids to text as they come, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

_UNFINISHED = "�"  # what a decoder makes of bytes that are no character, or not yet
_LONGEST = 3  # such marks that may still become one character of four bytes
_WINDOW, _CONTEXT = 32, 8  # tokens kept at most while a character stays unfinished, and how many of them go on


class Detokenizer(Protocol):
    """The pieces of one generation, in order, are the decoding of all its tokens."""

    def push(self, token_id: int) -> str:
        """The text that this token completes, often all of its own, sometimes nothing yet."""
        ...

    def flush(self) -> str:
        """The generation has ended: what was held back, replacement marks included."""
        ...


class ByteDetokenizer:
    """For byte-level decoders, whose text is the bytes of all tokens one after the other, read as UTF-8.

    Args:
        piece: the text of a token, or its bytes where they are not whole characters.
    """

    def __init__(self, piece: Callable[[int], str | bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = False  # bytes of a character that is not whole yet

    def push(self, token_id: int) -> str:
        piece = self._piece(token_id)
        if not self._waiting and isinstance(piece, str):
            return piece
        text = self._decoder.decode(piece.encode() if isinstance(piece, str) else piece)
        self._waiting = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        self._waiting = False
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any decoder. The pieces of one generation, in order, are the decoding of all its tokens.

    Only a short window is decoded at each step: the token before (decoders treat the first token differently) and those
    after it. Exact for byte-level decoders; for others as exact as their decoding of a token with its left neighbour.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._shown = 0  # characters of the window's text that were given out

    def push(self, token_id: int) -> str:
        if not self._decode([token_id]):  # a special token that is not shown
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        held = min(len(text) - len(text.rstrip(_UNFINISHED)), _LONGEST)
        piece = text[self._shown : len(text) - held]
        self._shown += len(piece)
        if not held:
            self._restart(1)
        elif len(self._window) > _WINDOW:
            self._restart(_CONTEXT, held)
        return piece

    def flush(self) -> str:
        rest = self._decode(self._window)[self._shown :]
        self._shown += len(rest)
        return rest

    def _restart(self, keep: int, held: int = 0) -> None:
        del self._window[:-keep]
        self._shown = max(len(self._decode(self._window)) - held, 0)


class MarkDetokenizer:
    """Another one, with the text of tokens that it would not show.

    Args:
        marks: token id -> its text.
    """

    def __init__(self, plain: Detokenizer, marks: Mapping[int, str]) -> None:
        self._plain, self._marks = plain, marks

    def push(self, token_id: int) -> str:
        mark = self._marks.get(token_id)
        return self._plain.push(token_id) if mark is None else self._plain.flush() + mark

    def flush(self) -> str:
        return self._plain.flush()
