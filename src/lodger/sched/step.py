"""`Step`: one forward of one model, as the scheduler decides it and the runtime runs it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Lane = Literal["decode", "prefill", "rerank", "embed"]


PENDING = -1  # a token that has been chosen on the device, or will be there, and that the host does not know yet


class Row(NamedTuple):
    """A run of consecutive tokens of one sequence inside a generating step."""

    sequence: int  # id
    tokens: tuple[int, ...]  # ids whose keys and values this step computes
    start: int  # position of the first of them
    blocks: tuple[int, ...]  # block table: physical block of each block_size tokens, from position 0
    sample: bool  # the last token is the end of what is known: choose the next one

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)

    @property
    def pending(self) -> bool:
        """The last token is not known to the host."""
        return self.tokens[-1] == PENDING


class GenerateStep(NamedTuple):
    """Rows of one model's packed forward. `decode`: one token each; `prefill`: a chunk each."""

    lane: Literal["decode", "prefill"]
    rows: tuple[Row, ...]

    @property
    def tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


class Item(NamedTuple):
    """One text of one request inside an encoding step."""

    job: int  # id of the request
    index: int  # type: ignore[assignment]  # of the text in the request; hides tuple.index
    tokens: tuple[int, ...]
    token_types: tuple[int, ...] | None = None  # segment ids of a pair, where the model has them


class EncodeStep(NamedTuple):
    """Texts of one encoder's packed forward."""

    lane: Literal["rerank", "embed"]
    items: tuple[Item, ...]

    @property
    def tokens(self) -> int:
        return sum(len(item.tokens) for item in self.items)


Step = GenerateStep | EncodeStep
