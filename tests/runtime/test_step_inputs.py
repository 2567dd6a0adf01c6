"""What a captured decode step finds on the device, whichever sequences come, go, pause or jump between steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.runtime.step_inputs import FIELDS, StepInputs
from lodger.sched.step import PENDING, Row

MOST, BLOCK = 6, 4
# For each step, what each of some sequences does: it stays away, goes on, or comes back at another place.
steps = st.lists(st.lists(st.sampled_from(["away", "on", "on", "on", "moved"]), min_size=9, max_size=9), max_size=25)


class Device:
    """Does with the table what the step's first kernel does."""

    def __init__(self) -> None:
        self.inputs = StepInputs(MOST, 40, BLOCK, torch.device("cpu"))

    def run(self, rows: list[Row], size: int, sources: dict[int, int]) -> list[list[int]]:
        self.inputs.send(rows, size, sources)
        sent = self.inputs.of(size).T.tolist()
        for _, _, position, slot, line in sent:
            if slot >= 0:
                self.inputs.table[line, position // BLOCK] = slot // BLOCK
        return sent


@settings(max_examples=60, deadline=None)
@given(steps=steps, data=st.data())
def test_every_row_finds_its_own_blocks(steps: list[list[str]], data: st.DataObject) -> None:
    device = Device()
    at: dict[int, tuple[int, tuple[int, ...]]] = {}
    for moves in steps:
        rows: list[Row] = []
        for sequence, move in enumerate(moves):
            if move == "away" or len(rows) == MOST:
                continue
            position, blocks = at.get(sequence, (-1, ()))
            if move == "moved" or not blocks:
                position, blocks = position + 2 + data.draw(st.integers(0, 2)), ()
            else:
                position += 1
            while len(blocks) < position // BLOCK + 1:
                blocks += (data.draw(st.integers(0, 99)),)
            at[sequence] = position, blocks
            rows.append(Row(sequence, (data.draw(st.sampled_from([PENDING, 5])),), position, blocks, True))
        if not rows:
            continue
        size = len(rows) + data.draw(st.integers(0, MOST - len(rows)))
        sent = device.run(rows, size, {row.sequence: 70 + row.sequence for row in rows})
        assert len({line for *_, slot, line in sent if slot >= 0}) == len(rows), "a line of its own"
        for row, (token, source, position, slot, line) in zip(rows, sent, strict=False):
            assert (token, source) == ((PENDING, 70 + row.sequence) if row.tokens[0] == PENDING else (5, -1))
            assert (position, slot) == (row.start, row.blocks[-1] * BLOCK + row.start % BLOCK)
            assert device.inputs.table[line, : len(row.blocks)].tolist() == list(row.blocks)
        assert [row[3] for row in sent[len(rows) :]] == [-1] * (size - len(rows)), "the rest stores nothing"


def test_blocks_are_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lodger.runtime import step_inputs

    sent: list[int] = []
    table = step_inputs.table
    monkeypatch.setattr(step_inputs, "table", lambda rows, device: sent.append(len(rows)) or table(rows, device))
    device = Device()
    for start in range(3, 20):
        left = range(3) if start < 12 else range(1, 3)  # one ends, and nobody else's blocks are sent again
        device.run([Row(n, (5,), start, tuple(range(start // BLOCK + 1)), True) for n in left], 4, {})
    assert sent == [3]
    assert device.inputs.of(4).shape == (FIELDS, 4)


def test_a_step_that_failed_half_way_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    rows = [Row(n, (5,), 9, (n, n + 1, n + 2), True) for n in range(3)]
    with monkeypatch.context() as broken:
        broken.setattr("lodger.runtime.step_inputs.table", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            device.run(rows, 4, {})
    for *_, line in device.run(rows, 4, {})[:3]:
        assert device.inputs.table[line, :3].tolist() != [0, 0, 0]
