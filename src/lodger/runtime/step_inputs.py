"""`StepInputs`: what a captured decode step reads of its rows, sent from the host in one copy.

A sequence keeps one line of the block table for as long as it is in every step, so the host sends its blocks once: the
step itself adds a block that is new.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import torch

from lodger.runtime.upload import staged, table
from lodger.sched.step import PENDING, Row

FIELDS = 5  # of each row: its token, where to take it from instead, its position, its slot, its line of the table
_NOBODY = (0, -1, 0, -1, 0)  # a row that stands for no sequence


class StepInputs:
    """
    Args:
        most: rows of one step.
        width: blocks of one sequence.
    """

    def __init__(self, most: int, width: int, block_size: int, device: torch.device) -> None:
        self.table = torch.zeros(most, width, dtype=torch.int32, device=device)
        self._numbers = torch.zeros(FIELDS * most, dtype=torch.int32, device=device)
        self._block_size, self._device = block_size, device
        self._lines: dict[int, int] = {}  # sequence -> its line of the table
        self._free = list(range(most))
        self._expected: dict[int, int] = {}  # sequence -> position that goes on from the last step

    def of(self, rows: int) -> torch.Tensor:
        """[FIELDS, rows] int32: what `send` sent for a step of so many rows."""
        return self._numbers[: FIELDS * rows].view(FIELDS, rows)

    def send(self, rows: Sequence[Row], size: int, sources: Mapping[int, int]) -> None:
        """
        Args:
            rows: one token each, at most `size`; the rest of the step stands for no sequence.
            sources: where on the device the tokens of sequences lie that the host does not know yet, by their ids.
        """
        self._fill(rows)
        lines, block = self._lines, self._block_size
        numbers = [
            (
                token := row.tokens[0],
                sources.get(row.sequence, -1) if token == PENDING else -1,
                start := row.start,
                row.blocks[-1] * block + start % block,
                lines[row.sequence],
            )
            for row in rows
        ]
        numbers += [_NOBODY] * (size - len(rows))
        flat = array("i")
        for field in zip(*numbers, strict=True):
            flat.extend(field)
        self._numbers[: len(flat)].copy_(staged(flat, torch.int32, self._device), non_blocking=True)

    def _fill(self, rows: Sequence[Row]) -> None:
        """Block tables of the rows that do not go on from the last step."""
        expected, self._expected = self._expected, {}  # nothing can be expected after a failure half way
        coming = {row.sequence: row.start + 1 for row in rows}
        for sequence in self._lines.keys() - coming.keys():
            self._free.append(self._lines.pop(sequence))
        fresh = [row for row in rows if expected.get(row.sequence) != row.start]
        for row in fresh:
            if row.sequence not in self._lines:
                self._lines[row.sequence] = self._free.pop()
        if fresh:
            blocks = table([row.blocks for row in fresh], self._device)
            lines = array("q", [self._lines[row.sequence] for row in fresh])
            at = staged(lines, torch.int64, self._device).to(self._device, non_blocking=True)
            self.table[:, : blocks.shape[1]].index_copy_(0, at, blocks)
        self._expected = coming
