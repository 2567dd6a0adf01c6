"""`CallFinder`: the calls of tools in a text that arrives in pieces, and the text around them."""

from __future__ import annotations

from collections.abc import Sequence

from lodger.tasks import ToolCall
from lodger.text.marks import first_mark, sure
from lodger.text.tool_formats.base import Block, Tool, ToolFormat

_VALUE = ("{", "[")
_MOST_BROKEN = 16  # blocks: reading on after one costs as much as the rest of the text is long


class CallFinder:
    """Never shows half a mark, and shows a block that turns out to be broken as the text it is.

    White space before, between and after calls belongs to nothing. A text without calls comes out as it went in.
    """

    def __init__(self, form: ToolFormat, tools: Sequence[Tool], *, several: bool) -> None:
        self._format, self._tools, self._several = form, tools, several
        self._held = ""  # from the block's mark on, if there is a block
        self._block: Block | None = None
        self._mark = self._space = ""  # of the block, and before it
        self._bare = form.bare  # a block without a mark may begin here
        self._between = False  # nothing has come since the last call
        self._called = False
        self._broken = 0

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """The text that can be shown now, and the calls that are whole."""
        self._held += text
        return self._take(final=False)

    def flush(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The answer has ended: what was held back."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> tuple[str, tuple[ToolCall, ...]]:
        shown: list[str] = []
        calls: list[ToolCall] = []
        while self._held:
            if self._block is None:
                shown.append(self._show(final))
                if self._block is None:
                    break
            end = self._block.end(self._held, final=final)
            if end is None and not final:
                break
            made = self._format.read(self._held[:end], self._tools) if end else ()
            if end and made:
                calls += self._allowed(made)
                self._held, self._block = self._held[end:], None
                self._between, self._bare = True, self._format.bare
            else:
                shown.append(self._reject())
        return "".join(shown), tuple(calls)

    def _show(self, final: bool) -> str:
        """Text up to where a block begins, which is then open, or as far as it is sure to be text."""
        if self._between:
            self._held = self._held.lstrip(self._format.between)
        if self._broken >= _MOST_BROKEN:
            shown, self._held = self._held, ""
            return shown
        if self._bare and self._begins_bare(final):
            return ""
        if found := first_mark(self._held, self._format.opens):
            at, mark = found
            shown = self._held[:at].rstrip()
            self._open(len(shown), at, mark)
        else:
            length = len(self._held) if final else sure(self._held, self._format.opens)
            shown, self._held = self._held[:length], self._held[length:]
        if shown:
            self._bare = self._between = False
        return shown

    def _begins_bare(self, final: bool) -> bool:
        """Whether a block without a mark begins here, which is then open, or may begin once more has come."""
        start, marks = self._held.lstrip(), self._format.opens
        if not start.startswith(_VALUE) or any(map(start.startswith, marks)):
            return False
        if final or not any(mark.startswith(start) for mark in marks):
            self._open(0, len(self._held) - len(start), "")
        return True

    def _open(self, space: int, at: int, mark: str) -> None:
        self._space, self._mark, self._held = self._held[space:at], mark, self._held[at:]
        self._block = self._format.block(mark)

    def _reject(self) -> str:
        """What began the block is text; what follows it may hold another."""
        length = len(self._mark) or 1
        shown, self._held = self._space + self._held[:length], self._held[length:]
        self._block = None
        self._bare = self._between = False
        self._broken += 1
        return shown

    def _allowed(self, made: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
        if self._several:
            return made
        allowed = () if self._called else made[:1]
        self._called = True
        return allowed
